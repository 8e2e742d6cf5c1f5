"""Selective search: numbers by hand, laws, and its recall beside OpenCV's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from regio.boxes import area, iou
from regio.data import open_dataset
from regio.kernels.cpu import hierarchical_grouping as kernels
from regio.proposals import SelectiveSearch
from regio.proposals.selective_search import (
    COLOUR_BINS,
    TEXTURE_BINS,
    Segmentation,
    Texture,
    filtered,
    gaussian,
    to_colour_space,
)

ALL = np.ones(4, dtype=bool)  # colour, texture, size, fill


def only(letter: str) -> NDArray[np.bool_]:
    return np.array([each == letter for each in "CTSF"])


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth blobs of colour, which have segments of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(height // 12, 1), max(width // 12, 1), generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (255 * (image + 0.05 * torch.rand(3, height, width, generator=generator)).clamp(0, 1)).to(torch.uint8)


# Four regions of an image of 4 x 6 pixels. C lies in a corner of A's box, B and D are columns:
#   A A A A B D
#   A A A A B D
#   C C A A B D
#   C C A A B D
LABELS = np.array([[0, 0, 0, 0, 1, 3]] * 2 + [[2, 2, 0, 0, 1, 3]] * 2, dtype=np.int32)
# Colours of one channel in four bins, as counts: A 6 2 2 2, B all in the first, C all in the last, D 2 2 0 0.
COLOUR = np.array([[6, 2, 2, 2], [4, 0, 0, 0], [0, 0, 0, 4], [2, 2, 0, 0]], dtype=np.float32)


def by_hand() -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Sizes, boxes and colours, with room for three merges, and the pairs that touch."""
    size, box = np.zeros(8, np.int32), np.zeros((8, 4), np.int32)
    kernels.measure(LABELS, size, box)
    pairs = np.empty(4 * LABELS.size, np.int64)
    pairs = np.unique(pairs[: kernels.neighbours(LABELS, pairs)])
    return size, box, np.concatenate([COLOUR, np.zeros((4, 4), np.float32)]), pairs


def test_regions_by_hand() -> None:
    size, box, _, pairs = by_hand()
    assert size[:4].tolist() == [12, 4, 4, 4]
    assert box[:4].tolist() == [[0, 0, 4, 4], [4, 0, 5, 4], [0, 2, 2, 4], [5, 0, 6, 4]]
    assert [divmod(pair, 4) for pair in pairs.tolist()] == [(0, 1), (0, 2), (1, 3)]


@pytest.mark.parametrize(
    ("a", "b", "letter", "expected"),
    [
        (0, 1, "C", 0.5),  # min(6/12, 1)
        (0, 2, "C", 2 / 12),
        (1, 3, "C", 0.5),
        (1, 2, "C", 0.0),
        (0, 1, "S", 1 - 16 / 24),
        (1, 3, "S", 1 - 8 / 24),
        (0, 1, "F", 1 - (20 - 16) / 24),  # the box around both is 5 x 4
        (0, 2, "F", 1.0),  # C fills A's box
        (1, 3, "F", 1.0),
        (2, 3, "F", 1 - (24 - 8) / 24),  # the box around both has y1 = 0, since D is that high
    ],
)
def test_similarities_by_hand(a: int, b: int, letter: str, expected: float) -> None:
    """Equations 1, 4 and 5 of the paper."""
    size, box, colour, _ = by_hand()
    found = kernels.similarity(a, b, size, box, colour, colour, 1, only(letter), 24)
    assert found == pytest.approx(expected, abs=1e-6)
    assert kernels.similarity(b, a, size, box, colour, colour, 1, only(letter), 24) == found


def test_texture_is_measured_as_colour_but_counts_eight_times() -> None:
    size, box, colour, _ = by_hand()
    texture = np.tile(colour, (1, 8))
    for a, b in ((0, 1), (0, 2), (1, 3)):
        one = kernels.similarity(a, b, size, box, colour, texture, 1, only("C"), 24)
        assert kernels.similarity(a, b, size, box, colour, texture, 1, only("T"), 24) == pytest.approx(one, abs=1e-6)


