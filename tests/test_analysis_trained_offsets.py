"""Offsets of detectors over a data set, over the steps of a training, and taken away."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from regio.analysis import (
    FILTER_CLASSES,
    PUBLISHED_DILATION,
    OffsetStatistics,
    Statistic,
    effective_dilation,
    filter_class,
    has_offsets,
    offset_variants,
    offsets_in_backbone,
    offsets_of_detector,
    offsets_over_training,
    without_offsets,
    write_dilation,
    write_offset_lengths,
    write_without_offsets,
)
from regio.backbones import efficientnet_lite0
from regio.checkpoints import Card, save
from regio.config import model_to_dict
from regio.config.extractors import EXTRACTORS
from regio.config.systems import RFCN, FasterRCNNOnFPN
from regio.data import SHAPE_CLASSES, Shapes
from regio.data.records import Record
from regio.deformable_conv import DeformableConv2d
from regio.detector import TwoStageDetector
from regio.regions import DeformablePrior, DeformableRoIPool, LearnedRegionFeatures, RegionExtractor, RoIAlign
from regio.regions.deformable import DeformablePositionSensitive
from regio.regions.position_sensitive import PositionSensitive
from regio.systems import faster_rcnn
from tests.test_analysis_layer_offsets import deformable_detector

SCENES = Shapes(3, seed=1)
POOLING = "roi_heads.0.extractor"


def pooling_detector(extractor: RegionExtractor | None = None) -> TwoStageDetector:
    torch.manual_seed(0)
    backbone = efficientnet_lite0(levels=(3,), output_stride=8, pretrained=False)
    pool = DeformableRoIPool(RoIAlign(2), 8) if extractor is None else extractor
    return faster_rcnn(7, backbone, pool, channels=8, hidden=16, short_side=160, long_side=400).eval()


def cells(detector: TwoStageDetector, size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(rows, columns) of filters whose centre is on an image of `size`, and not on the padding of its batch."""
    rows, columns = (math.ceil(side / stride - 0.5) for side in detector.preprocess.size_of(size))
    return rows, columns


def test_filters_are_classed_by_what_they_are_on() -> None:
    """Without offsets each has the dilation 1. Those in crowds are of no class."""
    detector = without_offsets(deformable_detector((2, 3)))
    scenes = SCENES.subset([0])
    record = scenes.records[0]
    found = offsets_of_detector(detector, scenes)
    assert list(found.dilation) == list(found.length) == ["body.first", "body.strided", "body.last"]
    for name, stride in (("body.first", 4), ("body.strided", 8), ("body.last", 8)):
        size = detector.preprocess.size_of(record.size)
        scale = torch.tensor([size[1] / record.size[1], size[0] / record.size[0]] * 2)
        boxes = torch.from_numpy(record.boxes).float() * scale
        own = cells(detector, record.size, stride)
        classes = filter_class(boxes, own, stride, area=torch.from_numpy(record.area))
        counts = [int((classes == i).sum()) for i in range(len(FILTER_CLASSES))]
        assert [found.dilation[name][kind].count for kind in FILTER_CLASSES] == counts
        assert found.length[name].count == sum(counts) == math.prod(own)
        assert all(each.mean == pytest.approx(1) for each in found.dilation[name].values() if each.count)
    record.crowd[0] = True
    try:
        crowded = offsets_of_detector(detector, scenes)
    finally:
        record.crowd[0] = False
    lost = found.length["body.first"].count - crowded.length["body.first"].count
    x1, y1, x2, y2 = (boxes[0] / 4).tolist()
    assert lost == pytest.approx((x2 - x1) * (y2 - y1), rel=0.2) and lost > 10


def test_filters_on_padding_are_not_counted() -> None:
    """Nor are they background."""
    detector = without_offsets(deformable_detector())
    scenes = SCENES.subset([0])
    for divisor in (8, 256):
        detector.preprocess = replace(detector.preprocess, divisor=divisor)
        found = offsets_of_detector(detector, scenes)
        assert found.length["body.last"].count == math.prod(cells(detector, scenes.records[0].size, 8))


