"""Mask R-CNN: the head, and the detector with it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.checkpoints import load_all_but_classes
from regio.config.systems import MaskRCNN
from regio.data import HorizontalFlip, Shapes, open_dataset
from regio.evaluate import MaskEvaluator, coco_metrics, evaluate
from regio.masks import GridMasks, cover
from regio.regions import Levels, RoIAlign
from regio.roi_heads import MaskConvolutions, MaskHead, SigmoidMasks, SoftmaxMasks
from regio.train import TrainConfig, train
from regio.types import Detections, FeatureMap, Targets

SMALL = MaskRCNN(
    channels=32, hidden=64, mask_channels=32, mask_layers=1, short_side=96, long_side=144,
    anchor_sizes=(16.0, 32.0, 64.0, 96.0),
)  # fmt: skip


def head(output: SigmoidMasks | SoftmaxMasks = SigmoidMasks(), classes: int = 3) -> MaskHead:  # noqa: B008
    torch.manual_seed(0)
    return MaskHead(Levels(RoIAlign(7)), MaskConvolutions(4, 8, 1), 8, classes + 1, output=output).double()


def scene(size: tuple[int, int] = (40, 60)) -> tuple[list[FeatureMap], list[torch.Tensor], list[Targets]]:
    """Maps at stride 4 of two images, boxes, and targets whose second image has one object without a mask."""
    g = torch.Generator().manual_seed(0)
    maps = [FeatureMap(torch.randn(2, 4, 10, 15, generator=g, dtype=torch.float64), 4, (size, size))]
    objects = torch.tensor([[4.0, 4, 24, 30], [30, 10, 58, 38]], dtype=torch.float64)
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 4:30, 4:14] = True
    masks[1, 10:24, 30:58] = True
    targets = [Targets(objects, torch.tensor([1, 3]), masks=masks) for _ in range(2)]
    unknown = masks.clone()
    unknown[0] = False
    targets[1] = replace(targets[1], masks=unknown)
    boxes = [torch.cat([objects + 1, torch.tensor([[0.0, 0, 8, 8]], dtype=torch.float64)]) for _ in range(2)]
    return maps, boxes, targets


def test_boxes_share_the_masks_of_their_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy for each of a hundred boxes on a photo of 12 megapixels takes more than a gigabyte."""
    maps, boxes, targets = scene()
    taken: list[Tensor] = []

    def noted(masks: Sequence[Tensor], boxes: Tensor, cells: int) -> Tensor:
        taken.extend(masks)
        return cover(masks, boxes, cells)

    monkeypatch.setattr("regio.roi_heads.mask.cover", noted)
    head().losses(maps, [each.repeat(4, 1) for each in boxes], targets)
    held = [each.masks for each in targets if each.masks is not None]
    assert len(taken) == 4 * (2 + 1)
    assert {each.untyped_storage().data_ptr() for each in taken} == {each.untyped_storage().data_ptr() for each in held}


def test_boxes_with_gradients_get_them_through_what_is_read_alone() -> None:
    """What the masks are to be is constant: a head that says the same of all boxes does not move them."""
    maps, boxes, targets = scene()
    moving = [each.requires_grad_() for each in boxes]
    one = head()
    _, losses = one.losses(maps, moving, targets)
    losses["mask"].backward()
    assert all(each.grad is not None and float(each.grad[1].abs().sum()) > 0 for each in moving)
    for each in moving:
        each.grad = None
    nn.init.zeros_(one.mask_logits.weight)
    _, losses = one.losses(maps, moving, targets)
    losses["mask"].backward()
    assert all(each.grad is not None and float(each.grad.abs().sum()) == 0 for each in moving)


@pytest.mark.parametrize("output", [SigmoidMasks(), SigmoidMasks(class_agnostic=True), SoftmaxMasks()])
def test_the_loss_by_hand(output: SigmoidMasks | SoftmaxMasks) -> None:
    """Of each known object's box alone, against the intersection of box and mask at 14 x 14."""
    maps, boxes, targets = scene()
    one = head(output)
    after, losses = one.losses(maps, boxes, targets)
    assert after is boxes and set(losses) == {"mask"}
    expected = []
    for i, rows in ((0, (0, 1)), (1, (1,))):
        for row in rows:
            found = Detections(boxes[i][row : row + 1], targets[i].labels[row : row + 1], torch.ones(1))
            only = [FeatureMap(maps[0].data[i : i + 1], 4, ((40, 60),))]
            (got,) = one(only, [found])
            assert isinstance(got.masks, GridMasks)
            p = got.masks.values[0]
            x1, y1, x2, y2 = boxes[i][row].tolist()
            fine = F.interpolate(targets[i].masks[row][None, None].double(), scale_factor=28, mode="nearest")[0, 0]  # type: ignore[index]
            crop = fine[round(y1 * 28) : round(y2 * 28), round(x1 * 28) : round(x2 * 28)]
            share = F.adaptive_avg_pool2d(crop[None], 14)[0]
            other = 1 - p
            if isinstance(output, SoftmaxMasks):
                logits = one.predict(only, _regions(found))[0]
                other = logits.softmax(0)[0]
            expected.append(-(share * p.log() + (1 - share) * other.log()).mean())
    torch.testing.assert_close(losses["mask"], torch.stack(expected).mean(), rtol=1e-6, atol=0)


def _regions(found: Detections):  # type: ignore[no-untyped-def]
    from regio.types import Regions

    return Regions.from_list([found.boxes])