def test_similarities_are_summed() -> None:
    size, box, colour, _ = by_hand()
    texture = np.tile(colour, (1, 8))
    parts = [kernels.similarity(0, 1, size, box, colour, texture, 1, only(each), 24) for each in "CTSF"]
    assert kernels.similarity(0, 1, size, box, colour, texture, 1, ALL, 24) == pytest.approx(sum(parts))


def test_merges_by_hand() -> None:
    """Colour, size and fill: A B 0.5 + 8/24 + 20/24 = 1.67, A C 2/12 + 8/24 + 1 = 1.5, B D 0.5 + 16/24 + 1 = 2.17. So B
    and D merge to E (8 pixels, colours 6 2 0 0 of 8). Then A E is 0.5 + 2/12 + 4/24 + 1 = 1.83 and goes before A C."""
    size, box, colour, pairs = by_hand()
    merged = np.empty((4, 2), np.int32)
    use = np.array([True, False, True, True])
    count = kernels.group(4, pairs, size, box, colour, colour, 1, use, merged)
    assert count == 3 and merged[:3].tolist() == [[1, 3], [0, 4], [2, 5]]
    assert size[4:7].tolist() == [8, 20, 24]
    assert box[4:7].tolist() == [[4, 0, 6, 4], [0, 0, 6, 4], [0, 0, 6, 4]]
    assert colour[4:7].tolist() == [[6, 2, 0, 0], [12, 4, 2, 2], [12, 4, 2, 6]]


def test_equal_similarities_merge_in_the_order_of_numbers() -> None:
    """Four equal columns: by size alone, 0 1 go first, then 2 3."""
    labels = np.repeat(np.arange(4, dtype=np.int32)[None], 2, axis=0)
    size, box = np.zeros(8, np.int32), np.zeros((8, 4), np.int32)
    kernels.measure(labels, size, box)
    pairs, merged = np.array([1, 6, 11]), np.empty((4, 2), np.int32)
    none = np.zeros((8, 1), np.float32)
    assert kernels.group(4, pairs, size, box, none, none, 1, only("S"), merged) == 3
    assert merged[:3].tolist() == [[0, 1], [2, 3], [4, 5]]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 40), width=st.integers(1, 40), colour=st.sampled_from("hi"))
def test_a_merged_region_has_the_histograms_of_its_pixels(seed: int, height: int, width: int, colour: str) -> None:
    """And its size and its box: those that merging keeps up are those of the labels renamed."""
    channels = to_colour_space(noise(height, width, seed).permute(1, 2, 0).contiguous().numpy(), colour)
    labels, regions = Segmentation(channels, 0.8).segments(10.0, 5)
    size, box = np.zeros(2 * regions, np.int32), np.zeros((2 * regions, 4), np.int32)
    kernels.measure(labels, size, box)
    pairs = np.empty(4 * labels.size, np.int64)
    pairs = np.unique(pairs[: kernels.neighbours(labels, pairs)])
    histogram = np.zeros((2 * regions, COLOUR_BINS), np.float32)
    kernels.colour_counts(channels, labels, COLOUR_BINS, histogram)
    texture = Texture(channels)
    textures = texture.counts(labels, 2 * regions)
    assert (histogram[:regions].sum(1) == size[:regions]).all()
    assert (textures[:regions].sum(1) == 8 * size[:regions]).all()
    merged = np.empty((regions, 2), np.int32)
    merges = kernels.group(regions, pairs, size, box, histogram, textures, 1, ALL, merged)
    assert merges == regions - 1
    for i in range(merges):
        labels = np.where(np.isin(labels, merged[i]), np.int32(regions + i), labels)
        own = np.where(labels == regions + i, 0, 1).astype(np.int32)  # that region and the rest
        fresh, fresh_box = np.zeros(2, np.int32), np.zeros((2, 4), np.int32)
        kernels.measure(own, fresh, fresh_box)
        counts = np.zeros((2, COLOUR_BINS), np.float32)
        kernels.colour_counts(channels, own, COLOUR_BINS, counts)
        assert fresh[0] == size[regions + i] and (fresh_box[0] == box[regions + i]).all()
        assert (counts[0] == histogram[regions + i]).all()
        assert (texture.counts(own, 2)[0] == textures[regions + i]).all()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000), height=st.integers(1, 70), width=st.integers(1, 70), scaled=st.sampled_from([None, 50])
)
def test_boxes_are_inside_sorted_distinct_and_the_same_again(
    seed: int, height: int, width: int, scaled: int | None
) -> None:
    image = noise(height, width, seed)
    method = SelectiveSearch.fast(width=scaled, min_side=3.0, k=(10.0, 30.0), seed=seed)
    boxes, scores = method(image)
    assert boxes.dtype == scores.dtype == torch.float32 and boxes.shape == (len(scores), 4)
    assert bool((boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([width, height])).all())
    assert bool((boxes[:, 2:] > boxes[:, :2]).all()) and len(boxes.unique(dim=0)) == len(boxes)
    assert bool((scores[1:] <= scores[:-1]).all()) and bool((scores <= 0).all())
    again = method(image.contiguous(memory_format=torch.contiguous_format).clone())
    assert torch.equal(again[0], boxes) and torch.equal(again[1], scores)


