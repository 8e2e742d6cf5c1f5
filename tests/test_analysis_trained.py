"""Divergences over a data set."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regio.analysis import (
    SIZES,
    divergence_of_checkpoints,
    divergence_of_detector,
    divergence_over_training,
    divergence_rows,
    extractor_of,
    kl_between_parts,
    kl_of_mask,
    masks_to_cells,
    measured_images,
    size_class,
    weights_by_level,
    write_divergences,
)
from regio.backbones import efficientnet_lite0
from regio.checkpoints import Card, save
from regio.config import model_to_dict
from regio.config.extractors import EXTRACTORS, Learned
from regio.config.systems import FasterRCNNOnFPN
from regio.data import SHAPE_CLASSES, DetectionDataset, Shapes
from regio.data.records import Record
from regio.detector import TwoStageDetector
from regio.regions import LearnedRegionFeatures, RoIPool, WarpedCrop
from regio.regions.base import RegionExtractor
from regio.systems import faster_rcnn
from regio.types import FeatureMap, Regions

SCENES = Shapes(3, seed=1).with_masks()


def detector(extractor: RegionExtractor) -> TwoStageDetector:
    """An untrained detector on a single map, at the size of the image."""
    torch.manual_seed(0)
    backbone = efficientnet_lite0(levels=(3,), output_stride=8, pretrained=False)
    made = faster_rcnn(7, backbone, extractor, channels=8, hidden=16, short_side=160, long_side=400)
    return made.eval()


def learned() -> LearnedRegionFeatures:
    torch.manual_seed(0)
    return LearnedRegionFeatures(8, bins=(2, 2), embedding_channels=16, key_channels=8)


def test_uniform_weights_are_alike_and_as_far_from_masks_as_masks_are_from_the_map() -> None:
    """With zero parameters KL between parts is 0, and KL of a mask the logarithm of cells over its own spread."""
    extractor = learned()
    for parameter in extractor.parameters():
        torch.nn.init.zeros_(parameter)
    made = detector(extractor)
    scenes = SCENES.subset([0])
    found = divergence_of_detector(made, scenes)
    with torch.no_grad():
        batch, (x,) = made.features([scenes[0].image])
    masks = scenes[0].targets.masks
    assert masks is not None
    p = masks_to_cells(masks, x, batch.sizes[0]).flatten(1)
    p = p / p.sum(1, keepdim=True)
    expected = math.log(math.prod(x.extents[0])) + torch.special.xlogy(p, p).sum(1)
    counts = [found.of_mask[name].count for name in SIZES]
    total = sum(found.of_mask[name].count * found.of_mask[name].mean for name in SIZES if found.of_mask[name].count)
    assert sum(counts) == len(masks) and found.unread == 0
    assert total == pytest.approx(float(expected.sum()), rel=1e-6)
    assert all(abs(each.mean) < 1e-9 for each in found.between_parts.values() if each.count)


def test_statistics_are_those_of_each_object() -> None:
    made = detector(learned())
    found = divergence_of_detector(made, SCENES, diagonal=False)
    between, of_mask, areas = [], [], []
    for record, sample in zip(SCENES.records, SCENES, strict=True):
        with torch.no_grad():
            batch, (x,) = made.features([sample.image])
            targets = made.preprocess.targets([sample.targets], batch)[0]
            assert targets.masks is not None
            weights = extractor_of(made).weights([x], Regions.from_list([targets.boxes]))[0]
        between += kl_between_parts(weights, diagonal=False).tolist()
        of_mask += kl_of_mask(weights, masks_to_cells(targets.masks, x, batch.sizes[0])).tolist()
        areas += record.area.tolist()
    small = [i for i, area in enumerate(areas) if area < 32**2]
    assert 0 < len(small) < len(areas)
    assert found.between_parts["small"].count == found.of_mask["small"].count == len(small)
    assert found.between_parts["small"].mean == pytest.approx(sum(between[i] for i in small) / len(small))
    assert found.of_mask["small"].mean == pytest.approx(sum(of_mask[i] for i in small) / len(small))


def test_boxes_of_the_annotations_that_read_nothing_are_counted() -> None:
    """RoIPool rounds the corner (159, 159) of a 160-pixel image to cell 20 of 20: such a box has no cell at all."""
    made = detector(RoIPool(1))
    scenes = Shapes(1, seed=1)
    height, width = scenes.sizes[0]
    record = scenes.records[0]
    record.boxes[0] = [width - 1, height - 1, width, height]
    found = divergence_of_detector(made, scenes)
    assert found.unread == 1
    assert sum(each.count for each in found.between_parts.values()) == len(record) - 1
    assert all(each.count == 0 for each in found.of_mask.values())  # a data set without masks


def test_each_box_is_read_from_its_level() -> None:
    torch.manual_seed(0)
    levels = extractor_of(
        FasterRCNNOnFPN(extractor=EXTRACTORS["roi-pool"](), channels=8, hidden=16).build(6, pretrained=False)
    )
    maps = [FeatureMap(torch.rand(1, 8, 128 // stride, 128 // stride), stride) for stride in (8, 16, 32)]
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 128, 128], [1, 1, 9, 9], [0, 0, 128, 64]])
    r = Regions(boxes, torch.zeros(4, dtype=torch.int64))
    seen = {}
    for level, rows, weights in weights_by_level(levels, maps, r):
        seen.update({row: (level, each) for row, each in zip(rows.tolist(), weights, strict=True)})
    assert sorted(seen) == [0, 1, 2, 3]
    for row, (level, each) in seen.items():
        assert level == levels.assign(maps, r)[row]
        of_channels = levels.weights(maps, r[torch.tensor([row])])[level]
        torch.testing.assert_close(each[None], of_channels.mean(1, keepdim=True))
        assert of_channels.shape[1] == 8 and each.sum() == 49  # every bin of every channel reads one cell


def test_a_lone_box_that_reads_nothing_is_counted_with_masks_too() -> None:
    """No other box of its level is left to measure."""
    made = detector(RoIPool(1))
    scenes = Shapes(1, seed=1).with_masks()
    (height, width), record = scenes.sizes[0], scenes.records[0]
    record.boxes[:] = [width - 1, height - 1, width, height]
    found = divergence_of_detector(made, scenes)
    assert found.unread == len(record)
    assert all(each.count == 0 for each in (*found.between_parts.values(), *found.of_mask.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_is_measured_by_the_same_function(name: str) -> None:
    """On the same objects, each of which is measured or counted as unread."""
    made = detector(EXTRACTORS[name]().build(8))
    scenes = SCENES.subset([0])
    found = divergence_of_detector(made, scenes)
    for measure in (found.between_parts, found.of_mask):
        assert sum(each.count for each in measure.values()) + found.unread == len(scenes.records[0])
        assert all(0 <= each.mean < -math.log(1e-12) for each in measure.values() if each.count)
    parts = math.prod(extractor_of(made).bins)
    apart = [each.mean > 1 for each in found.between_parts.values() if each.count]
    assert all(apart) if parts > 1 else not any(apart)


def test_the_parts_of_a_crop_are_not_measured() -> None:
    """R-CNN's 51,529 parts have a weight for each pixel of the image, gigabytes of them."""
    with pytest.raises(ValueError, match="an extractor of up to 1024 parts, got WarpedCrop of 227 x 227"):
        divergence_of_detector(detector(WarpedCrop()), SCENES)


