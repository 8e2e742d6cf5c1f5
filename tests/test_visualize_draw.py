import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from regio.data import encode_mask
from regio.masks import EncodedMasks, PixelMasks
from regio.types import Detections, Targets
from regio.visualize import class_colour, comparison_sheet, contact_sheet, draw_detections, draw_targets
from regio.visualize.colours import ink_on
from regio.visualize.labels import Chip, chip_size, place_chips

NAMES = ["cat", "dog", "a class with a name that is far too long for any picture, whatever its size may be"]


def grey(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def detections(
    boxes: list[list[float]], labels: list[int], scores: list[float], masks: Tensor | None = None
) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores), None if masks is None else PixelMasks(masks),
    )  # fmt: skip


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_class_colours_are_distinct_stable_and_repeat() -> None:
    colours = [class_colour(label) for label in range(81)]
    assert len(set(colours)) == 81
    assert class_colour(1) == class_colour(81) == (255, 77, 77)
    first = np.array(colours[1:9])
    assert min(np.abs(a - b).sum() for i, a in enumerate(first) for b in first[:i]) > 60


@pytest.mark.parametrize("label", range(81))
def test_text_contrasts_with_every_class_colour(label: int) -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    plate = class_colour(label)
    dark, bright = sorted([luminance(plate), luminance(ink_on(plate))])
    assert bright / dark >= 4.5  # WCAG AA


def test_a_box_covers_its_half_open_pixels() -> None:
    """A box (100, 120, 300, 400) on a picture of 640 x 700: its outermost bars are pixels 100 and 299, 120 and 399."""
    picture = pixels(draw_detections(grey(700, 640), detections([[100, 120, 300, 400]], [2], [0.9]), NAMES))
    colour = np.array(class_colour(2))
    coloured = (picture == colour).all(axis=2)
    row, column = np.flatnonzero(coloured[300]), np.flatnonzero(coloured[:, 290])
    assert (row.min(), row.max(), column.min(), column.max()) == (100, 299, 120, 399)
    assert picture[300, 98].tolist() == picture[300, 200].tolist() == [100, 100, 100]
    assert picture.shape == (700, 640, 3)


def test_a_small_picture_is_enlarged_by_a_whole_factor() -> None:
    picture = draw_detections(grey(240, 320), detections([[10, 20, 60, 80]], [1], [0.9]), NAMES)
    assert picture.size == (640, 480)
    coloured = (pixels(picture) == class_colour(1)).all(axis=2)
    columns = np.flatnonzero(coloured[100])
    assert (columns.min(), columns.max()) == (20, 119)
    assert draw_detections(grey(1, 1), detections([], [], []), NAMES).size == (640, 640)
    assert draw_detections(grey(800, 1066), detections([], [], []), NAMES).size == (1066, 800)


def test_the_threshold_filters_and_the_best_is_in_front() -> None:
    boxes = [[100.0, 100, 300, 300]] * 2 + [[500.0, 500, 600, 600]]
    picture = pixels(draw_detections(grey(640, 640), detections(boxes, [1, 2, 3], [0.6, 0.9, 0.49]), NAMES))
    assert picture[200, 100].tolist() == list(class_colour(2))
    assert (picture[450:] == 100).all()


def test_the_image_is_not_changed_and_pil_is_the_same_as_a_tensor() -> None:
    image = torch.randint(0, 256, (3, 700, 650), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, found = image.clone(), detections([[10, 10, 200, 200]], [1], [0.9])
    picture = draw_detections(image, found, NAMES)
    assert torch.equal(image, before)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    assert np.array_equal(pixels(picture), pixels(draw_detections(pil, found, NAMES)))
    assert np.array_equal(pixels(picture)[400:], image.permute(1, 2, 0).numpy()[400:])


def test_masks_tint_their_pixels_and_have_a_rim() -> None:
    mask = torch.zeros(1, 640, 640, dtype=torch.bool)
    mask[0, 200:300, 200:300] = True
    picture = pixels(draw_detections(grey(640, 640), detections([[150, 150, 350, 350]], [1], [0.9], mask), NAMES))
    expected = np.round(100 + 0.4 * (np.array(class_colour(1)) - 100))
    assert picture[250, 250].tolist() == expected.tolist()
    assert picture[250, 200].tolist() == list(class_colour(1))
    assert picture[250, 199].tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match=r"masks: expected the size \[640, 640\] of the image, got \[20, 20\]"):
        draw_detections(grey(640, 640), detections([[0, 0, 9, 9]], [1], [0.9], mask[:, :20, :20]), NAMES)