def test_the_number_of_boxes() -> None:
    """R segments make 2 R - 1 regions in each hierarchy; without a filter each distinct one of their boxes is there."""
    image = noise(60, 80)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    method = SelectiveSearch(width=None, min_side=0.0, k=(20.0,), colours=("hsv",), similarities=("CTSF", "F"))
    _, regions = Segmentation(to_colour_space(pixels, "hsv"), 0.8).segments(20.0, 20)
    hierarchies = list(method.hierarchies(pixels))
    assert regions > 10 and [len(each) for each in hierarchies] == [2 * regions - 1] * 2
    boxes, _ = method(image)
    every = {tuple(box) for each in hierarchies for box in each.tolist()}
    assert {tuple(box) for box in boxes.int().tolist()} == every and len(boxes) == len(every)
    # The last of each hierarchy is the whole image, of rank 1; the smallest regions are towards the end.
    assert (0, 0, 80, 60) in every
    assert float(area(boxes[: len(boxes) // 4]).mean()) > 2 * float(area(boxes[-len(boxes) // 4 :]).mean())
    other = SelectiveSearch(width=None, min_side=0.0, k=(20.0,), colours=("hsv",), similarities=("CTSF", "F"), seed=1)(
        image
    )[0]
    assert not torch.equal(other, boxes) and {tuple(box) for box in other.int().tolist()} == every


def test_the_smallest_side() -> None:
    image = noise(60, 80)
    boxes = SelectiveSearch.fast(width=160, min_side=30.0, k=(20.0,))(image)[0]
    assert len(boxes) > 5
    assert float((boxes[:, 2:] - boxes[:, :2]).min()) == pytest.approx(15.0, abs=1.0)  # the image is enlarged twice


def test_an_image_flatter_than_the_smallest_side_has_boxes() -> None:
    """As high as the image."""
    boxes = SelectiveSearch.fast()(noise(40, 1600))[0]  # scaled to 500 x 12
    assert boxes.tolist().count([0.0, 0.0, 1600.0, 40.0]) == 1
    assert float((boxes[:, 3] - boxes[:, 1]).min()) == 40.0


def test_one_colour_is_one_box_whatever_its_size() -> None:
    flat = torch.full((3, 50, 60), 90, dtype=torch.uint8)
    boxes, scores = SelectiveSearch.fast()(flat)
    assert boxes.tolist() == [[0, 0, 60, 50]] and len(scores) == 1
    boxes, scores = SelectiveSearch.fast(width=None)(flat[:, :10, :10])
    assert boxes.tolist() == [[0, 0, 10, 10]] and len(scores) == 1
    assert SelectiveSearch.quality(width=None, min_side=0.0)(flat[:, :1, :1])[0].tolist() == [[0, 0, 1, 1]]


def test_very_high_images_are_not_enlarged_to_any_size() -> None:
    image = noise(2000, 4)
    boxes, _ = SelectiveSearch.fast(k=(50.0,), colours=("i",))(image)
    scaled = SelectiveSearch.fast().scaled(image.permute(1, 2, 0).contiguous().numpy())
    assert scaled.shape[0] * scaled.shape[1] == pytest.approx(4 * 500 * 500, rel=0.1)
    assert len(boxes) and float(boxes[:, 3].max()) <= 2000
    for width in (499, 500, 501):  # also at the width that it would be scaled to
        height, _, _ = SelectiveSearch.fast().scaled(np.zeros((5000, width, 3), np.uint8)).shape
        assert height == pytest.approx(3162, rel=0.01)  # the root of a million times 10


@pytest.mark.slow
def test_the_modes() -> None:
    fast, quality = SelectiveSearch.fast(), SelectiveSearch.quality()
    hierarchies = [len(m.colours) * len(m.similarities) * len(m.k) for m in (fast, quality)]
    assert hierarchies == [8, 80]
    assert (fast.colours, fast.similarities, fast.k) == (("hsv", "lab"), ("CTSF", "TSF"), (50.0, 100.0))
    assert (fast.sigma, fast.width, fast.min_side) == (quality.sigma, quality.width, quality.min_side) == (0.8, 500, 20)
    image = noise(100, 120)
    few, many = (method(image)[0] for method in (fast, quality))
    assert len(many) > 2 * len(few)
    assert SelectiveSearch.quality(seed=3, k=(50.0,)).k == (50.0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colours": ("rgb",)}, "colours: expected some of hsv, lab, rgi, h, i, got 'rgb'"),
        ({"similarities": ("CC",)}, "similarities: expected letters of CTSF, each once, got 'CC'"),
        ({"similarities": ("",)}, "similarities: expected letters of CTSF, each once, got ''"),
        ({"k": ()}, "k: expected at least one, got none"),
        ({"k": (0.0,)}, r"k: expected positive numbers, got \[0.0\]"),
        ({"sigma": -1.0}, r"sigma: expected positive numbers, got \[-1.0\]"),
        ({"width": 0}, "width: expected at least 1 pixel, got 0"),
        ({"min_side": float("nan")}, "min_side: expected pixels, got nan"),
    ],
)
def test_settings_that_mean_nothing(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveSearch(**arguments)  # type: ignore[arg-type]


def test_what_is_no_image() -> None:
    method = SelectiveSearch.fast()
    with pytest.raises(TypeError, match=r"image: expected dtype torch.uint8, got torch.float32"):
        method(torch.rand(3, 10, 10))
    for shape in ((10, 10, 3), (1, 10, 10), (3, 0, 10), (2, 3, 10, 10)):
        with pytest.raises(ValueError, match=r"image: expected shape \[3, H, W\], got"):
            method(torch.zeros(shape, dtype=torch.uint8))


def test_colour_spaces_by_hand() -> None:
    """Red, green, blue, grey, black, white; L*a*b* of red is (53.24, 80.09, 67.20)."""
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [0, 0, 0], [255, 255, 255]]], np.uint8)
    hsv, lab, rgi = (to_colour_space(image, name)[0] for name in ("hsv", "lab", "rgi"))
    assert hsv.tolist() == [[0, 255, 255], [85, 255, 255], [170, 255, 255], [0, 0, 128], [0, 0, 0], [0, 0, 255]]
    np.testing.assert_allclose(lab[0], [2.55 * 53.24, 128 + 80.09, 128 + 67.20], atol=0.05)
    np.testing.assert_allclose(lab[3:, 1:], 128, atol=0.05)
    np.testing.assert_allclose(lab[[4, 5], 0], [0, 255], atol=0.01)
    np.testing.assert_allclose(rgi[:4], [[255, 0, 76.245], [0, 255, 149.685], [0, 0, 29.07], [85, 85, 128]], atol=1e-3)
    assert rgi[4].tolist() == [85, 85, 0]
    assert to_colour_space(image, "h")[0].tolist() == hsv[:, :1].tolist()
    np.testing.assert_allclose(to_colour_space(image, "i")[0, :, 0], rgi[:, 2])


