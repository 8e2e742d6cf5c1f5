"""Weights before and after a training, and divergences over its steps, as pictures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from regio.analysis import SIZES, Divergences, Statistic
from regio.data import DetectionDataset, Shapes
from regio.data.records import Record
from regio.regions import LearnedRegionFeatures, RegionExtractor, RoIAlign, WarpedCrop
from regio.types import FeatureMap
from regio.visualize import divergence_figure
from regio.visualize.before_and_after import Subject, moments_figure, objects_named, typical_objects
from regio.visualize.explain import ReadBox
from tests.test_visualize_weights import drawn, nothing_is_cut

NONE = Statistic(0, math.nan, math.nan)


def read(extractor: RegionExtractor, size: tuple[int, int] = (60, 80)) -> ReadBox:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    data = torch.rand(1, 4, math.ceil(size[0] / 8), math.ceil(size[1] / 8), generator=torch.Generator().manual_seed(0))
    return ReadBox(image, (10.0, 10.0, 50.0, 40.0), FeatureMap(data, stride=8), extractor, "an extractor", "a source")


def learned(std: float) -> LearnedRegionFeatures:
    torch.manual_seed(0)
    made = LearnedRegionFeatures(4, (2, 3), 16, 8)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return made


def titles(figure: Figure) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes if len(axes.images) == 2]


def test_terms_are_in_rows_and_moments_beside_each_other() -> None:
    """For each of two boxes: three terms, at two moments, of which each shows the largest weight and two parts."""
    moments = {"step 0": read(learned(0.01)), "step 9": read(learned(0.5))}
    subjects = [
        Subject("a cat", moments),
        Subject("a dog", {k: read(v.extractor, (90, 64)) for k, v in moments.items()}),
    ]
    figure = moments_figure(subjects, None, "runs/one")
    assert titles(figure) == ["largest", "row 1, column 1", "row 2, column 3"] * 12
    texts = [text.get_text() for text in figure.texts]
    assert texts[:4] == ["an extractor: 2 x 3 parts", "runs/one", "step 0", "step 9"]
    assert texts.count("geometry alone") == texts.count("appearance alone") == texts.count("both") == 4
    assert "a cat; map of stride 8, 10 x 8 cells" in texts and "a dog; map of stride 8, 8 x 12 cells" in texts
    own = moments["step 9"]
    expected = own.extractor.weights(own.x, own.regions)[0, 0].detach().double().numpy()
    both = drawn(figure)[9 + 6 : 9 + 9]  # of the second moment, the third row
    for found, weights in zip(both, (expected.max(0), expected[0], expected[5]), strict=True):
        np.testing.assert_allclose(found, weights / weights.max(), rtol=1e-5)
    assert nothing_is_cut(figure)


def test_an_extractor_without_terms_has_a_row() -> None:
    """And parts can be chosen; of one part in all there is nothing to show beside it."""
    figure = moments_figure([Subject("a cat", {"step 0": read(RoIAlign(7)), "step 9": read(RoIAlign(7))})], [0, 8, 48])
    assert titles(figure) == ["largest", "row 1, column 1", "row 2, column 2", "row 7, column 7"] * 2
    assert "both" not in [text.get_text() for text in figure.texts]
    assert titles(moments_figure([Subject("a cat", {"step 0": read(RoIAlign(1))})], None)) == ["largest"]


def test_what_cannot_be_drawn() -> None:
    subject = Subject("a cat", {"step 0": read(RoIAlign(7))})
    with pytest.raises(ValueError, match=r"parts: expected 0 .. 48, got 49"):
        moments_figure([subject], [0, 49])
    with pytest.raises(ValueError, match="a source: expected an extractor of up to 1024 parts"):
        moments_figure([Subject("a cat", {"step 0": read(WarpedCrop())})], None)
    with pytest.raises(ValueError, match="subjects: expected at least one"):
        moments_figure([], None)


def scenes() -> DetectionDataset:
    """Three images: objects of 100 and 400 square pixels, of 900, 2000 and 3000, and of 90,000, a crowd."""
    areas = ([100, 400], [900, 2000, 3000], [90_000])
    records = []
    for record, own in zip(Shapes(9, seed=2).records, areas, strict=False):
        rows = np.resize(np.arange(len(record)), len(own))
        some = record.select(rows, record.labels[rows])
        records.append(replace(some, area=np.array(own, dtype=np.float64), crowd=np.array(own) == 90_000))
    shapes = Shapes(1)
    return DetectionDataset(shapes.class_names, shapes.category_ids, records)


def test_typical_objects_are_of_median_area_and_of_different_images() -> None:
    """Of the small ones, that of 400 square pixels, since the image of that of 900 already has the medium one."""
    assert typical_objects(scenes()) == [(1, 2), (0, 1)]
    assert typical_objects(scenes().subset([1])) == [(0, 2), (0, 0)]  # there is no other image
    with pytest.raises(ValueError, match="dataset: expected objects, got none in 1 images"):
        typical_objects(scenes().subset([2]))


def test_objects_by_words() -> None:
    data = scenes()
    first, second, crowd = (record.name for record in data.records)
    assert objects_named(data, [second, f"{second}:1", first]) == [(1, 2), (1, 0), (0, 1)]
    for word, message in [
        ("cat.jpg", r"objects: expected an image of the name cat.jpg, or NAME:N for its N-th object, got none among 3"),
        (f"{first}:3", f"objects: expected {first}:1 to {first}:2, got {first}:3"),
        (f"{first}:0", f"objects: expected {first}:1 to {first}:2"),
        (crowd, f"objects: expected an image with an object, got {crowd}"),
    ]:
        with pytest.raises(ValueError, match=message):
            objects_named(data, [word])
    same: list[Record] = [replace(record, name="a.jpg") for record in data.records]
    with pytest.raises(ValueError, match=r"an image of the name a\.jpg, .*got 3 of them"):
        objects_named(DetectionDataset(data.class_names, data.category_ids, same), ["a.jpg"])


def divergences(between: float, of_mask: float | None = None) -> Divergences:
    """Of three small objects and a large one, which is twice as much."""

    def by_size(mean: float | None) -> dict[str, Statistic]:
        if mean is None:
            return dict.fromkeys(SIZES, NONE)
        return {"small": Statistic(3, mean, 0.1), "medium": NONE, "large": Statistic(1, 2 * mean, 0.0)}

    return Divergences(by_size(between), by_size(of_mask), 0)


def test_divergences_are_lines_in_panels_of_sizes() -> None:
    series = {
        "learned": {0: divergences(0.5, 3.0), 20: divergences(4.0, 1.0)},
        "a $ align": {0: divergences(7.0, 0.5), 10: divergences(7.0, 0.5), 20: divergences(7.0, 0.25)},
    }
    figure = divergence_figure(series)
    assert [axes.get_title("left") for axes in figure.axes] == ["small, 3 objects", "large, 1 object"] * 2
    lines = [[line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert lines[0] == [[[0, 0.5], [20, 4]], [[0, 7], [10, 7], [20, 7]]]
    assert lines[1][0] == [[0, 1], [20, 8]]
    assert lines[2] == [[[0, 3], [20, 1]], [[0, 0.5], [10, 0.5], [20, 0.25]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["learned", r"a \$ align"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["mean KL between parts (nats)", "KL of mask (nats)"]
    assert nothing_is_cut(figure)


def test_without_masks_there_is_one_row_and_without_objects_nothing() -> None:
    figure = divergence_figure({"learned": {0: divergences(0.5)}})
    assert figure.axes[0].get_xticks().tolist() == [0]
    assert len(figure.axes) == 2 and figure.axes[0].get_xlabel() == "step"
    nothing = Divergences(dict.fromkeys(SIZES, NONE), dict.fromkeys(SIZES, NONE), 4)
    with pytest.raises(ValueError, match="series: expected divergences of at least one object, got none"):
        divergence_figure({"learned": {0: nothing}})
