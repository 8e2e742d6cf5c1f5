"""Where stacked deformable layers read, and moved bins, as pictures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.utils._python_dispatch import TorchDispatchMode

from regio.analysis import OffsetStatistics, Statistic, without_offsets
from regio.data import SHAPE_CLASSES, DetectionDataset, Shapes
from regio.regions import DeformableRoIPool, RoIAlign
from regio.regions.deformable import DeformablePositionSensitive
from regio.regions.position_sensitive import PositionSensitive
from regio.types import FeatureMap, Regions
from regio.visualize import offset_length_figure
from regio.visualize.explain import ReadBox, pictures, points_picture
from regio.visualize.sample_positions import moved_bins_figure
from regio.visualize.sampling_points import (
    PhotoPoints,
    UnitPoints,
    _farthest,
    photo_points,
    points_on_objects,
    sampling_points_figure,
    typical_photos,
)
from tests.test_analysis_layer_offsets import deformable_detector
from tests.test_visualize_weights import nothing_is_cut

PHOTO = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def lines(figure: Figure, panel: int) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata(), dtype=float) for line in figure.axes[panel].lines]


def test_points_are_in_pixels_of_the_photo() -> None:
    """A photo of 80 x 120 is scaled by 2. Without offsets, around the unit in row 4, column 8 of stride 8, whose centre
    is (68, 36) in the scaled photo, the points of three layers at strides 8, 4 and 4 are symmetric about what the
    strided one reads there: cell 2 * 8 of stride 4, whose centre is at 66 and 34 pixels of it."""
    detector = without_offsets(deformable_detector())
    found = photo_points(detector, PHOTO, "a.jpg", {"here": (34.9, 16.2)})
    (unit,) = found.units
    assert unit.title == "here" and unit.at == (34, 18) and unit.box is None
    assert found.layers == "first, strided, last"
    assert len(unit.points) == 729
    torch.testing.assert_close(unit.points.mean(0), torch.tensor([33.0, 17.0]).double())
    reach = (2 * 1 + 1 + 1) * 2  # cells of stride 4, which are two pixels of the photo
    assert unit.points.amin(0).tolist() == [33 - reach, 17 - reach]
    assert unit.points.amax(0).tolist() == [33 + reach, 17 + reach]


def test_places_beside_the_photo_are_refused() -> None:
    for place in ((120.0, 3.0), (3.0, -1.0)):
        with pytest.raises(ValueError, match="at: expected a place in the image of 120 x 80 pixels, got"):
            photo_points(deformable_detector(), PHOTO, "a.jpg", {"here": place})
    plain = deformable_detector()
    plain.backbone.body = torch.nn.Identity()
    plain.backbone.forward = lambda x: (FeatureMap(x[:, :1].expand(-1, 4, -1, -1), 1),)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="detector: expected deformable convolutions in its backbone, got none"):
        photo_points(plain, PHOTO, "a.jpg", {"here": (3.0, 3.0)})


def test_units_on_the_background_and_on_the_smallest_and_largest_object() -> None:
    """The left half is an object, of which the small one is a part: the background is in the middle of the rest."""
    boxes = torch.tensor([[10.0, 10, 20, 20], [0, 0, 60, 80], [0, 0, 30, 30]])
    found = points_on_objects(deformable_detector(), PHOTO, "a.jpg", boxes)
    assert [unit.title for unit in found.units] == ["background", "small object", "large object"]
    background, small, large = found.units
    assert background.box is None and small.box == (10, 10, 20, 20) and large.box == (0, 0, 60, 80)
    assert abs(background.at[0] - 90) <= 4 and 28 <= background.at[1] <= 52
    assert abs(small.at[0] - 15) <= 2 and abs(large.at[1] - 40) <= 2  # the centre of the cell
    by_area = points_on_objects(deformable_detector(), PHOTO, "a.jpg", boxes, torch.tensor([9.0, 8, 7]))
    assert by_area.units[1].box == (0, 0, 30, 30) and by_area.units[2].box == (10, 10, 20, 20)
    whole = points_on_objects(deformable_detector(), PHOTO, "a.jpg", torch.tensor([[0.0, 0, 120, 80]]))
    assert [unit.title for unit in whole.units] == ["object"]
    with pytest.raises(ValueError, match=r"boxes: expected at least one object in a.jpg, got none"):
        points_on_objects(deformable_detector(), PHOTO, "a.jpg", torch.zeros(0, 4))


def test_photos_with_few_objects_of_unlike_sizes_come_first() -> None:
    def with_areas(*all_areas: tuple[float, ...]) -> DetectionDataset:
        """Images with objects of these areas; those of 1 are crowds."""
        records = []
        for record, own in zip(Shapes(len(all_areas), seed=1).records, all_areas, strict=True):
            rows = np.resize(np.arange(len(record)), len(own))
            some = record.select(rows, record.labels[rows])
            records.append(replace(some, area=np.array(own, dtype=np.float64), crowd=np.array(own) == 1))
        return DetectionDataset(SHAPE_CLASSES, range(1, 7), records)

    unlike = with_areas((10, 50, 30), (10, 39), (10, 40), (), (9, 40, 1))
    assert typical_photos(unlike) == [2, 4, 0]
    assert typical_photos(unlike, 1) == [2]
    assert typical_photos(with_areas((), (10, 12), (10,), (1,))) == [2, 1]
    with pytest.raises(ValueError, match="dataset: expected objects, got none in 2 images"):
        typical_photos(with_areas((), (1,)))


def test_units_are_green_and_what_they_read_is_red() -> None:
    points = torch.tensor([[3.0, 4.0], [60.0, 20.0], [500.0, 20.0]]).double()
    first = UnitPoints("background", (50.0, 30.0), points)
    second = UnitPoints("large object", (20.0, 10.0), points[:1], (5.0, 6.0, 40.0, 50.0))
    figure = sampling_points_figure(
        [PhotoPoints(PHOTO, "a $.jpg", "x", [first, second]), PhotoPoints(PHOTO, "b.jpg", "x", [first])], "t", "c"
    )
    assert [axes.get_title("left") for axes in figure.axes] == [
        r"a \$.jpg: background", "large object", "b.jpg: background"
    ]  # fmt: skip
    assert [axes.get_title("right") for axes in figure.axes] == ["3 points", "1 points", "3 points"]
    read, unit = lines(figure, 0)
    assert read.tolist() == points.tolist() and unit.tolist() == [[50, 30]]
    red, green = (line.get_color() for line in figure.axes[0].lines)
    assert red == "#e8000b" and green == "#00c000"
    assert figure.axes[0].get_xlim() == (0, 120) and figure.axes[0].get_ylim() == (80, 0)
    (box,) = [p for p in figure.axes[1].patches if isinstance(p, Rectangle)]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (5, 6, 35, 44)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unit", "point that it reads"]
    assert nothing_is_cut(figure)
    with pytest.raises(ValueError, match="photos: expected at least one, got none"):
        sampling_points_figure([], "t")


def test_places_given_are_those_drawn_and_else_detections() -> None:
    detector = deformable_detector()
    figure = points_picture(detector, PHOTO, "a.jpg", [(5.0, 6.5), (100.0, 70.0)], "a.safetensors")
    assert [axes.get_title("left") for axes in figure.axes] == ["a.jpg: at 5,6.5", "at 100,70"]
    figure = points_picture(detector, PHOTO, "a.jpg", [], "a.safetensors")  # untrained, it finds much
    assert figure.axes[-1].get_title("left") in ("large object", "a.jpg: object")
    with pytest.raises(ValueError, match="--at: expected places x,y, since a.safetensors finds no boxes by itself"):
        points_picture(detector.without_proposals(), PHOTO, "a.jpg", [], "a.safetensors")


def test_the_place_on_the_background_needs_no_memory_for_each_box() -> None:
    """Of 100 boxes and 100,000 pixels a tensor of all pairs has 10 million numbers; none of a million is made."""
    corners = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([300.0, 150])
    boxes = torch.cat([corners, corners + 20], 1)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            several = made if isinstance(made, tuple | list) else [made]
            sizes.extend(each.numel() for each in several if isinstance(each, torch.Tensor))
            return made

    with Sizes():
        place = _farthest(boxes, (250, 400))
    assert max(sizes) == 250 * 400
    y, x = torch.meshgrid(torch.arange(250) + 0.5, torch.arange(400) + 0.5, indexing="ij")
    x1, y1, x2, y2 = (each[:, None, None] for each in boxes.unbind(1))
    outside = torch.stack([x1 - x, x - x2]).amax(0).clamp(min=0), torch.stack([y1 - y, y - y2]).amax(0).clamp(min=0)
    borders = torch.stack([x, 400 - x, y, 250 - y])
    distance = torch.cat([torch.hypot(*outside), borders]).amin(0)
    assert place is not None
    column, row = place
    assert float(distance[int(row), int(column)]) == pytest.approx(float(distance.max()), abs=1e-3)


MAP = FeatureMap(torch.zeros(1, 1, 10, 15), stride=8)


def test_moved_bins_by_hand() -> None:
    """A box of 40 x 20 pixels in 1 x 2 bins, of which the second moves by (1, 0.5) cells, 8 and 4 pixels."""
    shift = torch.tensor([[[0.0, 0.0], [1.0, 0.5]]])
    figure = moved_bins_figure(PHOTO, MAP, (10.0, 20.0, 50.0, 40.0), shift, "title", "caption")
    drawn = [
        (p.get_x(), p.get_y(), p.get_width(), p.get_height(), p.get_edgecolor()[:3])
        for p in figure.axes[0].patches if isinstance(p, Rectangle)
    ]  # fmt: skip
    yellow, red = (1.0, 212 / 255, 0.0), (232 / 255, 0.0, 11 / 255)
    assert drawn == [(10, 20, 40, 20, yellow), (10, 20, 20, 20, red), (38, 24, 20, 20, red)]
    assert figure.axes[0].get_title("right") == "moved by 0.56 cells in the mean, 1.12 at most"
    assert nothing_is_cut(figure)
    with pytest.raises(ValueError, match=r"shift: expected shape \[Kh, Kw, 2\], got \[1, 1, 2, 2\]"):
        moved_bins_figure(PHOTO, MAP, (10.0, 20.0, 50.0, 40.0), shift[None], "title")


def test_position_sensitive_pooling_has_its_bins_drawn() -> None:
    """Those of the range of channels that moves the most: of classes with offsets of their own, one."""
    torch.manual_seed(0)
    pool = DeformablePositionSensitive(PositionSensitive(RoIAlign(3), 3), 4, 6, classes=2)
    with torch.no_grad():
        pool.offset.bias[18:] = 2.0  # of the second class
    x = FeatureMap(torch.rand(1, 4, 10, 15), stride=8)
    found = pictures(ReadBox(PHOTO, (10.0, 20.0, 50.0, 40.0), x, pool, "a name", "a source"))
    assert set(found) == {"weights.png", "rounding.png", "bins.png"}
    texts = [text.get_text() for text in found["bins.png"].texts]
    assert texts == ["a name: 3 x 3 parts, moved", "range 2 of 2 of its channels, which moves the most; 15 x 10 cells "
                     "at stride 8; a source"]  # fmt: skip


def test_shifts_of_parts_are_what_moves_their_samples() -> None:
    torch.manual_seed(0)
    x = FeatureMap(torch.rand(1, 4, 10, 15), stride=8)
    r = Regions(torch.tensor([[40.0, 24, 72, 40], [44, 30, 70, 52]]), torch.zeros(2, dtype=torch.int64))
    pool = DeformableRoIPool(RoIAlign((3, 2)), 4)
    torch.nn.init.normal_(pool.offset.bias)
    moved, still = pool.moved_samples(x, r)
    expected = (moved.points - still.points).mean(3)
    shifts = pool.part_shifts(x, r)
    assert shifts.shape == (2, 1, 3, 2, 2)
    torch.testing.assert_close(shifts[:, 0], expected)
    assert RoIAlign(2).part_shifts(x, r) is None
    scores = DeformablePositionSensitive(PositionSensitive(RoIAlign(3), 3), 4, 6, classes=2)
    torch.nn.init.normal_(scores.offset.bias)
    zero = torch.zeros(2, 4, 3, 3)
    offsets = scores.offsets([x], r, torch.zeros_like(r.image))
    points = scores.samples(x, r, offsets).points - scores.samples(x, r, zero).points
    torch.testing.assert_close(scores.part_shifts(x, r).flatten(0, 1), points.mean(3), atol=1e-5, rtol=1e-5)


def test_lengths_are_lines_over_the_steps() -> None:
    def lengths(*means: float) -> OffsetStatistics:
        return OffsetStatistics({}, {f"layer.{i}": Statistic(3, mean, 0.1) for i, mean in enumerate(means)})

    series = {"a": {0: lengths(0, 0), 10: lengths(1, 2)}, "b": {5: lengths(3)}, "none": {0: lengths()}}
    figure = offset_length_figure(series)
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b"]
    assert [each.tolist() for each in lines(figure, 0)] == [[[0, 0], [10, 2]], [[0, 0], [10, 1]]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["layer.1", "layer.0"]
    assert lines(figure, 1)[0].tolist() == [[5, 3]]
    assert nothing_is_cut(figure)
    with pytest.raises(ValueError, match="series: expected offsets of at least one layer, got none"):
        offset_length_figure({"none": {0: lengths()}})