@pytest.mark.parametrize("size", [(640, 700), (60, 100)])  # the second is drawn at seven times the size
def test_masks_are_drawn_alike_in_all_forms(size: tuple[int, int]) -> None:
    """Also at the border of the image, over each other, and without a pixel; None is no mask."""
    masks = torch.zeros(4, *size, dtype=torch.bool)
    masks[0, 10:40, :30] = True
    masks[1, 20:, 20:50] = True
    masks[2, 15:30, 15:70] = True
    boxes = torch.tensor([[0.0, 10, 30, 40], [20, 20, 50, 60], [15, 15, 70, 30], [0, 0, 5, 5]])
    targets = Targets(boxes, torch.tensor([1, 2, 3, 1]), masks=masks)
    expected = pixels(draw_targets(grey(*size), targets, NAMES))
    encoded = EncodedMasks([*map(encode_mask, masks[:3].numpy()), None])
    assert np.array_equal(pixels(draw_targets(grey(*size), replace(targets, masks=None), NAMES, encoded)), expected)
    polygons = EncodedMasks([[[0, 10, 30, 10, 30, 40, 0, 40]], *encoded.encodings[1:]])
    assert np.array_equal(pixels(draw_targets(grey(*size), targets, NAMES, polygons)), expected)
    assert not np.array_equal(pixels(draw_targets(grey(*size), replace(targets, masks=None), NAMES)), expected)


def test_crowds_and_difficult_objects_are_dashed() -> None:
    boxes = torch.tensor([[100.0, 100, 500, 500]])
    flag, no = torch.tensor([True]), torch.tensor([False])
    edges = []
    for crowd, difficult in ((no, no), (flag, no), (no, flag)):
        picture = pixels(draw_targets(grey(640, 640), Targets(boxes, torch.tensor([1]), crowd, difficult), NAMES))
        edges.append((picture[200:500, 499] == class_colour(1)).all(axis=1))
    assert edges[0].all()
    for dashed in edges[1:]:
        assert 0.4 < dashed.mean() < 0.6 and np.count_nonzero(np.diff(dashed)) > 10


def test_awkward_boxes_are_drawn_inside_the_picture() -> None:
    boxes = [[-50.0, -50, 700, 700], [10, 10, 10, 10], [638, 638, 640, 640], [900, 900, 950, 950], [300, 0, 300.2, 640]]
    picture = draw_detections(grey(640, 640), detections(boxes, [1, 2, 3, 1, 2], [0.9] * 5), NAMES)
    assert picture.size == (640, 640)
    assert (pixels(picture)[320, 0] == class_colour(1)).all()
    assert (pixels(picture)[320, 300] == class_colour(2)).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"image: expected uint8 \[3, H, W\], got float32 \[3, 4, 4\]"):
        draw_detections(torch.zeros(3, 4, 4), detections([], [], []), NAMES)
    with pytest.raises(ValueError, match=r"labels: expected 1 .. 3, one for each of class_names, got 4 .. 4"):
        draw_detections(grey(4, 4), detections([[0, 0, 1, 1]], [4], [0.9]), NAMES)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(40, 700), st.integers(40, 700),
    st.lists(
        st.tuples(st.integers(0, 600), st.integers(0, 600), st.integers(1, 300), st.integers(1, 300),
                  st.sampled_from(NAMES)),
        max_size=15,
    ),
)  # fmt: skip
def test_chips_stay_in_the_picture_and_can_be_read(
    width: int, height: int, boxes: list[tuple[int, int, int, int, str]]
) -> None:
    """No chip leaves the picture, none is more than a tenth under those before it, and the picture is not hidden."""
    chips = []
    for x, y, w, h, text in boxes:
        left, top = min(x, width - 1), min(y, height - 1)
        chips.append(Chip(text, (0, 0, 0), (left, top, min(left + w, width), min(top + h, height))))
    places = place_chips(chips, (width, height), 13)
    assert len(places) == len(chips) and (not chips or places[0] is not None)
    placed = [(chip, place) for chip, place in zip(chips, places, strict=True) if place is not None]
    areas = [(r - l) * (b - t) for _, (l, t, r, b) in placed]
    assert sum(areas[:-1]) <= width * height / 10
    for i, (chip, (left, top, right, bottom)) in enumerate(placed):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert right - left == min(chip_size(chip.text, 13)[0], width)
        hidden = sum(
            max(0, min(right, r) - max(left, l)) * max(0, min(bottom, b) - max(top, t))
            for _, (l, t, r, b) in placed[:i]
        )
        assert hidden <= 0.1 * (right - left) * (bottom - top)


def test_names_with_line_feeds_are_drawn_in_one_line() -> None:
    image, found = torch.zeros(3, 700, 700, dtype=torch.uint8), detections([[10, 10, 600, 600]], [1], [0.9])
    drawn = draw_detections(image, found, ["traffic light\r\n"])
    assert np.array_equal(pixels(drawn), pixels(draw_detections(image, found, ["traffic light"])))
    sheets = [contact_sheet([drawn], 1, [name]) for name in ("caf\nab.jpg", "caf ab.jpg")]
    assert np.array_equal(*map(pixels, sheets))


