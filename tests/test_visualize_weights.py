"""Pictures of weights and samples: what is drawn is what was read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from regio.regions import RoIAlign, RoIPool
from regio.regions.sampling import SamplePoints
from regio.types import FeatureMap
from regio.visualize.sample_positions import offsets_figure, quantisation_figure
from regio.visualize.weights import parts_figure, terms_figure

BOX = (16.0, 16.0, 48.0, 40.0)
BLACK = torch.zeros(3, 60, 80, dtype=torch.uint8)
MAP = FeatureMap(torch.zeros(1, 2, 8, 10), stride=8)


def one_cell_each(parts: int) -> Tensor:
    """Weights [1, K, 8, 10]: part k has 0.5 at cell k, row-major, and 0.25 at the next."""
    weights = torch.zeros(1, parts, 80)
    weights[0, range(parts), range(parts)] = 0.5
    weights[0, range(parts), range(1, parts + 1)] = 0.25
    return weights.unflatten(2, (8, 10))


def drawn(figure: Figure) -> list[np.ndarray]:
    """The maps of cells that are drawn, in order."""
    return [np.asarray(axes.images[1].get_array()) for axes in figure.axes if len(axes.images) == 2]


def nothing_is_cut(figure: Figure) -> bool:
    """Whether all texts are inside the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = figure.bbox.size
    texts = [t for axes in figure.axes for t in (axes.title, axes._left_title, axes._right_title)]  # type: ignore[attr-defined]
    boxes = [t.get_window_extent(renderer) for t in (*figure.texts, *texts) if t.get_text()]
    return all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= width + 1 and b.y1 <= height + 1 for b in boxes)


def test_parts_are_in_the_middle_and_around_it_divided_by_their_maxima() -> None:
    """Of 7 x 7 parts, the ones around are 8, 12, 36 and 40: rows and columns 2 and 6."""
    figure = parts_figure(BLACK, one_cell_each(49), (7, 7), 8, BOX, "title", "caption")
    centre, *around = drawn(figure)
    expected = np.zeros(80)
    expected[:49], expected[49] = 1, 0.5
    np.testing.assert_array_equal(centre.ravel(), expected)
    for part, each in zip((8, 12, 36, 40), around, strict=True):
        assert each.ravel()[part] == 1 and each.ravel()[part + 1] == 0.5 and each.sum() == 1.5
    titles = [axes.get_title("left") for axes in figure.axes[:5]]
    assert titles == ["largest of 49 parts", *(f"row {i}, column {j}" for i in (2, 6) for j in (2, 6))]
    assert figure.axes[0].get_title("right") == "max 0.50"
    assert [text.get_text() for text in figure.texts] == ["title", "caption"]
    assert nothing_is_cut(figure)


def test_small_pictures_are_at_their_corner_and_as_high_as_the_middle_one() -> None:
    figure = parts_figure(BLACK, one_cell_each(4), (2, 2), 8, BOX, "title")
    centre, top_left, top_right, bottom_left, bottom_right = (axes.get_position() for axes in figure.axes[:5])
    assert top_left.x1 < centre.x0 < centre.x1 < top_right.x0
    assert bottom_left.y1 < top_left.y0 and bottom_right.y1 < top_right.y0
    assert centre.y1 == pytest.approx(top_left.y1) and centre.y0 == pytest.approx(bottom_right.y0)


