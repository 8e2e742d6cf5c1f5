"""Generated scenes: reproducible, and annotated as they are drawn."""

import numpy as np
import pytest
import torch

from regio.data import SHAPE_CLASSES, Shapes


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    few, many = Shapes(3, seed=5), Shapes(6, seed=5)
    assert few.to_coco()["annotations"] == [a for a in many.to_coco()["annotations"] if a["image_id"] <= 3]
    backwards = [many[i].image for i in reversed(range(3))][::-1]
    for i in range(3):
        assert (few[i].image == backwards[i]).all()
    assert Shapes(3, seed=6).to_coco()["annotations"] != few.to_coco()["annotations"]


def test_boxes_and_areas_are_those_of_the_visible_masks() -> None:
    scenes = Shapes(12, seed=1).with_masks()
    for index, record in enumerate(scenes.records):
        sample = scenes[index]
        masks = sample.targets.masks
        assert masks is not None
        assert masks.shape == (len(record), *sample.size)
        assert masks.sum(0).max() <= 1  # a pixel is seen of one shape only
        assert masks.sum((1, 2)).tolist() == record.area.tolist()
        for mask, box in zip(masks, sample.targets.boxes, strict=True):
            y, x = torch.nonzero(mask, as_tuple=True)
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box.tolist()


def test_shapes_stand_out_where_their_masks_are() -> None:
    scenes = Shapes(40, seed=2).with_masks()
    contrast = []
    for index in range(len(scenes)):
        sample = scenes[index]
        assert sample.targets.masks is not None
        ground = sample.image[:, ~sample.targets.masks.any(0)].float().mean(1)
        contrast += [(sample.image[:, mask].float().mean(1) - ground).norm() for mask in sample.targets.masks]
    assert float(torch.stack(contrast).median()) > 50


def test_scenes_vary() -> None:
    scenes = Shapes(60, seed=3)
    assert {label for record in scenes.records for label in record.labels} == set(range(1, len(SHAPE_CLASSES) + 1))
    assert len(set(scenes.sizes)) > 40
    counts = np.array([len(record) for record in scenes.records])
    assert counts.min() >= 1
    assert counts.max() >= 6
    assert all(128 <= side <= 192 for size in scenes.sizes for side in size)


def test_size_is_height_and_width() -> None:
    assert all(height < width for height, width in Shapes(5, size=(80, 200)).sizes)


@pytest.mark.parametrize("arguments, message", [({"count": 0}, "count"), ({"count": 1, "size": (63, 100)}, "size")])
def test_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}: expected at least"):
        Shapes(**arguments)