@pytest.mark.parametrize("groups", [1, 2])
def test_statistics_are_those_of_each_filter(groups: int) -> None:
    """Of several offset groups the mean; of modulated layers the offsets alone."""
    detector = deformable_detector(modulated=True, offset_groups=groups)
    found = offsets_of_detector(detector, SCENES)
    values, classes, lengths = [], [], []
    for record, sample in zip(SCENES.records, SCENES, strict=True):
        batch, _, layers = offsets_in_backbone(detector, [sample.image])
        last = layers[-1]
        each = effective_dilation(last.offsets)[0].mean(0)
        boxes = detector.preprocess.targets([sample.targets], batch)[0].boxes
        kinds = filter_class(boxes, last.output_size, 8, area=torch.from_numpy(record.area))
        rows, columns = cells(detector, record.size, 8)
        values.append(each[:rows, :columns].flatten())
        classes.append(kinds[:rows, :columns].flatten())
        taps = last.offsets[0].unflatten(0, (groups * 9, 2)).norm(dim=1).mean(0)
        lengths.append(taps[:rows, :columns].flatten())
    joined, kind, length = torch.cat(values).double(), torch.cat(classes), torch.cat(lengths).double()
    for i, name in enumerate(FILTER_CLASSES):
        own, statistic = joined[kind == i], found.dilation["body.last"][name]
        assert statistic.count == len(own)
        if len(own):
            assert statistic.mean == pytest.approx(float(own.mean()), rel=1e-5)
            assert statistic.deviation == pytest.approx(float(own.std(correction=0)), rel=1e-4)
    assert found.length["body.last"].mean == pytest.approx(float(length.mean()), rel=1e-5)
    assert 0.3 < found.length["body.last"].mean < 30


@pytest.mark.slow
def test_lengths_by_hand() -> None:
    """Taps all moved by (3, 4) cells are 5 cells away, at the distance from each other that they had. Parts moved by
    0.1 * (3, 0) and (0, 4) of the sides of their box."""
    detector = without_offsets(deformable_detector())
    with torch.no_grad():
        for each in detector.modules():
            if isinstance(each, DeformableConv2d):
                each.offset.bias.copy_(torch.tensor([3.0, 4.0]).repeat(9))
    found = offsets_of_detector(detector, SCENES)
    for name in ("body.first", "body.strided", "body.last"):
        assert found.length[name].mean == pytest.approx(5) and found.length[name].deviation == pytest.approx(
            0, abs=1e-4
        )
        assert found.dilation[name]["background"].mean == pytest.approx(1)
    detector = pooling_detector()
    pool = next(each for each in detector.modules() if isinstance(each, DeformableRoIPool))
    assert offsets_of_detector(detector, SCENES).length[POOLING].mean == 0
    with torch.no_grad():
        pool.offset.bias.copy_(torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0]))  # x of the upper, y of the lower
    found = offsets_of_detector(detector, SCENES)
    sides = []
    for sample in SCENES:
        with torch.no_grad():
            batch, _ = detector.features([sample.image])
        boxes = detector.preprocess.targets([sample.targets], batch)[0].boxes
        sides.append((boxes[:, 2:] - boxes[:, :2]) / 8)
    expected = torch.cat(sides) @ torch.tensor([0.3, 0.4]) / 2
    assert found.length[POOLING].count == len(expected) and not found.dilation
    assert found.length[POOLING].mean == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.slow
