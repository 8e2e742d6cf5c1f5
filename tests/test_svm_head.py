"""The parts of R-CNN's detector: whole networks on crops, the head of SVMs and regressions, fine-tuning."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.backbones import ImageItself
from regio.boxes import BoxCoder
from regio.checkpoints import Card, load_weights, save
from regio.classifiers import split_classifier
from regio.detector import TwoStageDetector
from regio.postprocess import Postprocess
from regio.preprocess import ShrinkingPreprocess
from regio.ready import ReadyDetector
from regio.regions import Levels, RoIAlign
from regio.roi_heads import FullyConnected, SVMHead, WholeNetwork
from regio.systems.rcnn import fine_tuning
from regio.types import Detections, FeatureMap, Regions, Targets
from tests.recipes.test_fitted_head import detector


def fitted(**options: object) -> tuple[SVMHead, FeatureMap, Tensor]:
    """A head with random weights, a map of two images, and ten boxes of each."""
    torch.manual_seed(0)
    head = SVMHead(Levels(RoIAlign(2)), FullyConnected(3, (2, 2), 6), 4, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for linear in (head.class_logits, head.box_deltas):
            if linear is not None:
                linear.weight.normal_(std=1.0 if linear is head.class_logits else 0.05)
                linear.bias.normal_(std=0.1)
    corner = 30 * torch.rand(10, 2)
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(10, 2)], 1)
    return head, FeatureMap(torch.randn(2, 3, 16, 16), 4), boxes


def found_of(head: SVMHead, x: FeatureMap, boxes: Tensor) -> list[Detections]:
    given = Detections(boxes, torch.ones(len(boxes), dtype=torch.int64), torch.ones(len(boxes)))
    return head([x], [given] * x.data.shape[0])


def test_scores_and_boxes_by_hand() -> None:
    """Margins on fc7, boxes from pool5; of one class alone no box is suppressed at an IoU of 1."""
    head, x, boxes = fitted(postprocess=Postprocess(-torch.inf, nms_threshold=1.0))
    r = Regions(boxes, torch.zeros(10, dtype=torch.int64))
    layers = head.trunk.layers(RoIAlign(2)(x, r))
    scores = layers["fc7"] @ head.class_logits.weight.T + head.class_logits.bias
    assert head.box_deltas is not None
    moves = (layers["pool5"] @ head.box_deltas.weight.T + head.box_deltas.bias).unflatten(1, (3, 4))
    found = found_of(head, x, boxes)[0]
    assert len(found) == 30
    for box, label, score in zip(found.boxes, found.labels.tolist(), found.scores, strict=True):
        row = int((scores[:, label - 1] - score).abs().argmin())
        torch.testing.assert_close(score, scores[row, label - 1])
        expected = BoxCoder().decode(moves[row, label - 1][None], boxes[row][None])[0].clamp(0, 64)
        torch.testing.assert_close(box, expected, rtol=1e-4, atol=1e-3)


def test_boxes_stay_without_a_regression() -> None:
    head, x, boxes = fitted(box_layer=None)
    assert head.box_deltas is None
    assert list(head.read_layers) == ["fc7"]
    for box in found_of(head, x, boxes)[1].boxes:
        assert float((boxes - box).abs().amax(1).min()) < 1e-4


@pytest.mark.parametrize("layer", ["pool5", "fc6", "fc7"])
def test_any_layer_is_read(layer: str) -> None:
    head, x, boxes = fitted(layer=layer, box_layer="fc6")
    r = Regions(boxes, torch.zeros(10, dtype=torch.int64))
    layers = head.layers([x], r)
    assert {name: y.shape[1] for name, y in layers.items()} == head.read_layers
    output = head.predict([x], r)
    torch.testing.assert_close(output.logits, layers[layer] @ head.class_logits.weight.T + head.class_logits.bias)
    assert output.deltas.shape == (10, 4, 4)
    assert not output.deltas[:, 0].any()


def test_chunks_change_nothing() -> None:
    head, x, boxes = fitted(chunk=3)
    whole, r = fitted(chunk=100)[0], Regions(boxes, torch.arange(10) % 2)
    for a, b in zip(head.predict([x], r), whole.predict([x], r), strict=True):
        torch.testing.assert_close(a, b)
    assert [len(some) for some in r.chunks(3)] == [3, 3, 3, 1]
    none = r[torch.zeros(0, dtype=torch.int64)]
    assert [len(some) for some in none.chunks(3)] == [0]
    assert head.predict([x], none).deltas.shape == (0, 4, 4)


def test_only_the_best_of_a_class_are_candidates() -> None:
    head, x, boxes = fitted(per_class=3, postprocess=Postprocess(-torch.inf, nms_threshold=1.0))
    for image, found in enumerate(found_of(head, x, boxes)):
        scores = head.predict([x], Regions(boxes, torch.full((10,), image))).logits
        for label in (1, 2, 3):
            own = found.scores[found.labels == label]
            torch.testing.assert_close(own, scores[:, label - 1].topk(3).values)


def test_thresholds_are_per_class() -> None:
    head, x, boxes = fitted(postprocess=Postprocess(-torch.inf, nms_threshold=1.0))
    scores = head.predict([x], Regions(boxes, torch.zeros(10, dtype=torch.int64))).logits
    head.thresholds.copy_(torch.tensor([torch.inf, -torch.inf, float(scores[:, 2].median().detach())]))
    labels = found_of(head, x, boxes)[0].labels
    assert [int((labels == label).sum()) for label in (1, 2, 3)] == [0, 10, 6]


def test_before_it_is_fitted_it_finds_nothing() -> None:
    _, x, boxes = fitted()
    head = SVMHead(Levels(RoIAlign(2)), FullyConnected(3, (2, 2), 6), 4)
    assert [len(found) for found in found_of(head, x, boxes)] == [0, 0]
    assert [len(found) for found in found_of(head, x, boxes[:0])] == [0, 0]
    assert not any(p.requires_grad for p in (*head.class_logits.parameters(), *head.box_deltas.parameters()))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["layer", "box_layer"])
def test_unknown_layers_raise(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected one of pool5, fc6, fc7, which the trunk has, got fc8"):
        fitted(**{name: "fc8"})


def test_alexnet_on_a_crop_is_the_classifier_itself() -> None:
    """pool5 of a crop of 227 pixels is what torchvision's AlexNet pools to 6 x 6, and fc7 what it computes of it."""
    import torchvision

    torch.manual_seed(0)
    backbone, layers = split_classifier("alexnet", pretrained=False, centred=False)
    network, crop = WholeNetwork(backbone, layers).eval(), torch.randn(2, 3, 227, 227)
    with torch.no_grad():
        found = network.layers(crop)
        expected = F.max_pool2d(backbone(crop)[0].data, 3, 2)
        assert expected.shape[2:] == (6, 6)
        torch.testing.assert_close(found["pool5"], expected.flatten(1))
        plain = torchvision.models.alexnet(weights=None).eval()
        plain.features.load_state_dict({**plain.features.state_dict(), **_features(backbone)})
        torch.testing.assert_close(plain.features(crop).flatten(1), found["pool5"])
    assert network.widths == {"pool5": 9216, "fc6": 4096, "fc7": 4096}
    assert {name: y.shape[1] for name, y in found.items()} == network.widths