def test_derivatives_of_a_ramp() -> None:
    """Of an image that grows by 2 a column, away from the border."""
    ramp = np.repeat(2 * np.arange(20, dtype=np.float32)[None, :, None], 20, axis=0)
    inside = (slice(5, -5), slice(5, -5), 0)
    np.testing.assert_allclose(filtered(ramp, gaussian(1.0), gaussian(1.0))[inside], ramp[inside], rtol=1e-5)
    np.testing.assert_allclose(filtered(ramp, gaussian(1.0), gaussian(1.0, 1))[inside], 2.0, rtol=1e-2)
    np.testing.assert_allclose(filtered(ramp, gaussian(1.0, 1), gaussian(1.0))[inside], 0.0, atol=1e-4)


def test_texture_of_a_ramp() -> None:
    """Of eight directions the three about that of the ramp have responses: 1, and twice the square root of a half."""
    ramp = np.repeat(2 * np.arange(20, dtype=np.float32)[None, :, None], 20, axis=0)
    texture = Texture(ramp)
    inside = np.ones((20, 20), np.int32)
    inside[5:-5, 5:-5] = 0
    counts = texture.counts(inside, 2)[0].reshape(8, TEXTURE_BINS)
    bins = [np.flatnonzero(each).tolist() for each in counts]
    # right, left, down, up, right and down, left and up, right and up, left and down
    assert bins == [[9], [0], [0], [0], [7], [0], [7], [0]] and (counts.sum(1) == 100).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "min_size"), [(20.0, 1), (50.0, 20), (120.0, 60)])