def test_shifts_of_learned_region_features() -> None:
    """The parts of a deformable prior are counted as bins are, and set back with them."""
    prior = DeformablePrior(8, 2)
    detector = pooling_detector(LearnedRegionFeatures(8, 2, 16, 8, prior=prior))
    assert has_offsets(detector) and list(offset_variants(detector)) == ["as trained", "no offsets of pooling"]
    with torch.no_grad():
        prior.offset.bias.copy_(torch.tensor([3.0, 0.0, 3.0, 0.0, 0.0, 4.0, 0.0, 4.0]))
    bins = pooling_detector()
    pool = next(each for each in bins.modules() if isinstance(each, DeformableRoIPool))
    with torch.no_grad():
        pool.offset.bias.copy_(torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0]))
    expected = offsets_of_detector(bins, SCENES).length[POOLING]
    found = offsets_of_detector(detector, SCENES).length[POOLING]
    assert found.count == expected.count and found.mean == pytest.approx(expected.mean, rel=1e-5)
    assert offsets_of_detector(without_offsets(detector), SCENES).length[POOLING].mean == 0


def test_maps_that_no_box_is_read_from_may_have_other_channels() -> None:
    """R-FCN with proposals from another map than that of its scores, on one image with objects and one without."""
    torch.manual_seed(0)
    model = RFCN(
        backbone="efficientnet_lite0", channels=32, proposal_channels=16, proposal_level=4, short_side=64,
        long_side=96, extractor=EXTRACTORS["deformable-roi-pool"](),
    ).build(len(SHAPE_CLASSES), pretrained=False)  # fmt: skip
    scenes = Shapes(2, seed=1)
    own = scenes.records[1]
    scenes.records = (scenes.records[0], Record.of(own.id, own.path, own.name, own.size, []))
    found = offsets_of_detector(model.eval(), scenes)
    assert found.length and {each.count for each in found.length.values()} == {len(scenes.records[0])}


def test_images_without_objects_are_background() -> None:
    scenes = Shapes(1, seed=1)
    own = scenes.records[0]
    scenes.records = (Record.of(own.id, own.path, own.name, own.size, []),)
    detector = deformable_detector()
    found = offsets_of_detector(detector, scenes)
    counts = {name: each.count for name, each in found.dilation["body.last"].items()}
    assert counts.pop("background") == math.prod(cells(detector, own.size, 8)) and set(counts.values()) == {0}
    assert offsets_of_detector(pooling_detector(), scenes).length[POOLING].count == 0


def test_without_offsets_a_layer_is_a_convolution() -> None:
    torch.manual_seed(0)
    conv = DeformableConv2d(2, 3, 3, padding=1, offset_groups=2).double()
    with torch.no_grad():
        for parameter in conv.offset.parameters():
            parameter.normal_()
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    plain = without_offsets(conv)
    x = torch.rand(1, 2, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(plain(x), conv2d(x, conv.weight, conv.bias, padding=1))
    assert (plain(x) - conv(x)).abs().max() > 0.1
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())


def test_without_offsets_a_modulated_layer_keeps_its_factors() -> None:
    torch.manual_seed(0)
    conv = DeformableConv2d(2, 3, 3, padding=1, offset_groups=2, modulated=True)
    for parameter in conv.offset.parameters():
        torch.nn.init.normal_(parameter)
    plain = without_offsets(conv)
    for own, was in zip(plain.offset.parameters(), conv.offset.parameters(), strict=True):
        assert not own[:36].any() and torch.equal(own[36:], was[36:]) and own[36:].any() and was[:36].any()


def test_variants_are_those_that_a_detector_has() -> None:
    backbone = deformable_detector()
    assert list(offset_variants(backbone)) == ["as trained", "no offsets of convolutions"]
    assert list(offset_variants(pooling_detector())) == ["as trained", "no offsets of pooling"]
    both = pooling_detector()
    both.backbone = backbone.backbone
    variants = offset_variants(both)
    assert list(variants) == ["as trained", "no offsets of convolutions", "no offsets of pooling", "no offsets"]
    assert variants["as trained"] is both
    pool = next(each for each in both.modules() if isinstance(each, DeformableRoIPool))
    torch.nn.init.normal_(pool.offset.bias)
    moved = {
        label: [
            bool(each.offset.bias.any())
            for each in variant.modules()
            if isinstance(each, DeformableConv2d | DeformableRoIPool)
        ]
        for label, variant in offset_variants(both).items()
    }
    assert list(moved.values()) == [[True] * 4, [False] * 3 + [True], [True] * 3 + [False], [False] * 4]
    plain = faster_rcnn(
        7, efficientnet_lite0(levels=(3,), output_stride=8, pretrained=False), RoIAlign(2), channels=8, hidden=16
    )
    assert not has_offsets(plain) and has_offsets(both) and list(offset_variants(plain)) == ["as trained"]