def test_a_picture_of_16_bits_keeps_its_range() -> None:
    grey = Image.fromarray(np.linspace(0, 65535, 700 * 650).reshape(700, 650).astype(np.uint16))
    drawn = pixels(draw_detections(grey, detections([], [], []), NAMES))
    assert drawn[0, 0].tolist() == [0] * 3 and drawn[-1, -1].tolist() == [255] * 3
    assert drawn.mean() == pytest.approx(127.5, abs=1)


def test_chips_of_one_spot_do_not_pile_up() -> None:
    box = (200, 200, 400, 400)
    places = place_chips([Chip("cat 0.90", (0, 0, 0), box)] * 4, (640, 640), 13)
    placed = [place for place in places if place is not None]
    assert placed[0][3] == 200 and placed[0][0] == 200  # the best: above, to the left
    assert len(placed) == 4
    for a, b in pairwise(sorted(placed)):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_of_a_hundred_boxes_the_best_stay_legible() -> None:
    """The best is drawn in full; one whose chip finds no place has a thin, pale outline, and the picture is seen."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(100, 2, generator=generator) * 500
    boxes = torch.cat([corners, corners + 50 + 89 * torch.rand(100, 2, generator=generator)], dim=1).round()
    scores = torch.linspace(0.09, 0.05, 100)
    found = Detections(boxes, torch.ones(100, dtype=torch.int64), scores)
    picture = pixels(draw_detections(grey(640, 640), found, NAMES, 0.0))
    colour = np.array(class_colour(1))
    x1, _, x2, y2 = boxes[0].int().tolist()
    bold = (picture == colour).all(axis=2)
    assert bold[y2 - 3 : y2, x1:x2].mean() > 0.9
    blended = np.abs(picture - np.round(100 + 180 / 255 * (colour - 100))).max(axis=2) <= 1
    assert blended.sum() > 1000
    assert (picture == 100).all(axis=2).mean() > 0.4


def test_sheets() -> None:
    pictures = [Image.new("RGB", size, (200, 0, 0)) for size in ((640, 480), (320, 640), (50, 50))]
    sheet = contact_sheet(pictures, 2, ["one", "two", "three " * 100], ["left", "right"], cell=200)
    assert sheet.width == 12 + 2 * 212
    red = (pixels(sheet) == (200, 0, 0)).all(axis=2)
    assert red.sum() == 200 * 150 + 100 * 200 + 200 * 200
    with pytest.raises(ValueError, match="captions: expected 3, got 1"):
        contact_sheet(pictures, 2, ["one"])
    with pytest.raises(ValueError, match="pictures: expected at least one"):
        contact_sheet([], 2)


def test_comparison_has_the_annotated_left_and_the_detected_right() -> None:
    targets = Targets(torch.tensor([[100.0, 100, 300, 300]]), torch.tensor([1]))
    found = detections([[100, 100, 300, 300]], [2], [0.9])
    sheet = pixels(comparison_sheet([grey(640, 640)], [targets], [found], NAMES, ["a.jpg"]))
    left, right = sheet[:, : sheet.shape[1] // 2], sheet[:, sheet.shape[1] // 2 :]
    for half, own, other in ((left, 1, 2), (right, 2, 1)):
        assert (half == class_colour(own)).all(axis=2).sum() > 1000
        assert not (half == class_colour(other)).all(axis=2).any()


def test_a_comparison_takes_one_image_after_the_other() -> None:
    """Of an iterator's images two are in memory, whatever their number."""
    alive: list[weakref.ref[Tensor]] = []

    def images() -> Iterator[Tensor]:
        for _ in range(6):
            gc.collect()
            assert sum(each() is not None for each in alive) <= 2
            image = grey(40, 40)
            alive.append(weakref.ref(image))
            yield image
            del image

    targets = Targets(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([1]))
    masks = [EncodedMasks([[[0, 0, 20, 0, 20, 20, 0, 20]]])] * 3 + [None] * 3
    found = detections([], [], [])
    gc.freeze()  # what other tests have left need not be looked through
    sheet = pixels(comparison_sheet(images(), [targets] * 6, [found] * 6, NAMES, masks=iter(masks)))
    gc.unfreeze()
    assert len(alive) == 6
    tint = np.round(grey(1, 1)[0, 0, 0].item() + 0.4 * (np.array(class_colour(1)) - grey(1, 1)[0, 0, 0].item()))
    rows = [(half == tint).all(axis=2).sum() for half in np.array_split(sheet, 6)]
    assert all(count > 1000 for count in rows[:3]) and all(count < 1000 for count in rows[3:])
