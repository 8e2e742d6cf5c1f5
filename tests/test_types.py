"""The four values: what they accept, and what they say of the rest."""

import pytest
import torch

from regio.export.graph import SizedMap
from regio.types import Detections, FeatureMap, Regions, Targets


def regions(boxes: list[list[float]], image: list[int]) -> Regions:
    return Regions(torch.tensor(boxes).reshape(-1, 4), torch.tensor(image, dtype=torch.int64))


def test_split_undoes_from_list() -> None:
    lists = [torch.rand(3, 4), torch.zeros(0, 4), torch.rand(2, 4)]
    r = Regions.from_list(lists)
    assert r.image.tolist() == [0, 0, 0, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(r.split(3), lists, strict=True))


def test_from_an_empty_list() -> None:
    with pytest.raises(ValueError, match=r"boxes: expected one \[R, 4\] tensor an image, got an empty list"):
        Regions.from_list([])


@pytest.mark.parametrize(
    ("boxes", "image", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), r"boxes: expected shape \[R, 4\], got \[3, 5\]"),
        (torch.zeros(4), torch.zeros(1, dtype=torch.int64), r"boxes: expected shape \[R, 4\], got \[4\]"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), r"image: expected shape \[3\].*got \[2\]"),
    ],
)
def test_shapes_of_regions(boxes: torch.Tensor, image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regions(boxes, image)


def test_dtypes_of_regions() -> None:
    with pytest.raises(TypeError, match="boxes: expected a floating point dtype, got torch.int64"):
        Regions(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(TypeError, match="image: expected dtype torch.int64, got torch.float32"):
        Regions(torch.zeros(1, 4), torch.zeros(1))
    with pytest.raises(TypeError, match="boxes: expected a tensor"):
        Regions([[0, 0, 1, 1]], torch.zeros(1, dtype=torch.int64))  # type: ignore[arg-type]


def test_boxes_of_no_size_and_outside_are_ordinary() -> None:
    x = FeatureMap(torch.zeros(2, 1, 4, 4), 16)
    regions([[5, 5, 5, 5], [-900, -900, -800, -800], [1e6, 0, 2e6, 1]], [0, 1, 1]).check(x)
    regions([], []).check(x)


@pytest.mark.parametrize(
    ("box", "image", "message"),
    [
        ([0.0, 0.0, float("nan"), 1.0], 0, "boxes: expected finite .* at row 1"),
        ([0.0, 0.0, float("inf"), 1.0], 0, "boxes: expected finite .* at row 1"),
        ([3.0, 0.0, 2.0, 1.0], 0, r"boxes: expected finite x1 <= x2 and y1 <= y2, got \[3.0, 0.0, 2.0, 1.0\] at row 1"),
        ([0.0, 0.0, 1.0, 1.0], 2, r"image: expected an index in \[0, 2\), got 2 at row 1"),
        ([0.0, 0.0, 1.0, 1.0], -1, r"image: expected an index in \[0, 2\), got -1 at row 1"),
    ],
)
def test_boxes_that_cannot_be_read(box: list[float], image: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regions([[0.0, 0.0, 1.0, 1.0], box], [0, image]).check(FeatureMap(torch.zeros(2, 1, 4, 4), 16))


def test_sides_beyond_the_largest_number_are_ordinary() -> None:
    """Boxes of float16 end at 65504; the width of this one does not."""
    boxes = torch.tensor([[-60000.0, 0.0, 60000.0, 1.0]], dtype=torch.float16)
    Regions(boxes, torch.tensor([0])).check(FeatureMap(torch.zeros(2, 1, 4, 4), 16))


def test_images_of_half_precision_boxes_are_counted_exactly() -> None:
    """bfloat16 has no 257 and rounds it to 256."""
    r = Regions(torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([257]))
    with pytest.raises(ValueError, match=r"image: expected an index in \[0, 257\), got 257 at row 0"):
        r.check(FeatureMap(torch.zeros(257, 1, 1, 1), 16))


def test_feature_maps() -> None:
    assert FeatureMap(torch.zeros(1, 2, 3, 4), 8).size == (3, 4)
    with pytest.raises(ValueError, match=r"data: expected shape \[N, C, H, W\], got \[2, 3, 4\]"):
        FeatureMap(torch.zeros(2, 3, 4), 8)
    with pytest.raises(TypeError, match="data: expected a floating point dtype, got torch.uint8"):
        FeatureMap(torch.zeros(1, 2, 3, 4, dtype=torch.uint8), 8)
    for stride in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="stride: expected a positive number"):
            FeatureMap(torch.zeros(1, 2, 3, 4), stride)


def test_flags_of_targets_default_to_false() -> None:
    targets = Targets(torch.zeros(2, 4), torch.tensor([1, 2]))
    assert targets.crowd.tolist() == [False, False] == targets.difficult.tolist()
    assert len(targets.to("cpu")) == 2
    assert Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).crowd.shape == (0,)


def test_columns_of_targets_and_detections() -> None:
    with pytest.raises(ValueError, match=r"labels: expected shape \[2\].*got \[1\]"):
        Targets(torch.zeros(2, 4), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"masks: expected shape \[1, H, W\], got \[2, 3, 3\]"):
        Targets(torch.zeros(1, 4), torch.tensor([1]), masks=torch.zeros(2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"scores: expected shape \[1\].*got \[2\]"):
        Detections(torch.zeros(1, 4), torch.tensor([1]), torch.zeros(2))


def test_extents_are_the_cells_that_an_image_covers() -> None:
    data = torch.zeros(3, 1, 6, 8)
    assert FeatureMap(data, 16).extents == [(6, 8)] * 3
    sized = FeatureMap(data, 16, ((96, 128), (81, 1), (80, 127)))
    assert sized.extents == [(6, 8), (6, 1), (5, 8)]
    image = torch.tensor([2, 0, 1, 2])
    assert FeatureMap(data, 16).extents_of(image).tolist() == [[6, 8]] * 4
    assert sized.extents_of(image).tolist() == [[5, 8], [6, 8], [6, 1], [5, 8]]
    table = torch.tensor([[96, 128], [81, 1], [80, 127]])
    assert SizedMap(data, 16, table=table).extents_of(image).tolist() == sized.extents_of(image).tolist()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((96, 128),), "sizes: expected 2, one an image, got 1"),
        (((96, 0), (1, 1)), r"sizes\[0\]: expected a positive .* got \(96, 0\)"),
    ],
)
def test_sizes_that_do_not_fit(sizes: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureMap(torch.zeros(2, 1, 6, 8), 16, sizes)


def test_an_image_ends_with_the_last_cell_of_its_map() -> None:
    """A backbone whose layers drop a border has fewer cells than the image."""
    x = FeatureMap(torch.zeros(2, 1, 6, 8), 16, ((112, 100), (50, 128)))
    assert x.image_sizes == ((112, 100), (50, 128))
    assert x.extents == [(6, 7), (4, 8)]
    assert FeatureMap(x.data, 16).image_sizes == ((96, 128),) * 2
