"""Masks on grids, on pixels, and from one to the other."""

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from regio.data import encode_mask
from regio.evaluate import detections_to_coco
from regio.masks import EncodedMasks, GridMasks, PasteAtCentres, PasteRounded, PixelMasks, cover
from regio.types import Detections

SIZE = (120, 150)


def some_boxes(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Boxes in, across and outside an image of `SIZE`."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g, dtype=torch.float64) * 160 - 20
    return torch.cat([corner, corner + torch.rand(count, 2, generator=g, dtype=torch.float64) * 90 + 0.5], 1).to(dtype)


def test_rounded_pasting_is_torchvisions() -> None:
    g = torch.Generator().manual_seed(1)
    grid = torch.rand(40, 28, 28, generator=g, dtype=torch.float64)
    odd = torch.tensor([[-20.0, -10, 300, 200], [30, 30, 30.2, 30.4]], dtype=torch.float64)
    boxes = torch.cat([some_boxes(38), odd])
    on = (boxes[:, 2:] > 2).all(1) & (boxes[:, 0] < SIZE[1] - 2) & (boxes[:, 1] < SIZE[0] - 2)
    grid, boxes = grid[on], boxes[on]  # torchvision fails on others
    expected = paste_masks_in_image(grid[:, None], boxes, SIZE)[:, 0]
    for one, box, reference in zip(grid, boxes, expected, strict=True):
        ours = torch.zeros_like(reference)
        window, values = PasteRounded()(one, box, SIZE)
        ours[window] = values
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    assert expected.gt(0).flatten(1).any(1).sum() > 20


def test_pasting_at_centres_is_grid_sample_on_every_pixel() -> None:
    """As detectron2 does it on a GPU: all pixels at once."""
    g = torch.Generator().manual_seed(1)
    for grid, box in zip(torch.rand(20, 14, 14, generator=g, dtype=torch.float64), some_boxes(20), strict=True):
        y, x = (torch.arange(n, dtype=torch.float64) + 0.5 for n in SIZE)
        u, v = (x - box[0]) / (box[2] - box[0]) * 2 - 1, (y - box[1]) / (box[3] - box[1]) * 2 - 1
        where = torch.stack([u[None].expand(SIZE), v[:, None].expand(SIZE)], -1)
        expected = F.grid_sample(grid[None, None], where[None], align_corners=False)[0, 0]
        ours = torch.zeros_like(expected)
        window, values = PasteAtCentres()(grid, box, SIZE)
        ours[window] = values
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_a_grid_of_pixels_pastes_as_itself() -> None:
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    box = torch.tensor([[20.0, 30, 32, 42]])
    pasted = GridMasks(mask[None].float()).paste(box, SIZE)
    assert torch.equal(pasted[0, 30:42, 20:32], mask)
    assert int(pasted.sum()) == int(mask.sum())


@pytest.mark.parametrize("pasting", [PasteAtCentres(), PasteRounded()])
def test_boxes_outside_and_empty_ones(pasting: PasteAtCentres | PasteRounded) -> None:
    boxes = torch.tensor([[500.0, 500, 600, 600], [-90, -90, -40, -40], [10, 10, 10, 10], [-10, -10, 400, 400]])
    pasted = GridMasks(torch.ones(4, 28, 28), pasting).paste(boxes, SIZE)
    assert not pasted[:2].any()
    assert int(pasted[2].sum()) <= 1
    assert pasted[3].all()
    assert GridMasks(torch.ones(0, 28, 28), pasting).paste(boxes[:0], SIZE).shape == (0, *SIZE)


def test_all_forms_are_the_same_masks() -> None:
    boxes = some_boxes(8, dtype=torch.float32)
    grid = GridMasks(torch.rand(8, 28, 28, generator=torch.Generator().manual_seed(0)))
    pasted = grid.paste(boxes, SIZE)
    assert pasted.any()
    pixels, encoded = PixelMasks(pasted), EncodedMasks([encode_mask(mask.numpy()) for mask in pasted])
    rows = torch.tensor([5, 2])
    for form in (pixels, encoded):
        assert torch.equal(form.paste(boxes, SIZE), pasted)
        assert torch.equal(form[rows].paste(boxes[rows], SIZE), pasted[rows])
        assert torch.equal(form[torch.arange(8) == 3].paste(boxes[3:4], SIZE), pasted[3:4])
    assert torch.equal(grid[rows].paste(boxes[rows], SIZE), pasted[rows])
    found = [
        detections_to_coco(Detections(boxes, torch.ones(8, dtype=torch.int64), torch.ones(8), form), 7, [3], SIZE)
        for form in (grid, pixels, encoded)
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][2]["segmentation"] == encoded.encodings[2]


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"values: expected shape \[D, M, M\], got \[2, 3, 4\]"):
        GridMasks(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"values: expected \[D, H, W\] bool"):
        PixelMasks(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"masks: expected the size \[9, 9\] of the image, got \[3, 4\]"):
        PixelMasks(torch.zeros(1, 3, 4) > 0).paste(torch.zeros(1, 4), (9, 9))
    with pytest.raises(ValueError, match="masks: expected 1, one a box, got 2"):
        Detections(torch.zeros(1, 4), torch.tensor([1]), torch.ones(1), GridMasks(torch.zeros(2, 4, 4)))
    masks = GridMasks(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"size: expected the \(height, width\) of the image"):
        detections_to_coco(Detections(torch.zeros(1, 4), torch.tensor([1]), torch.ones(1), masks), 1, [1])


