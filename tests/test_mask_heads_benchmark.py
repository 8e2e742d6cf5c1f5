"""The script that trains mask heads alone, on annotated boxes."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from regio.backbones import efficientnet_lite0
from regio.data import Shapes
from regio.masks import PixelMasks
from regio.types import Targets

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def mask_heads(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import mask_heads

    return mask_heads


def test_all_arms_of_a_seed_start_alike_and_train(mask_heads: ModuleType) -> None:
    scenes, backbone = Shapes(5, size=(96, 96)), efficientnet_lite0([3, 4], frozen=0).eval()
    images = mask_heads.cached(backbone, scenes, 96)
    count = sum(len(each.targets) for each in images)
    first = {}
    for arm in mask_heads.ARMS:
        model = mask_heads.built(arm, 3, backbone.channels, 1 + len(scenes.class_names))
        first[arm] = torch.cat([each.flatten() for part in (model[0], model[1].trunk) for each in part.parameters()])
        losses = mask_heads.trained(model, images, backbone.strides, steps=2, seed=3)
        found = mask_heads.overlaps(model, images, backbone.strides)
        assert len(losses) == 2 and all(loss > 0 for loss in losses)
        assert found.shape == (count,) and 0 <= found.min() <= found.max() <= 1
        after = torch.cat([each.flatten() for part in (model[0], model[1].trunk) for each in part.parameters()])
        assert not torch.equal(after, first[arm])
    assert all(torch.equal(each, first["align"]) for each in first.values())


def test_boxes_move_by_a_tenth_of_their_sides_at_most(mask_heads: ModuleType) -> None:
    boxes = torch.tensor([[20.0, 40.0, 60.0, 50.0]]).repeat(500, 1)  # 40 x 10 pixels of an image twice as large
    masks = torch.zeros(500, 200, 200, dtype=torch.bool)
    image = mask_heads.Image([], (100, 100), Targets(boxes * 2, torch.ones(500, dtype=torch.int64), masks=masks))
    moved = mask_heads.jittered(image, torch.Generator().manual_seed(0))
    furthest = (moved.boxes - boxes).abs().max(0).values
    torch.testing.assert_close(furthest, torch.tensor([4.0, 1.0, 4.0, 1.0]), rtol=0.05, atol=0)
    assert (furthest <= torch.tensor([4.0, 1.0, 4.0, 1.0]) + 1e-4).all()


def test_the_iou_is_that_of_the_pixels(mask_heads: ModuleType) -> None:
    annotated = torch.zeros(2, 8, 8, dtype=torch.bool)
    annotated[:, 2:6, 2:6] = True
    found = torch.zeros(2, 8, 8, dtype=torch.bool)
    found[0, 2:6, 4:8] = True  # half of it, and as many beside it
    boxes, labels = torch.tensor([[2.0, 2.0, 6.0, 6.0]] * 2), torch.ones(2, dtype=torch.int64)
    image = mask_heads.Image([], (8, 8), Targets(boxes, labels, masks=annotated))
    assert mask_heads.ious(PixelMasks(found), image).tolist() == pytest.approx([8 / 24, 0])


def test_every_image_comes_once_before_one_comes_again(mask_heads: ModuleType) -> None:
    steps = list(mask_heads.order(8, 4, torch.Generator().manual_seed(0)))
    assert [len(each) for each in steps] == [4] * 4
    assert [sorted(steps[i] + steps[i + 1]) for i in (0, 2)] == [list(range(8))] * 2