def test_the_images_that_are_measured() -> None:
    """They are spread over those with objects, of those with masks over these."""
    scenes = Shapes(6, seed=1)
    assert [r.id for r in measured_images(scenes, 3).records] == [1, 3, 5]
    assert len(measured_images(scenes)) == 6
    assert measured_images(scenes, 1)[0].targets.masks is not None
    some = DetectionDataset(
        scenes.class_names, scenes.category_ids, [bare(r) if r.id != 4 else r for r in scenes.records]
    )
    assert [r.id for r in measured_images(some, 3).records] == [4]
    none = DetectionDataset(scenes.class_names, scenes.category_ids, [bare(r) for r in scenes.records])
    assert [r.id for r in measured_images(none, 2).records] == [1, 4] and not measured_images(none).has_masks
    with pytest.raises(ValueError, match="dataset: expected objects, got none in 0 images"):
        measured_images(scenes.subset([]))


def bare(record: Record) -> Record:
    """Without masks."""
    return replace(record, segmentations=(None,) * len(record))


def uniform(model: TwoStageDetector) -> TwoStageDetector:
    """With weights that are the same everywhere."""
    for parameter in extractor_of(model).parameters():
        torch.nn.init.zeros_(parameter)
    return model


def test_divergence_over_the_steps_of_a_training(tmp_path: Path) -> None:
    """Step 0 has uniform weights, of which no two are apart, and step 7 a grid of Gaussians."""
    settings = {"channels": 8, "hidden": 16, "short_side": 64, "long_side": 96}
    small = {"embedding_channels": 8, "key_channels": 4}
    for step, prior in ((0, "none"), (7, "grid")):
        system = FasterRCNNOnFPN(**settings, extractor=Learned(terms="both", prior=prior, **small))
        card = Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(system), step=step)
        made = uniform(system.build(6, pretrained=False))
        save(tmp_path / "weights" / ("last.safetensors" if step else "step-00000.safetensors"), made, card)
    scenes = SCENES.subset([0])
    found = divergence_over_training(tmp_path, scenes)
    assert list(found) == [0, 7]
    objects = {
        size: int((size_class(torch.from_numpy(scenes.records[0].area)) == i).sum()) for i, size in enumerate(SIZES)
    }
    for size, count in objects.items():
        before, after = (found[step].between_parts[size] for step in (0, 7))
        assert before.count == after.count == count
        if count:
            assert before.mean == pytest.approx(0, abs=1e-9) and after.mean > 1
    rows = divergence_rows({"a run": found})
    assert len(rows) == 2 * 2 * sum(count > 0 for count in objects.values())
    first = next(size for size, count in objects.items() if count)
    assert rows[0] | {"mean": 0, "deviation": 0} == {
        "run": "a run", "step": 0, "measure": "between_parts", "size": first, "objects": objects[first], "mean": 0,
        "deviation": 0, "unread": 0,
    }  # fmt: skip
    assert rows[-1]["step"] == 7 and rows[-1]["measure"] == "of_mask"
    assert rows[-1]["mean"] == found[7].of_mask[str(rows[-1]["size"])].mean