def test_segments_are_those_of_scikit_image(seed: int, k: float, min_size: int) -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    pixels = noise(50, 70, seed).permute(1, 2, 0).contiguous().numpy()
    theirs = segmentation.felzenszwalb(pixels, scale=k, sigma=0.8, min_size=min_size)
    ours, regions = Segmentation(pixels.astype(np.float32), 0.8).segments(k, min_size)
    assert regions == theirs.max() + 1 > 1
    pairs = {*zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True)}
    assert len(pairs) == regions  # each of ours is one of theirs


@pytest.mark.parametrize("name", ["h", "i"])
def test_a_single_channel_counts_as_three_equal_ones(name: str) -> None:
    one = to_colour_space(noise(40, 50).permute(1, 2, 0).contiguous().numpy(), name)
    ours, regions = Segmentation(one, 0.8).segments(50.0, 10)
    three, count = Segmentation(np.repeat(one, 3, axis=2), 0.8).segments(50.0, 10)
    assert regions > 3 and regions == count and (ours == three).all()


@pytest.mark.slow
def test_recall_on_photos_is_at_least_opencvs(shared_data: Path) -> None:
    """With equal settings, at each number of proposals; figures of all photos are in docs/results.md."""
    pytest.importorskip("cv2.ximgproc")
    from benchmarks.selective_search import opencv

    from regio.evaluate import ProposalRecall
    from regio.types import Detections

    dataset = open_dataset(shared_data / "voc2012_100", "all").subset(range(0, 100, 3))
    recall = ProposalRecall(dataset, limits=(100, 300, 1000, 2000))
    method = SelectiveSearch.fast()
    numbers = []
    for search in (method, opencv(method)):
        records = []
        for sample in (dataset[i] for i in range(len(dataset))):
            boxes, scores = search(sample.image)
            records.append(recall.record(sample, Detections(boxes, torch.ones(len(boxes), dtype=torch.int64), scores)))
        numbers.append(recall.measure(records))
    ours, theirs = numbers
    assert all(ours[name] >= theirs[name] for name in recall.names if not name.startswith("ar"))
    assert ours["recall50_2000"] > 0.85


@pytest.mark.slow
def test_objects_of_a_generated_scene_are_found() -> None:
    from regio.data import Shapes

    scenes = Shapes(4, seed=5)
    best = []
    for i in range(len(scenes)):
        sample = scenes[i]
        boxes, _ = SelectiveSearch.fast()(sample.image)
        best.append(iou(boxes, sample.targets.boxes).amax(0))
    assert float(torch.cat(best).mean()) > 0.6
