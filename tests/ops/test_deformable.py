"""Deformable poolings with given offsets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from regio import ops
from tests.ops.parity import rois, same, tensor


@pytest.mark.parametrize("ratio", [0, 2])
def test_without_offsets_it_is_aligned_roi_align(ratio: int) -> None:
    """Also of boxes without extent and inverted ones."""
    x, boxes = tensor(2, 3, 9, 11).requires_grad_(), rois(random=20)
    zeros = torch.zeros(len(boxes), 2, 2, 3, dtype=torch.float64)
    for offset in (None, zeros):
        same(
            lambda x, o=offset: ops.deform_roi_pool(x, boxes, o, (2, 3), 0.25, ratio),
            lambda x: ops.roi_align(x, boxes, (2, 3), 0.25, ratio, aligned=True),
            x,
            tolerance=1e-10,
        )


def test_an_offset_moves_a_bin_by_gamma_of_the_box() -> None:
    """Offset 1 of one bin moves it by gamma * (width, height); channel 0 is x. The map is column + 100 row."""
    v, u = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    x = (u + 100 * v)[None, None].double()
    boxes = torch.tensor([[0, 12.0, 8.0, 28.0, 16.0]]).double()  # 4 cells wide and 2 high
    still = ops.deform_roi_pool(x, boxes, None, 2, 0.25, 2, 0.25)
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    offset[0, 0, 0, 1], offset[0, 1, 1, 0] = 1, 2
    moved = ops.deform_roi_pool(x, boxes, offset, 2, 0.25, 2, 0.25) - still
    torch.testing.assert_close(moved[0, 0], torch.tensor([[0.0, 1.0], [100.0, 0.0]]).double(), rtol=0, atol=1e-10)


def test_gradcheck() -> None:
    x, boxes = tensor(1, 8, 9, 11).requires_grad_(), torch.tensor([[0, 5.31, 4.13, 30.97, 29.91]]).double()
    offset = tensor(1, 2, 2, 2, seed=3, spread=0.5).requires_grad_()
    boxes.requires_grad_()
    run = lambda x, b, o: ops.deform_roi_pool(x, b, o, 2, 0.25, 2)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, boxes, offset), fast_mode=True)
    each = tensor(1, 4, 2, 2, seed=3, spread=0.5).requires_grad_()
    run = lambda x, o: ops.deform_ps_roi_pool(x, boxes.detach(), o, 2, 0.25)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, each), fast_mode=True)


def released(x: Tensor, box: Tensor, offset: Tensor, bins: int, parts: int, scale: float, gamma: float) -> Tensor:
    """One box [5] of the operator released with deformable ConvNets, as loops; offset [2 * classes, parts, parts]."""
    _, channels, height, width = x.shape
    outputs, classes = channels // bins**2, offset.shape[0] // 2
    left, top = (float(c.round()) * scale - 0.5 for c in box[1:3])
    right, bottom = ((float(c.round()) + 1) * scale - 0.5 for c in box[3:])
    wide, high = max(right - left, 0.1), max(bottom - top, 0.1)
    y = x.new_zeros(outputs, bins, bins)
    for c in range(outputs):
        d = c // (outputs // classes)
        for i in range(bins):
            for j in range(bins):
                du, dv = (float(offset[2 * d + a, i * parts // bins, j * parts // bins]) * gamma for a in (0, 1))
                plane = x[int(box[0]), (c * bins + i) * bins + j]
                values = []
                for s in range(4):
                    for t in range(4):
                        v = top + high * ((i + s / 4) / bins + dv)
                        u = left + wide * ((j + t / 4) / bins + du)
                        if -0.5 <= v <= height - 0.5 and -0.5 <= u <= width - 0.5:
                            v, u = min(max(v, 0), height - 1), min(max(u, 0), width - 1)
                            q, p = min(int(v), height - 2), min(int(u), width - 2)
                            a, b = v - q, u - p
                            values.append(
                                (1 - a) * ((1 - b) * plane[q, p] + b * plane[q, p + 1])
                                + a * ((1 - b) * plane[q + 1, p] + b * plane[q + 1, p + 1])
                            )
                if values:
                    y[c, i, j] = sum(values) / len(values)
    return y


@pytest.mark.parametrize(("classes", "parts"), [(1, 2), (2, 2), (4, 1)])
def test_deform_ps_roi_pool_is_the_released_operator(classes: int, parts: int) -> None:
    x, boxes = tensor(2, 16, 9, 11), rois()[:8]
    offset = tensor(8, 2 * classes, parts, parts, seed=1)
    y = ops.deform_ps_roi_pool(x, boxes, offset, 2, 0.25)
    expected = [released(x, box, o, 2, parts, 0.25, 0.1) for box, o in zip(boxes, offset, strict=True)]
    torch.testing.assert_close(y, torch.stack(expected), rtol=0, atol=1e-10)


def test_deform_ps_roi_pool_with_fewer_groups_than_bins() -> None:
    """With one group of channels every bin reads them all; no offsets are offsets of zero."""
    x, boxes = tensor(2, 3, 9, 11), rois()
    y = ops.deform_ps_roi_pool(x, boxes, None, 4, 0.25, group_size=1)
    zeros = torch.zeros(len(boxes), 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ops.deform_ps_roi_pool(x, boxes, zeros, 4, 0.25, group_size=1), y, rtol=0, atol=1e-12)
    one = ops.deform_ps_roi_pool(x.repeat_interleave(16, 1), boxes, None, 4, 0.25)
    torch.testing.assert_close(one, y, rtol=0, atol=1e-12)


BAD: list[tuple[str, type[Exception], Any]] = [
    ("offset", ValueError, lambda o: o[1:]),
    ("offset", ValueError, lambda o: o[:, :1]),
    ("offset", ValueError, lambda o: o[..., :0]),
    ("offset", ValueError, lambda o: o[0]),
    ("offset", ValueError, lambda o: o / 0),
    ("offset", TypeError, lambda o: o.int()),
    ("offset", ValueError, lambda o: o.to("meta")),
]


@pytest.mark.parametrize(("name", "error", "change"), BAD)
@pytest.mark.parametrize("function", [ops.deform_roi_pool, ops.deform_ps_roi_pool])
def test_bad_offsets_raise(function: Any, name: str, error: type[Exception], change: Any) -> None:
    offset = torch.zeros(len(rois()), 2, 2, 2, dtype=torch.float64)
    with pytest.raises(error, match=f"^{name}: expected"):
        function(tensor(2, 4, 9, 11), rois(), change(offset), 2, 0.25)


def test_other_bad_input_raises() -> None:
    x, boxes = tensor(2, 12, 9, 11), rois()
    with pytest.raises(ValueError, match="^offset: expected .*a divisor of 3"):
        ops.deform_ps_roi_pool(x, boxes, torch.zeros(len(boxes), 4, 2, 2), 2)
    with pytest.raises(ValueError, match="^sampling_ratio: expected"):
        ops.deform_ps_roi_pool(x, boxes, None, 2, sampling_ratio=0)
    with pytest.raises(ValueError, match="^group_size: expected"):
        ops.deform_ps_roi_pool(x, boxes, None, 2, group_size=(2, 0))
    with pytest.raises(ValueError, match="^spatial_scale: expected"):
        ops.deform_ps_roi_pool(x, boxes, None, 2, spatial_scale=-1)
    with pytest.raises(ValueError, match="^rois: expected"):
        ops.deform_roi_pool(x, boxes[:, 1:], None, 2)