def test_the_table_has_its_columns_also_where_no_object_was_read(tmp_path: Path) -> None:
    """RoIPool reads nothing of an object in the last pixel of an image, the only one here."""
    scenes = Shapes(1, seed=1)
    (height, width), record = scenes.sizes[0], scenes.records[0]
    record.boxes[:] = [width - 1, height - 1, width, height]
    none = divergence_of_detector(detector(RoIPool(1)), scenes)
    some = divergence_of_detector(detector(learned()), SCENES.subset([0]))
    columns = ["run", "step", "measure", "size", "objects", "mean", "deviation", "unread"]
    for series in ({"none": {0: none}}, {"none": {0: none}, "some": {0: some}}):
        write_divergences(tmp_path / "divergence.csv", series)
        with (tmp_path / "divergence.csv").open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            assert [*reader] == [{k: str(v) for k, v in row.items()} for row in divergence_rows(series)]
            assert reader.fieldnames == columns
    assert len(divergence_rows(series)) > 0


def test_a_run_that_kept_no_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: no checkpoint of a step; train with keep_every=N"):
        divergence_over_training(tmp_path, SCENES)


@pytest.mark.slow
def test_checkpoints_are_measured_one_by_one(tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = FasterRCNNOnFPN(channels=8, hidden=16, short_side=64, long_side=96, extractor=Learned())
        paths.append(tmp_path / f"{seed}.safetensors")
        save(
            paths[-1],
            model.build(6, pretrained=False),
            Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model)),
        )
    found = divergence_of_checkpoints(paths, SCENES.subset([0]))
    assert list(found) == paths
    first, second = (each.of_mask for each in found.values())
    assert first != second and sum(each.count for each in first.values()) == len(SCENES.records[0])


def test_only_detectors_with_levels_are_measured() -> None:
    made = detector(learned())
    made.roi_heads[0].extractor = learned()
    with pytest.raises(TypeError, match="an extractor of type Levels, got FastRCNNHead with LearnedRegionFeatures"):
        divergence_of_detector(made, SCENES)
