"""Non-maximum suppression: hand-worked, by the reference, and torchvision's result bit for bit."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regio.kernels import nms as module
from regio.kernels.nms import batched_nms, moved_apart, nms, nms_reference


def random_boxes(n: int, seed: int, dtype: torch.dtype = torch.float32, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Boxes in clusters; `whole` ones have whole coordinates and scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(max(1, n // 8), 2, generator=generator)[
        torch.randint(0, max(1, n // 8), (n,), generator=generator)
    ]
    corner = centre * 200 + torch.randn(n, 2, generator=generator) * 8
    boxes = torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * 80], 1).to(dtype)
    scores = torch.rand(n, generator=generator)
    return (boxes.round(), (scores * 10).round() / 10) if whole else (boxes, scores)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 400),
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1 / 3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    whole=st.booleans(),
)
def test_identical_to_torchvision(n: int, seed: int, threshold: float, dtype: torch.dtype, whole: bool) -> None:
    boxes, scores = random_boxes(n, seed, dtype, whole)
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores.to(dtype), threshold))


@pytest.mark.parametrize("far", [1, 100_000])
def test_groups_that_are_moved_apart_are_suppressed_as_each_alone(far: int) -> None:
    """As on devices without a kernel of their own: boxes of other groups never meet, and overlaps keep their digits."""
    for seed in range(30):
        boxes, scores = random_boxes(200, seed, whole=seed % 2 == 0)
        group = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(seed)) * far
        boxes -= 300 * (seed % 3)  # left of the image, too
        found = torchvision.ops.nms(moved_apart(boxes, group), scores.double(), 0.5)
        expected = batched_nms(boxes, scores, group, 0.5)
        assert {*found.tolist()} == {*expected.tolist()}
    boxes = torch.tensor([[0.0, 0, 10, 10], [-11.0, -11, -1, -1]])
    moved = moved_apart(boxes, torch.tensor([0, far]))
    assert torchvision.ops.nms(moved, torch.tensor([0.9, 0.8]).double(), 0.5).tolist() == [0, 1]
    assert moved_apart(boxes[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_many_boxes() -> None:
    boxes, scores = random_boxes(12000, 0)
    kept = nms(boxes, scores, 0.7)
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.7))


@pytest.mark.parametrize("whole", [False, True])
def test_equals_the_reference(whole: bool) -> None:
    boxes, scores = random_boxes(300, 3, torch.float64, whole)
    assert torch.equal(nms(boxes, scores, 0.4), nms_reference(boxes, scores, 0.4))


def test_hand_worked() -> None:
    """IoU of the first two is 1/2 exactly, so 0.5 keeps both; the third equals the first in score and place."""
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    scores = torch.tensor([0.9, 0.8, 0.9, 0.95])
    assert nms(boxes, scores, 0.5).tolist() == [3, 0, 1]
    assert nms(boxes, scores, 0.49).tolist() == [3, 0]


@settings(deadline=None, max_examples=30)
@given(n=st.integers(0, 200), seed=st.integers(0, 1000))
def test_groups_do_not_meet(n: int, seed: int) -> None:
    boxes, scores = random_boxes(n, seed)
    group = torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(seed))
    kept = batched_nms(boxes, scores, group, 0.5)
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
    for g in range(-2, 3):
        rows = (group == g).nonzero()[:, 0]
        assert torch.equal(kept[group[kept] == g], rows[nms(boxes[rows], scores[rows], 0.5)])


def test_low_precision() -> None:
    boxes, scores = random_boxes(100, 0, whole=True)
    kept = nms(boxes.bfloat16(), scores.bfloat16(), 0.5)
    assert torch.equal(kept, nms(boxes.bfloat16().float(), scores.bfloat16().float(), 0.5))


@pytest.mark.slow
def test_registration() -> None:
    boxes, scores = random_boxes(50, 0)
    group = torch.arange(50) % 3
    torch.library.opcheck(module._nms, (boxes, scores, group, 0.5))


@pytest.mark.parametrize(
    ("boxes", "scores", "error", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3), ValueError, r"boxes: expected shape \[R, 4\]"),
        (torch.zeros(3, 4), torch.zeros(2), ValueError, r"scores: expected shape \[3\]"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3), TypeError, "boxes: expected a floating point"),
        (
            torch.zeros(3, 4),
            torch.tensor([0, 1, float("nan")]),
            ValueError,
            "scores: expected numbers, got nan at row 2",
        ),
    ],
)
def test_bad_arguments_raise(boxes: Tensor, scores: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nms(boxes, scores, 0.5)


def test_bad_group_raises() -> None:
    with pytest.raises(TypeError, match="group: expected dtype"):
        batched_nms(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3), 0.5)