@pytest.mark.slow
def test_a_hundred_masks_on_a_large_photo_need_one_photo() -> None:
    """12 million pixels: as pixels the masks would be 1.2 GB."""
    boxes = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) * 500
    boxes[:, 2:] += 600
    boxes[0] = torch.tensor([0.0, 0, 4000, 3000])
    found = Detections(boxes, torch.ones(100, dtype=torch.int64), torch.ones(100), GridMasks(torch.rand(100, 28, 28)))
    largest = max(values.numel() for _, values in found.masks.windows(boxes, (3000, 4000)))  # type: ignore[union-attr]
    assert largest == 12_000_000
    tracemalloc.start()
    rows = detections_to_coco(found, 1, [1], (3000, 4000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 100
    assert peak < 150e6


def test_cover_is_average_pooling_on_whole_pixels() -> None:
    masks = torch.rand(2, 40, 60, generator=torch.Generator().manual_seed(0)) > 0.5
    boxes = torch.tensor([[0.0, 0, 28, 28], [2, 4, 58, 32]], dtype=torch.float64)
    expected = [F.avg_pool2d(masks[:1, :28, :28].double(), 2), F.avg_pool2d(masks[1:, 4:32, 2:58].double(), (2, 4))]
    torch.testing.assert_close(cover(masks, boxes, 14), torch.cat(expected), rtol=0, atol=1e-13)
    torch.testing.assert_close(cover(masks, boxes.float(), 14), torch.cat(expected).float(), rtol=0, atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_cover_is_the_sum_over_pixels_of_what_they_share_with_a_cell(seed: int, cells: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, 9, 11, generator=g) > 0.4
    corner = torch.rand(2, generator=g, dtype=torch.float64) * 14 - 3
    box = torch.cat([corner, corner + torch.rand(2, generator=g, dtype=torch.float64) * 9])
    got = cover(mask, box[None], cells)[0]
    width, height = ((box[2:] - box[:2]) / cells).tolist()
    for i in range(cells):
        for j in range(cells):
            x, y = float(box[0]) + j * width, float(box[1]) + i * height
            shared = sum(
                max(0.0, min(x + width, u + 1) - max(x, u)) * max(0.0, min(y + height, v + 1) - max(y, v))
                for v in range(9)
                for u in range(11)
                if mask[0, v, u]
            )
            assert float(got[i, j]) == pytest.approx(shared / (width * height), abs=1e-9)


def test_cover_of_nothing() -> None:
    masks = torch.ones(3, 9, 9, dtype=torch.bool)
    boxes = torch.tensor([[20.0, 20, 30, 30], [-9, -9, -1, -1], [4, 4, 4, 8]])
    assert not cover(masks, boxes, 7).any()
    assert cover(masks[:0], boxes[:0], 7).shape == (0, 7, 7)
    half = cover(masks[:1], torch.tensor([[4.5, 0, 13.5, 9]]), 2)[0]
    torch.testing.assert_close(half, torch.tensor([[1.0, 0], [1, 0]]))
