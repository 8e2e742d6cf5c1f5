"""nms, batched_nms and box_iou: parity with torchvision and bad input."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from regio import ops

INVERTED = torch.tensor([[4.0, 4, 0, 0], [4, 4, 0, 0], [1, 1, 3, 3], [0, 4, 4, 0], [1, 1, 1, 3], [1, 1, 1, 3]])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 40), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_parity(seed: int, count: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 8, (count, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(-2, 8, (count, 2), generator=generator)], 1).float()
    scores = torch.randperm(count, generator=generator).float()
    assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))
    labels = torch.randint(0, 3, (count,), generator=generator)
    expected = torchvision.ops.batched_nms(boxes, scores, labels, threshold)
    for idxs in (labels, labels.int(), labels.float() / 2, labels.to(torch.uint8)):
        assert torch.equal(ops.batched_nms(boxes, scores, idxs, threshold), expected)


def test_inverted_boxes_as_torchvision() -> None:
    scores = torch.arange(len(INVERTED)).float()
    assert torch.equal(ops.nms(INVERTED, scores, 0.1), torchvision.ops.nms(INVERTED, scores, 0.1))


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
def test_box_iou_is_torchvisions(fmt: str) -> None:
    expected = torchvision.ops.box_iou(INVERTED, INVERTED[:4], fmt)
    torch.testing.assert_close(ops.box_iou(INVERTED, INVERTED[:4], fmt), expected, rtol=0, atol=0, equal_nan=True)
    assert ops.box_iou(INVERTED[:0], INVERTED).shape == (0, 6)


def test_bad_input_raises() -> None:
    boxes, scores, idxs = torch.rand(3, 4), torch.rand(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="^boxes: expected shape"):
        ops.nms(boxes[:, :3], scores, 0.5)
    with pytest.raises(TypeError, match="^boxes: expected"):
        ops.nms(boxes.int(), scores, 0.5)
    with pytest.raises(ValueError, match="^scores: expected"):
        ops.nms(boxes, scores[:2], 0.5)
    with pytest.raises(ValueError, match="^scores: expected numbers, got nan at row 0"):
        ops.nms(boxes, scores / 0 * 0, 0.5)
    with pytest.raises(ValueError, match="^idxs: expected shape"):
        ops.batched_nms(boxes, scores, idxs[:2], 0.5)
    with pytest.raises(ValueError, match="^idxs: expected device"):
        ops.batched_nms(boxes, scores, idxs.to("meta"), 0.5)
    with pytest.raises(ValueError, match="^boxes1: expected"):
        ops.box_iou(boxes[0], boxes)
    with pytest.raises(ValueError, match="^boxes2: expected"):
        ops.box_iou(boxes, boxes[:, :3])
    with pytest.raises(ValueError, match="^boxes2: expected device"):
        ops.box_iou(boxes, boxes.to("meta"))
    with pytest.raises(TypeError, match="^boxes1: expected"):
        ops.box_iou([[0, 0, 1, 1]], boxes)


@pytest.mark.parametrize("count", [3, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_raise(value: float, dtype: torch.dtype, count: int) -> None:
    boxes, scores, idxs = torch.rand(count, 4, dtype=dtype), torch.rand(count, dtype=dtype), torch.arange(count) % 2
    bad = boxes.clone()
    bad[2, 1] = value
    for call in (lambda: ops.nms(bad, scores, 0.5), lambda: ops.batched_nms(bad, scores, idxs, 0.5)):
        with pytest.raises(ValueError, match=r"^boxes: expected finite coordinates, got \[.*(nan|inf).*\] at row 2$"):
            call()
    worse = scores.clone()
    worse[1] = value
    if value != value:
        with pytest.raises(ValueError, match="^scores: expected numbers, got nan at row 1$"):
            ops.batched_nms(boxes, worse, idxs, 0.5)
        with pytest.raises(ValueError, match="^idxs: expected numbers, got nan at row 1$"):
            ops.batched_nms(boxes, scores, worse, 0.5)
    else:  # infinity has its place in the order
        kept = ops.nms(torch.arange(4, dtype=dtype).repeat(count, 1), worse, 0.5).tolist()
        assert len(kept) == 1 and (kept == [1]) == (value > 0)


@pytest.mark.slow
def test_a_compiled_graph_raises_too() -> None:
    torch.compiler.reset()
    compiled = torch.compile(ops.nms, backend="aot_eager")
    boxes = torch.rand(3, 4)
    compiled(boxes, torch.rand(3), 0.5)
    with pytest.raises(ValueError, match="^boxes: expected finite coordinates"):
        compiled(boxes * torch.nan, torch.rand(3), 0.5)