def test_position_sensitive_pooling_loses_its_offsets() -> None:
    pool = DeformablePositionSensitive(PositionSensitive(RoIAlign(2), 2), 4, 3)
    torch.nn.init.normal_(pool.offset.weight)
    copied = without_offsets(pool)
    assert not copied.offset.weight.any() and pool.offset.weight.any()
    assert torch.equal(copied.scores.weight, pool.scores.weight)


def test_offsets_over_the_steps_of_a_training(tmp_path: Path) -> None:
    """A new pooling moves nothing; the same run, or one of its checkpoints alone."""
    settings = {"channels": 8, "hidden": 16, "short_side": 64, "long_side": 96}
    system = FasterRCNNOnFPN(**settings, extractor=EXTRACTORS["deformable-roi-pool"]())
    torch.manual_seed(0)
    made = system.build(6, pretrained=False)
    for step in (0, 7):
        card = Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(system), step=step)
        save(tmp_path / "weights" / ("last.safetensors" if step else "step-00000.safetensors"), made, card)
        pool = next(each for each in made.modules() if isinstance(each, DeformableRoIPool))
        torch.nn.init.constant_(pool.offset.bias, 2.0)
    scenes = SCENES.subset([0])
    found = offsets_over_training(tmp_path, scenes)
    assert list(found) == [0, 7]
    (name,) = found[0].length
    assert found[0].length[name].mean == 0 and found[7].length[name].mean > 0
    assert found[0].length[name].count == len(scenes.records[0])
    assert offsets_over_training(tmp_path / "weights" / "last.safetensors", scenes) == {7: found[7]}


def rows(path: Path) -> tuple[list[str] | None, list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def test_tables_are_written_with_their_columns(tmp_path: Path) -> None:
    none, some = Statistic(0, math.nan, math.nan), Statistic(4, 1.5, 0.25)
    found = OffsetStatistics({"a": dict.fromkeys(FILTER_CLASSES, none) | {"large": some}}, {"a": some, "pool": none})
    path = tmp_path / "table.csv"
    for series in ({}, {"run": {3: found}}):
        write_dilation(path, series)
        columns, written = rows(path)
        assert columns == ["run", "step", "layer", "class", "filters", "mean", "deviation"]
    expected = {"run": "run", "step": "3", "layer": "a", "mean": "1.5", "deviation": "0.25"}
    assert written == [expected | {"class": "large", "filters": "4"}]
    write_offset_lengths(path, series)
    assert rows(path) == (["run", "step", "layer", "count", "mean", "deviation"], [expected | {"count": "4"}])
    write_without_offsets(path, {"run": {"as trained": {"ap": 0.5}, "no offsets": {"ap": 0.25}}})
    columns, written = rows(path)
    assert columns == ["run", "offsets", "measure", "value"]
    assert [(row["offsets"], row["value"]) for row in written] == [("as trained", "0.5"), ("no offsets", "0.25")]


def test_the_published_table_has_every_class() -> None:
    """And what the paper reads from it: larger on larger objects, and on the background between medium and large."""
    for classes in PUBLISHED_DILATION.values():
        assert set(classes) == set(FILTER_CLASSES)
        means = [classes[name][0] for name in ("small", "medium", "background", "large")]
        assert means == sorted(means)
    assert np.mean([classes["large"][0] for classes in PUBLISHED_DILATION.values()]) == pytest.approx(5.9)