def test_image_and_weights_are_blended_half_and_half() -> None:
    """On white, a cell without weight is half of white and half of black; on cell and image, pixels coincide."""
    white = torch.full((3, 64, 80), 255, dtype=torch.uint8)
    weights = torch.zeros(1, 1, 8, 10)
    weights[0, 0, 3, 4] = 0.25
    figure = parts_figure(white, weights, (1, 1), 8, (0.0, 0.0, 8.0, 8.0), "title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)

    def at(x: float, y: float) -> list[int]:
        column, row = axes.transData.transform((x, y))
        return pixels[pixels.shape[0] - 1 - int(row), int(column)].tolist()

    assert at(60, 20) == pytest.approx([127, 127, 129], abs=2)  # inferno starts at almost black
    assert at(36, 28) == pytest.approx([254, 255, 209], abs=2)  # and ends at (252, 255, 164)
    assert at(41, 28) == at(31, 28) == at(36, 33) == at(60, 20)


def test_channels_are_averaged_and_a_lone_part_stands_alone() -> None:
    weights = torch.zeros(4, 1, 8, 10)
    weights[:3, 0, 0, 0] = 1
    weights[3, 0, 1, 1] = 1
    figure = parts_figure(BLACK, weights, (1, 1), 8, BOX, "title")
    centre, around = drawn(figure)
    assert centre[0, 0] == 1 and centre[1, 1] == pytest.approx(1 / 3)
    assert np.array_equal(centre, around)
    assert figure.axes[0].get_title("right") == "max 0.75"


def test_cells_beside_the_image_are_shown() -> None:
    """8 rows of 8 pixels on an image of 60: the picture is 64 pixels high, its image 60."""
    axes = parts_figure(BLACK, one_cell_each(4), (2, 2), 8, BOX, "title").axes[0]
    assert axes.get_ylim() == (64, 0) and axes.get_xlim() == (0, 80)
    assert axes.images[0].get_extent() == [0, 80, 60, 0]
    assert axes.images[1].get_extent() == [0, 80, 64, 0]


def test_a_part_without_weight_is_drawn_as_such() -> None:
    centre, *_ = drawn(parts_figure(BLACK, torch.zeros(1, 4, 8, 10), (2, 2), 8, BOX, "title"))
    assert (centre == 0).all()


@pytest.mark.parametrize("size", [(30, 400), (400, 40)])
def test_pictures_of_long_images_keep_their_titles(size: tuple[int, int]) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    weights = torch.rand(1, 49, size[0] // 8 + 1, size[1] // 8 + 1)
    assert nothing_is_cut(parts_figure(image, weights, (7, 7), 8, (0.0, 0.0, 20.0, 20.0), "a title of some length"))


def test_titles_with_dollar_signs_are_shown_as_they_are(tmp_path: Path) -> None:
    figure = parts_figure(BLACK, torch.zeros(1, 4, 8, 10), (2, 2), 8, BOX, "price_$5_$10.jpg")
    figure.savefig(tmp_path / "a.png")
    assert figure.texts[0].get_text() == r"price_\$5_\$10.jpg"


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights: expected shape \[1 or C, 49, H, W\], got \[1, 4, 8, 10\]"):
        parts_figure(BLACK, one_cell_each(4), (7, 7), 8, BOX, "title")
    with pytest.raises(ValueError, match=r"image: expected uint8 \[3, h, w\], got torch.float32"):
        parts_figure(BLACK.float(), one_cell_each(4), (2, 2), 8, BOX, "title")
    with pytest.raises(ValueError, match="weights: expected at least one, got none"):
        terms_figure(BLACK, {}, 8, BOX, "title")


def test_terms_are_side_by_side_under_their_names() -> None:
    one, two = one_cell_each(2), one_cell_each(4).repeat(3, 1, 1, 1)
    figure = terms_figure(BLACK, {"geometry alone": one, "both": two}, 8, BOX, "title", "caption")
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["geometry alone", "both"]
    first, second = drawn(figure)
    assert first.sum() == 2.5 and second.sum() == 4.5
    left, right = (axes.get_position() for axes in figure.axes[:2])
    assert left.x1 < right.x0 and left.width == pytest.approx(right.width)
    assert nothing_is_cut(figure)


def rectangles(figure: Figure, panel: int) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of what is drawn on a panel, but for the bins' fillings."""
    patches = [p for p in figure.axes[panel].patches if isinstance(p, Rectangle) and not p.get_fill()]
    return [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in patches]


def test_rounding_by_hand() -> None:
    """Box (10, 21)-(34, 45) at stride 8 is (1.25, 2.6)-(4.25, 5.6) cells: cells 1 .. 4 and 3 .. 6, both in two bins."""
    box = (10.0, 21.0, 34.0, 45.0)
    figure = quantisation_figure(BLACK, MAP, box, RoIPool(2), RoIAlign(2, samples=1), "title", "caption")
    drawn = rectangles(figure, 0)
    assert drawn[:4] == [(8, 24, 16, 16), (24, 24, 16, 16), (8, 40, 16, 16), (24, 40, 16, 16)]
    assert drawn[4:] == [(8, 24, 32, 32), (10, 21, 24, 24)]
    assert figure.axes[0].get_title("right") == "4 x 4 cells after rounding"
    assert rectangles(figure, 1) == [(10, 21, 24, 24)]
    dots = figure.axes[1].lines[-1]
    x, y = (np.asarray(values, dtype=float) for values in (dots.get_xdata(), dots.get_ydata()))
    np.testing.assert_allclose(sorted(zip(x, y, strict=True)), [(16, 27), (16, 39), (28, 27), (28, 39)], atol=1e-5)
    assert figure.axes[1].get_title("right") == "3.0 x 3.0 cells, 4 samples"
    assert nothing_is_cut(figure)


def test_rounding_at_the_border_of_the_map() -> None:
    """The second corner lies on cell 10, beyond a map of 10: the bins end with the map, the picture does not."""
    figure = quantisation_figure(BLACK, MAP, (60.0, 0.0, 80.0, 30.0), RoIPool(2), RoIAlign(2), "title")
    assert rectangles(figure, 0)[-2:] == [(64, 0, 16, 40), (60, 0, 20, 30)]
    assert figure.axes[0].get_xlim()[1] > 80


def samples(points: Tensor) -> SamplePoints:
    """Samples with weight 1 / S; points: [Kh, Kw, S, 2] in cells."""
    return SamplePoints(points[None], torch.full((1, *points.shape[:3]), 1 / points.shape[2]))


def test_offsets_by_hand() -> None:
    """Two parts with one sample each, at (1, 1) and (3, 1) cells. The second moves by (3, 4) cells: an arrow from
    (28, 12) to (52, 44) pixels, 5 cells long."""
    before = torch.tensor([[[[1.0, 1.0]], [[3.0, 1.0]]]])
    after = before + torch.tensor([[[[0.0, 0.0]], [[3.0, 4.0]]]])
    figure = offsets_figure(BLACK, MAP, (8.0, 8.0, 32.0, 16.0), samples(after), samples(before), "title", "caption")
    (axes,) = figure.axes
    (arrow,) = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    assert arrow._posA_posB == [(28, 12), (52, 44)]  # type: ignore[attr-defined]
    still, moved = (list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines)
    assert still == [(12, 12), (28, 12)] and moved == [(12, 12), (52, 44)]
    assert axes.get_title("right") == "moved by 2.50 cells in the mean, 5.00 at most"
    assert axes.get_xlim()[0] < 8 and axes.get_ylim()[0] > 44
    assert nothing_is_cut(figure)


def test_samples_that_read_nothing_are_not_drawn() -> None:
    points = torch.tensor([[[[1.0, 1.0], [900.0, 900.0]]]])
    unread = SamplePoints(points[None], torch.tensor([[[[1.0, 0.0]]]]))
    axes = offsets_figure(BLACK, MAP, BOX, unread, unread, "title").axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [1, 1]  # type: ignore[arg-type]
    assert axes.get_xlim()[1] < 100
    assert axes.get_title("right") == "moved by 0.00 cells in the mean, 0.00 at most"


def test_offsets_of_other_parts_are_refused() -> None:
    one, two = samples(torch.zeros(1, 1, 4, 2)), samples(torch.zeros(1, 2, 4, 2))
    with pytest.raises(ValueError, match="moved, unmoved: expected weights .* with the same parts"):
        offsets_figure(BLACK, MAP, BOX, one, two, "title")