def test_masks_of_no_class_are_kept_for_other_classes() -> None:
    one_for_all = SigmoidMasks(class_agnostic=True)
    four, two = head(one_for_all, 4), head(one_for_all, 2)
    nn.init.normal_(four.mask_logits.weight)
    assert load_all_but_classes(four.state_dict(), two, "four") == []
    assert torch.equal(two.mask_logits.weight, four.mask_logits.weight)
    assert load_all_but_classes(head(classes=4).state_dict(), head(classes=2), "four") == ["mask_logits"]
    assert head(SoftmaxMasks()).class_layers == ("mask_logits",)


def test_masks_of_another_resolution_are_scaled_to_the_boxes() -> None:
    maps, boxes, targets = scene()
    expected = head().losses(maps, boxes, targets)[1]["mask"]
    fine = [replace(t, masks=t.masks.repeat_interleave(3, 1).repeat_interleave(2, 2)) for t in targets]  # type: ignore[union-attr]
    torch.testing.assert_close(head().losses(maps, boxes, fine)[1]["mask"], expected)


def test_images_without_masks_train_their_boxes_only() -> None:
    maps, boxes, targets = scene()
    one = head()
    loss = one.losses(maps, boxes, [replace(t, masks=None) for t in targets])[1]["mask"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in one.parameters())
    none = Targets(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert one.losses(maps, boxes, [none, none])[1]["mask"].item() == 0
    only = one.losses(maps, boxes, [targets[0], none])[1]["mask"]
    assert only.item() > 0
    empty = one(maps, [Detections(b[:0], torch.zeros(0, dtype=torch.int64), b[:0, 0]) for b in boxes])
    assert [len(each.masks) for each in empty] == [0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("output", [SigmoidMasks(), SigmoidMasks(class_agnostic=True), SoftmaxMasks()])
def test_outputs_are_probabilities_of_the_label(output: SigmoidMasks | SoftmaxMasks) -> None:
    assert output.outputs(4) == {SigmoidMasks(): 3, SigmoidMasks(True): 1, SoftmaxMasks(): 4}[output]
    logits = torch.randn(2, output.outputs(4), 5, 5, generator=torch.Generator().manual_seed(0)) * 40  # large ones too
    labels = torch.tensor([1, 3])
    p = output(logits, labels)
    assert p.shape == (2, 5, 5) and bool(((p >= 0) & (p <= 1)).all())
    loss = output.losses(logits, labels, torch.ones(2, 5, 5))
    assert bool(loss.isfinite().all()) and bool((loss >= 0).all())
    torch.testing.assert_close(
        output.losses(logits / 40, labels, output(logits / 40, labels).round()).sum() > 0, torch.tensor(True)
    )


def test_detections_carry_grids_and_paste_on_the_photo() -> None:
    torch.manual_seed(0)
    detector = replace(SMALL, score_threshold=0.0).build(3).eval()
    with torch.no_grad():
        (found,) = detector([torch.randint(0, 256, (3, 200, 330), dtype=torch.uint8)])
    assert isinstance(found.masks, GridMasks) and found.masks.values.shape == (100, 28, 28)
    pasted = found.masks.paste(found.boxes, (200, 330))
    assert pasted.shape == (100, 200, 330)
    x1, y1, x2, y2 = found.boxes[0].tolist()
    outside = pasted[0].clone()
    outside[max(0, int(y1) - 1) : int(y2) + 2, max(0, int(x1) - 1) : int(x2) + 2] = False
    assert not outside.any()


@pytest.mark.slow
def test_masks_are_learned(tmp_path: Path) -> None:
    """A short training on generated scenes finds masks better than the boxes themselves would be."""
    torch.manual_seed(0)
    detector = SMALL.build(6)
    evaluator = MaskEvaluator(Shapes(30, seed=1, size=(96, 128)).with_masks())
    config = TrainConfig(steps=250, batch_size=4, evaluate_every=1000, workers=0, device="cpu")
    numbers = train(
        detector,
        Shapes(300, size=(96, 128)).with_known_masks(),
        evaluator,
        config,
        tmp_path,
        transform=HorizontalFlip(),
    ).numbers
    assert tuple(numbers) == evaluator.names and evaluator.selects == "mask_ap"
    assert numbers["mask_ap50"] > 0.3
    found = evaluate(detector, evaluator).records

    def boxed(row: dict) -> dict:  # type: ignore[type-arg]
        x, y, w, h = row["bbox"]
        return {**row, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}

    truth = evaluator.dataset.to_coco()
    rows = [boxed(row) for row in evaluator.rows(found)]
    assert numbers["mask_ap"] > 1.2 * coco_metrics(truth, rows, "segm").ap


def test_objects_without_a_segmentation(shared_data: Path) -> None:
    """Those of coco_s320, most of which have boxes only."""
    dataset = open_dataset(str(shared_data / "coco_s320" / "annotations" / "instances_val.json"), "all")
    known = dataset.with_known_masks()
    evaluator = MaskEvaluator(known)
    assert 0 < len(evaluator.with_masks) < len(known)
    record = next(i for i, r in enumerate(known.records) if r.segmentations and r.segmentations[0] is None)
    masks = known[record].targets.masks
    assert masks is not None and not masks[0].any()
    with pytest.raises(ValueError, match="objects have no segmentation"):
        dataset.with_masks()
    bare = dataset.subset([record])
    with pytest.raises(ValueError, match="masks: expected segmentations, and none of"):
        bare.with_known_masks()