def _features(backbone: nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix("body."): value for key, value in backbone.state_dict().items()}


def test_fine_tuning_is_a_softmax_over_the_same_network() -> None:
    made = detector()
    tuned = fine_tuning(made, regions_per_image=8, rate=10)
    image, box = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8), torch.tensor([[10.0, 10, 40, 40]])
    targets = Targets(box, torch.tensor([2]))
    torch.manual_seed(0)
    losses = tuned.losses([image], [targets], [torch.cat([box + 1, box + 30])])
    assert list(losses) == ["class"]
    losses["class"].backward()
    assert all(p.grad is not None for p in made.roi_heads[0].trunk.parameters())
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert [name for name in names if ".trunk." not in name] == [
        "roi_heads.0.class_logits.weight",
        "roi_heads.0.class_logits.bias",
    ]
    (found,) = tuned.eval()([image], [box])
    assert all(torch.equal(each, box[0]) for each in found.boxes)


def test_a_checkpoint_holds_the_fit(tmp_path: Path) -> None:
    made = detector()
    head = made.roi_heads[0]
    with torch.no_grad():
        head.thresholds.copy_(torch.tensor([-1.0, -torch.inf, 0, 1, 2, 3]))  # type: ignore[operator, union-attr]
    save(tmp_path / "a.safetensors", made, Card(("a",) * 6))
    other = detector()
    load_weights(tmp_path / "a.safetensors", other)
    for key, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_it_is_made_ready_like_others() -> None:
    made = detector().eval()
    head = made.roi_heads[0]
    assert isinstance(head, SVMHead)
    with torch.no_grad():
        head.class_logits.weight.normal_()
        head.class_logits.bias.zero_()
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 10, 40, 40], [30, 5, 70, 50], [0, 0, 20, 60]])
    ready = ReadyDetector(made, precision="32-true")
    with torch.no_grad():
        (expected,), (found,) = made([image], [boxes]), ready([image], [boxes])
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)


def test_images_are_only_made_smaller() -> None:
    made = ShrinkingPreprocess(60, 100, (0.5,) * 3, (0.25,) * 3, divisor=1)  # type: ignore[arg-type]
    assert [made.size_of(size) for size in ((50, 90), (60, 100), (60, 101), (120, 80))] == [
        (50, 90),
        (60, 100),
        (59, 100),
        (90, 60),
    ]
    image = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8)
    torch.testing.assert_close(made([image]).data[0], (image / 255 - 0.5) / 0.25)


def test_the_image_is_the_map() -> None:
    images = torch.randn(1, 3, 8, 9)
    (x,) = ImageItself()(images)
    assert (x.data is images, x.stride) == (True, 1)
    assert isinstance(detector(), TwoStageDetector)
