"""Exported detectors find what the detector finds."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from regio import __version__, regions
from regio.backbones import Backbone, Chain, Level
from regio.backbones.deformable import deformable_layers, with_deformable
from regio.boxes import clip, iou, resize_boxes, sides
from regio.checkpoints import Card, load_weights, save
from regio.config import model_to_dict
from regio.config.extractors import RoIPool
from regio.config.systems import FasterRCNN
from regio.detector import TwoStageDetector
from regio.export import DetectorGraph, export_onnx, export_torch
from regio.export.files import onnx_program
from regio.export.graph import OUTPUTS, SizedMap, scaled_batch, scaled_sizes
from regio.export.onnx_forms import forms, with_onnx_pooling
from regio.kernels.sample_grid import sample_grid
from regio.kernels.sample_points import sample_points
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.roi_heads import BoxHead, FastRCNNHead
from regio.systems import faster_rcnn_fpn, mask_rcnn_fpn, rfcn, rpn_fpn
from regio.types import Detections, FeatureMap, Regions
from regio.weights import TORCHVISION
from tests.test_cli import regio

onnx = pytest.importorskip("onnx", reason='ONNX is exported with the packages of pip install ".[export]"')
pytest.importorskip("onnxscript", reason='ONNX is exported with the packages of pip install ".[export]"')
onnxruntime = pytest.importorskip("onnxruntime", reason="exported files are run by onnxruntime")

LABELS = ("a", "b", "c", "d")
SIZES = [[[100, 90], [77, 60]], [[61, 203]], [[128, 128], [48, 48], [199, 30]]]
"""Of the images of three batches. None is a multiple of 32 but one, some are scaled up and some down."""
THIN = [1, 400]
"""The size of an image in which nothing is proposed: scaled, it is one pixel high."""
GREY = 128


class Body(nn.Module):
    """A backbone small enough to be exported in a second: maps of stride 8 and 16. Of a grey image they are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.first = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.second = nn.Conv2d(12, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(self.stem(x).relu())
        return [first, self.second(first.relu())]


def backbone(*levels: int) -> Backbone:
    return Backbone(Body(), [Level(3, 12, 8), Level(4, 16, 16)], levels=levels, mean=(GREY / 255,) * 3)


SCALE = {"channels": 16, "short_side": 96, "long_side": 160}
ANCHORS = Anchors(((16.0,), (32.0,), (64.0,)))
ON_ONE_MAP = Anchors(((16.0, 32.0, 64.0),))


@torch.no_grad()
def distinct(detector: TwoStageDetector) -> TwoStageDetector:
    """With weights of predictions large enough for detections of different boxes, classes, scores and masks.

    Proposals for heads are all anchors as they are, cut to the image: what rounding changed in a choice of proposals
    would change the whole detector. `proposals_alone` is for that choice.
    """
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()
    _, maps = detector.features([torch.from_numpy(batch([[100, 120]])[0])])
    network = detector.proposals
    assert isinstance(network, RPN)
    logits, deltas = (torch.cat(each, 1) for each in network.predict(network.levels(maps)))
    network.objectness.weight.mul_(2 / logits.std())
    if len(detector.roi_heads) == 0:
        network.deltas.weight.mul_(0.3 / deltas.std())
        network.test_filter = ProposalFilter(500, 200, nms_threshold=0.7, min_size=2.0, score_threshold=0.4)
        return detector.eval()
    network.deltas.weight.zero_()
    network.test_filter = ProposalFilter(10**6, 10**6, nms_threshold=1.0, min_size=2.0)
    seen = Regions.from_list([each.boxes[::10] for each in network(maps)])
    for head in detector.roi_heads:
        head.extractor.canonical_size = 24  # so that more than one map is read
        if isinstance(head, FastRCNNHead):
            mean, rows = head.trunk(head.extractor(maps, seen)).mean(0), head.class_logits.weight
            rows.sub_(torch.outer(rows @ mean, mean) / mean.square().sum())  # or all boxes are of one class
            logits, deltas = head.predict(maps, seen)
            rows.mul_(3 / logits.std(0).mean())
            head.class_logits.bias[0] = 4  # and nothing, where nothing is seen
            head.box_deltas.weight.mul_(1 / deltas.std(0).mean())
            head.postprocess = replace(head.postprocess, min_size=2.0)
        else:
            head.mask_logits.weight.mul_(3 / head.predict(maps, seen[torch.arange(9)]).std())
    return detector.eval()


def pyramid(extractor: regions.RegionExtractor | None = None) -> TwoStageDetector:
    return faster_rcnn_fpn(5, backbone(3, 4), extractor, hidden=32, anchors=ANCHORS, **SCALE)


def with_masks() -> TwoStageDetector:
    torch.manual_seed(0)
    return distinct(mask_rcnn_fpn(5, backbone(3, 4), hidden=32, mask_channels=8, anchors=ANCHORS, **SCALE))


def proposals_alone() -> TwoStageDetector:
    torch.manual_seed(0)
    return distinct(rpn_fpn(backbone(3, 4), anchors=ANCHORS, **SCALE))


Run = Callable[..., list[np.ndarray]]
"""The outputs of a file from its inputs, by name."""


def in_onnx_runtime(file: Path) -> Run:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, inputs)


def in_openvino(file: Path) -> Run:
    openvino = pytest.importorskip("openvino", reason="exported files are run by openvino")
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda **inputs: [np.array(each) for each in compiled(inputs).values()]


def in_torch(file: Path) -> Run:
    module = torch.export.load(file).module()
    return lambda **inputs: [each.numpy() for each in module(*map(torch.from_numpy, inputs.values()))]


RUNTIMES = {"onnxruntime": in_onnx_runtime, "openvino": in_openvino}
BOTH = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))


def batch(sizes: list[list[int]], seed: int = 0) -> np.ndarray:
    """Smooth noise, and more noise where a batch is padded: nobody may look there."""
    height, width = np.array(sizes).max(0)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((len(sizes), 3, 12, 12), generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, (int(height), int(width)), mode="bilinear")
    return smooth.to(torch.uint8).numpy()


SCORE, SIDE, IOU = 1e-4, 1e-3, 1e-3
"""By how much rounding may move a score, a side in pixels and an IoU across a threshold."""


@dataclass(frozen=True)
class Candidates:
    """The boxes of an image of which suppression leaves the detections, in pixels of the batch.

    group: [P], within which boxes suppress each other. margin: [P], by how many times what rounding may move it each is
    a candidate at all. rule: what is asked of candidates, and how they are suppressed. count: of detections, at most.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    group: Tensor
    margin: Tensor
    rule: Postprocess | ProposalFilter
    count: int

    def require(self, found: Detections, pixels: float) -> None:
        """Assert that greedy suppression finds `found` among these, up to rounding: scores to `SCORE`, boxes to
        `pixels`.

        What it finds is the one choice of at most `count`, best first, of which no two overlap and of which one at
        least as good overlaps each candidate that was not chosen. So two boxes of equal score may be taken in either
        order, with all that follows from it. One too many, one too few and one in another place are not excused.
        """
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert len(found) <= self.count
        margin = self.margin.minimum((self.scores - self.rule.score_threshold) / SCORE)
        margin = margin.minimum((torch.stack(sides(self.boxes)).amin(0) - self.rule.min_size) / SIDE)
        apart = (found.boxes[:, None] - self.boxes).abs().amax(2) / pixels
        apart = apart.maximum((found.scores[:, None] - self.scores).abs() / SCORE)
        apart = apart.masked_fill((found.labels[:, None] != self.labels) | (margin < -1), torch.inf)
        assert bool((apart < 1).any(1).all()), "one that is not a candidate"
        group = self.group[apart.argmin(1)] if len(found) else self.group[:0]
        overlap = iou(found.boxes.double(), found.boxes.double()).masked_fill(group[:, None] != group, 0)
        assert bool((overlap.fill_diagonal_(0) < self.rule.nms_threshold + IOU).all()), "one too many"
        overlap = iou(found.boxes.double(), self.boxes.double()).masked_fill(group[:, None] != self.group, 0)
        suppressed = (overlap > self.rule.nms_threshold - IOU) & (found.scores[:, None] > self.scores - SCORE)
        missed = (margin > 1) & ~suppressed.any(0)
        if len(found) == self.count:
            missed &= self.scores > found.scores[-1] + SCORE
        assert not bool(missed.any()), "one too few"


def candidates(detector: TwoStageDetector, maps: Sequence[FeatureMap]) -> list[Candidates]:
    """Of each image, those of the box head, or of a detector without heads the anchors."""
    network = detector.proposals
    assert isinstance(network, RPN)
    if len(detector.roi_heads) == 0:
        return anchors_of(network, network.levels(maps))
    head = detector.roi_heads[0]
    assert isinstance(head, BoxHead) and isinstance(head.postprocess, Postprocess)
    proposals = [each.boxes for each in network(maps)]
    counts = [len(each) for each in proposals]
    output = head.predict(maps, Regions.from_list(proposals))
    scores = head.scores(output.logits).split(counts)
    found = []
    for box, score, delta, size in zip(
        proposals, scores, output.deltas.split(counts), maps[0].image_sizes, strict=True
    ):
        row, label = (
            each.flatten()
            for each in torch.meshgrid(torch.arange(len(box)), torch.arange(1, score.shape[1] + 1), indexing="ij")
        )
        of_class = delta.expand(-1, score.shape[1] + 1, -1)  # where one refinement is for all
        boxes = clip(head.coder.decode(of_class[row, label], box[row]), size)
        sure = torch.full_like(score.flatten(), torch.inf)
        found.append(
            Candidates(
                boxes, label, score.flatten(), label, sure, head.postprocess, head.postprocess.detections_per_image
            )
        )
    return found


def anchors_of(network: RPN, levels: Sequence[FeatureMap]) -> list[Candidates]:
    """Those of each image, refined, which are candidates if they are among the best of their level."""
    rule = network.test_filter
    logits, deltas = network.predict(levels)
    anchors = torch.cat(network.anchors(levels))
    scores = [each.sigmoid() for each in logits]
    last = [each.topk(min(rule.pre_nms_top_n, each.shape[1])).values[:, -1:] for each in scores]
    margin = torch.cat([(each - worst) / SCORE for each, worst in zip(scores, last, strict=True)], 1)
    level = torch.cat([torch.full_like(each[0], i, dtype=torch.int64) for i, each in enumerate(scores)])
    images = zip(torch.cat(deltas, 1), torch.cat(scores, 1), margin, levels[0].image_sizes, strict=True)
    return [
        Candidates(
            clip(network.coder.decode(delta, anchors), size),
            torch.ones_like(level),
            score,
            level,
            own,
            rule,
            rule.post_nms_top_n,
        )
        for delta, score, own, size in images
    ]


@torch.no_grad()
def compare(
    detector: TwoStageDetector, run: Run, images: np.ndarray, sizes: list[list[int]], pixels: float = 1e-3
) -> list[int]:
    """The numbers of detections in images of `sizes`, which `run` finds as the detector does.

    Boxes to `pixels` of the batch; masks to 1e-4, of the boxes that were found.
    """
    boxes, labels, scores, image, *masks = (
        torch.from_numpy(each) for each in run(images=images, sizes=np.array(sizes))
    )
    assert labels.dtype == image.dtype == torch.int64
    assert image.tolist() == sorted(image.tolist())
    given = [torch.from_numpy(x)[:, :h, :w] for x, (h, w) in zip(images, sizes, strict=True)]
    batch, maps = detector.features(given)
    found = [
        Detections(resize_boxes(boxes[image == i], old, new), labels[image == i], scores[image == i])
        for i, (old, new) in enumerate(zip(batch.original, batch.sizes, strict=True))
    ]
    own = detector(given)
    for i, among in enumerate(candidates(detector, maps)):
        among.require(found[i], pixels)
        among.require(replace(own[i], boxes=resize_boxes(own[i].boxes, batch.original[i], batch.sizes[i])), pixels)
    if masks:
        expected = torch.cat([each.masks.values for each in detector.roi_heads[1](maps, found)])
        torch.testing.assert_close(masks[0], expected, rtol=0, atol=1e-4)
        assert len(expected) == 0 or float(expected.std()) > 0.01
    return [len(each) for each in found]


def as_exported(detector: TwoStageDetector) -> Run:
    """The detector itself, as if it had been exported."""
    return lambda images, sizes: [
        each.detach().numpy() for each in DetectorGraph(detector)(*map(torch.from_numpy, (images, sizes)))
    ]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"nms_threshold": 0.69}, "one too few"),
        ({"nms_threshold": 0.71}, "one too many"),
        ({"post_nms_top_n": 199}, "one too few"),
        ({"post_nms_top_n": 201}, "<= 200"),
        ({"pre_nms_top_n": 200}, "one too few"),
        ({"pre_nms_top_n": 600}, "not a candidate"),
        ({"min_size": 4.0}, "one too few"),
        ({"min_size": 0.1}, "not a candidate"),
        ({"score_threshold": 0.42}, "one too few"),
        ({"score_threshold": 0.38}, "not a candidate"),
    ],
)
def test_what_is_chosen_otherwise_is_noticed(changes: dict[str, float], what: str) -> None:
    """That is, the comparison of the other tests can fail, where a rule differs by little."""
    detector, other = proposals_alone(), proposals_alone()
    images = batch(SIZES[2])
    assert compare(detector, as_exported(other), images, SIZES[2])[0] == 200
    other.proposals.test_filter = replace(other.proposals.test_filter, **changes)  # type: ignore[union-attr, arg-type]
    with pytest.raises(AssertionError, match=what):
        compare(detector, as_exported(other), images, SIZES[2])


def test_what_is_found_elsewhere_is_noticed() -> None:
    detector = with_masks()
    run, images = as_exported(detector), batch(SIZES[0])

    def changed(**by: float) -> Run:
        return lambda **inputs: [
            each + by.get(name, 0) * (np.arange(len(each)) == 7).astype(each.dtype).reshape(-1, *[1] * (each.ndim - 1))
            for name, each in zip(OUTPUTS, run(**inputs), strict=True)
        ]

    assert compare(detector, changed(), images, SIZES[0]) == [100, 100]
    for by in ({"boxes": 0.01}, {"labels": 1}, {"scores": 3e-4}, {"masks": 2e-4}):
        with pytest.raises(AssertionError):
            compare(detector, changed(**by), images, SIZES[0])


def test_what_a_detector_drops_last_is_not_replaced_in_a_graph() -> None:
    detector, images = with_masks(), batch(SIZES[0])
    run, every = as_exported(detector), np.array(SIZES[0])
    boxes = run(images=images, sizes=every)[0]
    rule = detector.roi_heads[0].postprocess
    detector.roi_heads[0].postprocess = replace(rule, min_kept_size=12.0)
    with torch.no_grad():
        found = detector([torch.from_numpy(x)[:, :h, :w] for x, (h, w) in zip(images, SIZES[0], strict=True)])
    kept = run(images=images, sizes=every)
    assert 20 < len(kept[0]) < len(boxes) - 20
    assert np.bincount(kept[3]).tolist() == [len(each) for each in found]
    np.testing.assert_allclose(kept[0], torch.cat([each.boxes for each in found]), rtol=0, atol=1e-3)
    assert len(kept[4]) == len(kept[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], TwoStageDetector]], Path]:
    """The ONNX file of the detector that a function makes; exporting takes some seconds, so each once."""
    files: dict[str, Path] = {}

    def file(make: Callable[[], TwoStageDetector]) -> Path:
        if make.__name__ not in files:
            files[make.__name__] = tmp_path_factory.mktemp("export") / f"{make.__name__}.onnx"
            export_onnx(make(), files[make.__name__], LABELS)
        return files[make.__name__]

    return file


Exported = Callable[[Callable[[], TwoStageDetector]], Path]


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("sizes", SIZES)
def test_a_proposal_network(runtime: Callable[[Path], Run], sizes: list[list[int]], exported: Exported) -> None:
    """Each choice: the best of a level, sides and scores, suppression, the best of all levels."""
    assert min(compare(proposals_alone(), runtime(exported(proposals_alone)), batch(sizes), sizes)) > 100


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("sizes", SIZES)
def test_boxes_and_masks(runtime: Callable[[Path], Run], sizes: list[list[int]], exported: Exported) -> None:
    assert min(compare(with_masks(), runtime(exported(with_masks)), batch(sizes), sizes)) > 20


def nothing(run: Run) -> None:
    """Neither detections nor, in a thin image, proposals for them: no boxes and masks of no objects."""
    sizes = [[100, 90], [60, 70], THIN]
    images = batch(sizes)
    images[1] = GREY
    assert compare(with_masks(), run, images, sizes) == [100, 0, 0]
    for image, size in zip(images[1:], sizes[1:], strict=True):
        shapes = [each.shape for each in run(images=image[None], sizes=np.array([size]))]
        assert shapes == [(0, 4), (0,), (0,), (0,), (0, 28, 28)]


@pytest.mark.slow
@BOTH
def test_nothing(runtime: Callable[[Path], Run], exported: Exported) -> None:
    nothing(runtime(exported(with_masks)))


@pytest.mark.slow
def test_the_file_says_what_it_is(exported: Exported) -> None:
    file = exported(with_masks)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing beside it
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert {each.domain: each.version for each in model.opset_import}[""] == 18
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["images", 3, "height", "width"],
        "sizes": ["images", 2],
        "boxes": ["detections", 4],
        "labels": ["detections"],
        "scores": ["detections"],
        "image": ["detections"],
        "masks": ["detections", 28, 28],
    }
    about = {each.key: each.value for each in model.metadata_props}
    assert about["regio_version"] == __version__ and about["opset"] == "18" and about["scaled_by"] == "graph"
    assert json.loads(about["labels"]) == list(LABELS)
    assert json.loads(about["preprocess"]) == json.loads(json.dumps(with_masks().preprocess.normalisation()))
    assert (about["mask_pasting"], about["mask_threshold"]) == ("PasteAtCentres", "0.5")


def deformable_scores(classes: int) -> regions.RegionExtractor:
    """With offsets that are not zero, and score maps of some size."""
    made = regions.DeformablePositionSensitive(regions.PositionSensitive(regions.RoIAlign((2, 3))), 16, 3, classes)
    nn.init.normal_(made.offset.weight, std=0.5)
    nn.init.normal_(made.scores.weight, std=0.5)
    return made


def learned_with_moved_parts() -> regions.RegionExtractor:
    """With offsets that are not zero."""
    prior = regions.DeformablePrior(16)
    nn.init.normal_(prior.offset.weight, std=0.1)
    return regions.LearnedRegionFeatures(16, 7, 64, 32, prior=prior)


EXTRACTORS: dict[str, Callable[[], regions.RegionExtractor]] = {
    "roi-align, adaptive": lambda: regions.RoIAlign(7, samples=0),
    "roi-align, not aligned": lambda: regions.RoIAlign((5, 7), aligned=False),
    "roi-align-max": lambda: regions.SampleMax(regions.RoIAlign(7)),
    "roi-pool": lambda: regions.RoIPool(7),
    "roi-pool, disjoint": lambda: regions.RoIPool(3, regions.HalfOpenCorners(), regions.DisjointBins()),
    "roi-average-pool": lambda: regions.RoIAveragePool(7),
    "spatial-pyramid": lambda: regions.SpatialPyramidPool((3, 2)),
    "roi-align of twice the area": lambda: regions.Enlarged(regions.RoIAlign(7)),
    "roi-pool of twice the area": lambda: regions.Enlarged(regions.RoIPool(7)),
    "roi-warp": lambda: regions.RoIWarp(7),
    "precise-roi-pool": lambda: regions.PreciseRoIPool(7),
    "rfcn-average-pool": lambda: regions.RFCNAveragePool(7),
    "position-sensitive": lambda: regions.PositionSensitive(regions.RoIAlign((2, 4))),
    "position-sensitive, fewer groups": lambda: regions.PositionSensitive(
        regions.RoIAlign((4, 3), samples=0), group_size=(2, 2), group_major=True
    ),
    "position-sensitive, rfcn": lambda: regions.PositionSensitive(regions.RFCNAveragePool((2, 4))),
    "position-sensitive, largest": lambda: regions.PositionSensitive(regions.RoIPool((2, 4))),
    "position-sensitive, spatial pyramid": lambda: regions.PositionSensitive(
        regions.SpatialPyramidPool((2, 1)), (2, 1)
    ),
    "score maps": lambda: regions.Convolved(nn.Conv2d(16, 18, 1), regions.PositionSensitive(regions.RoIAlign((2, 3)))),
    "a layer first": lambda: regions.Convolved(nn.Conv2d(16, 5, 3, padding=1), regions.RoIAlign(7)),
    "deformable, position-sensitive": lambda: deformable_scores(classes=3),
    "deformable, position-sensitive, one offset": lambda: deformable_scores(classes=1),
    "centre": regions.CentreFeature,
    "triangular": regions.TriangularBins,
    "deformable-roi-pool": lambda: regions.DeformableRoIPool(regions.RoIAlign(7), 16),
    "deformable, as many samples as a box has cells": lambda: regions.DeformableRoIPool(regions.PreciseRoIPool(3), 16),
    "warped crop": lambda: regions.WarpedCrop((9, 8), 2),
    "warped crop, not rounded": lambda: regions.WarpedCrop((9, 8), 2, rounded=False),
    "learned": lambda: regions.LearnedRegionFeatures(16, 7, 64, 32, prior=regions.GridPrior()),
    "learned, in the box": lambda: regions.LearnedRegionFeatures(16, 7, 64, 32, support=regions.BoxSupport(2.0)),
    "learned, moved parts": learned_with_moved_parts,
    "learned, dense": lambda: regions.LearnedRegionFeatures(
        16, 3, 64, 32, mode=regions.Dense(), prior=regions.GridPrior()
    ),
}
ROUNDING = {
    "roi-pool, disjoint",
    "roi-average-pool",
    "spatial-pyramid",
    "rfcn-average-pool",
    "position-sensitive, rfcn",
    "position-sensitive, spatial pyramid",
}
"""Those that divide a box into whole cells. Dividing, OpenVINO multiplies by the reciprocal and finds other cells."""


class Reading(nn.Module):
    """What a head reads of the boxes that are `wanted`, whose number is data, as in a detector."""

    def __init__(self, levels: regions.Levels) -> None:
        super().__init__()
        self.levels = levels

    def forward(
        self, sizes: Tensor, boxes: Tensor, image: Tensor, wanted: Tensor, fine: Tensor, coarse: Tensor
    ) -> Tensor:
        rows = wanted.nonzero()[:, 0]
        maps = [SizedMap(fine, 8, table=sizes), SizedMap(coarse, 16, table=sizes)]
        features: Tensor = self.levels(maps, Regions(boxes[rows], image[rows]))
        return features


def reading(sizes: list[tuple[int, int]], count: int) -> dict[str, Tensor]:
    """The inputs of `Reading` for images of `sizes`, with boxes in, across and beside them."""
    torch.manual_seed(0)
    height, width = np.array(sizes).max(0)
    image = torch.randint(len(sizes), (count,))
    centre, side = torch.rand((count, 2)) * 1.2 - 0.1, torch.rand((count, 2)) * 100
    centre = centre * torch.tensor(sizes)[image].flip(1)
    maps = [torch.randn((len(sizes), 16, -(-height // stride), -(-width // stride))) for stride in (8, 16)]
    boxes = torch.cat([centre - side / 2, centre + side / 2], 1)
    wanted = torch.rand(count) < 0.9
    return dict(zip(INPUTS, (torch.tensor(sizes), boxes, image, wanted, *maps), strict=True))


INPUTS = ("sizes", "boxes", "image", "wanted", "fine", "coarse")


@pytest.mark.parametrize("products", [False, True], ids=["gathered", "products"])
def test_forms_of_groups_are_the_operations(products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two images and two levels, each part with channels of its own; also where the samples are as many as the data
    say, which a graph sees as a size that is no number."""
    torch.manual_seed(0)
    maps = [torch.randn(2, 7, 3, 9, 11), torch.randn(2, 7, 3, 5, 6)]
    image, level, groups = torch.randint(2, (10,)), torch.randint(2, (10,)), [0, 2, 1, 5, 4, 6]
    points, weight = torch.rand(10, 6, 4, 2) * 13 - 2, torch.rand(10, 6, 4)
    if not products:
        expected = sample_points(maps, image, points, weight, level, groups)
        form = forms()[torch.ops.regio.sample_points.default]
        torch.testing.assert_close(form(maps, image, level, [points, weight], groups), expected, rtol=0, atol=1e-5)
    axes = [torch.rand(10, 2, 4) * 9 - 1, torch.rand(10, 2, 4), torch.rand(10, 3, 5) * 9 - 1, torch.rand(10, 3, 5)]
    rows, row_weight, columns, column_weight = axes
    expected = sample_grid(maps, image, rows, columns, row_weight, column_weight, level, groups).flatten(2)
    form = forms()[torch.ops.regio.sample_grid.default]
    if products:
        monkeypatch.setitem(form.__globals__, "isinstance", lambda value, kind: kind is not int)
    torch.testing.assert_close(form(maps, image, level, axes, groups), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors(name: str, tmp_path: Path) -> None:
    """Features to 1e-5 of what they are made of, from images and boxes of another number and size than when recorded;
    also of no boxes."""
    torch.manual_seed(0)
    levels = regions.Levels(EXTRACTORS[name](), regions.FPNLevels(48))
    images, boxes = Dim("images"), Dim("boxes")
    maps = [{0: images, 2: Dim(f"height{i}"), 3: Dim(f"width{i}")} for i in (8, 16)]
    shapes = ({0: images}, {0: boxes}, {0: boxes}, {0: boxes}, *maps)
    graph = with_onnx_pooling(Reading(copy.deepcopy(levels)))
    program = onnx_program(graph, tuple(reading([(70, 90), (40, 60)], 6).values()), shapes, INPUTS, ["features"])
    program.save(tmp_path / "model.onnx")
    inputs = reading([(160, 136), (100, 150), (60, 136)], 60)
    sizes = tuple(map(tuple, inputs["sizes"].tolist()))
    rows = inputs["wanted"]
    with torch.no_grad():
        read = [FeatureMap(inputs[name], stride, sizes) for name, stride in (("fine", 8), ("coarse", 16))]
        boxes = Regions(inputs["boxes"][rows], inputs["image"][rows])
        assert 5 < int(levels.assign(read, boxes).sum()) < len(boxes) - 5
        expected = levels(read, boxes)
    assert float(expected.std()) > 0.1
    for runtime in RUNTIMES.values() if name not in ROUNDING else [in_onnx_runtime]:
        run = runtime(tmp_path / "model.onnx")
        (found,) = run(**{key: value.numpy() for key, value in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
        (found,) = run(**{key: value.numpy() for key, value in (inputs | {"wanted": rows & False}).items()})
        assert found.shape == (0, *expected.shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("modulated", "offset_groups"), [(False, 1), (True, 2)])
def test_a_detector_with_deformable_convolutions(modulated: bool, offset_groups: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = with_deformable(backbone(3, 4), 2, modulated=modulated, offset_groups=offset_groups)
    detector = faster_rcnn_fpn(3, body, hidden=32, anchors=ANCHORS, **SCALE).eval()
    with torch.no_grad():
        for layer in deformable_layers(detector).values():
            layer.offset.bias.uniform_(-2, 2)
    photo = torch.randint(0, 256, (3, 77, 60), dtype=torch.uint8)
    boxes = detector([photo])[0].boxes.detach()
    export_torch(detector, tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    found, *_ = program(photo[None].repeat(3, 1, 1, 1), torch.tensor([[77, 60]] * 3))
    assert len(found) == 3 * len(boxes) > 10
    torch.testing.assert_close(found[: len(boxes)], boxes, rtol=1e-3, atol=0.05)
    export_onnx(detector, tmp_path / "a.onnx")
    (again, *_) = in_onnx_runtime(tmp_path / "a.onnx")(images=photo[None].numpy(), sizes=np.array([[77, 60]]))
    assert abs(len(again) - len(boxes)) <= 2
    assert float(iou(torch.from_numpy(again), boxes).amax(1).median()) > 0.99


def position_sensitive() -> TwoStageDetector:
    return rfcn(5, backbone(3, 4), proposal_channels=8, anchors=ON_ONE_MAP, **SCALE)


def moved_parts() -> TwoStageDetector:
    """R-FCN whose parts move by offsets of each class."""
    pool = regions.PositionSensitive(regions.RoIAlign(7, samples=2))
    scores = regions.DeformablePositionSensitive(pool, 16, 5, classes=5)
    boxes = regions.DeformablePositionSensitive(pool, 16, 4)
    return rfcn(5, backbone(3, 4), scores, boxes, proposal_channels=8, anchors=ON_ONE_MAP, **SCALE)


LAST = {
    position_sensitive: "roi_heads.0.extractor.extractors.0.layer",
    moved_parts: "roi_heads.0.extractor.extractors.0.scores",
}
"""Of each, the layer that makes the maps of which the logits of classes are means."""


@pytest.mark.slow
@pytest.mark.parametrize("make", LAST)
def test_position_sensitive_heads(make: Callable[[], TwoStageDetector], tmp_path: Path) -> None:
    """All classes are found, from boxes that are the same in each runtime: the anchors."""
    torch.manual_seed(0)
    detector = make().eval()
    network, head = detector.proposals, detector.roi_heads[0]
    assert isinstance(network, RPN) and isinstance(head, BoxHead)
    network.test_filter = ProposalFilter(10**6, 10**6, nms_threshold=1.0, min_size=2.0)
    last = detector.get_submodule(LAST[make])
    assert isinstance(last, nn.Conv2d) and isinstance(last.bias, nn.Parameter)
    with torch.no_grad():
        network.deltas.weight.zero_()
        for name, weight in head.named_parameters():
            if name.endswith("weight"):
                weight.normal_(std=weight[0].numel() ** -0.5)
        _, maps = detector.features([torch.from_numpy(batch(SIZES[0])[0])])
        logits = head.predict(maps, Regions.from_list([each.boxes for each in network(maps)])).logits
        scale = 3 / float(logits.std(0).mean())
        last.weight.mul_(scale)
        last.bias.copy_((-scale * logits.mean(0)).repeat_interleave(len(last.bias) // 5))
        assert set(detector([torch.from_numpy(batch(SIZES[0])[0])])[0].labels.tolist()) == {1, 2, 3, 4}
    export_onnx(detector, tmp_path / "a.onnx", LABELS)
    for runtime in RUNTIMES.values() if make is not position_sensitive else [in_onnx_runtime]:  # see ROUNDING
        run = runtime(tmp_path / "a.onnx")
        for sizes in SIZES:
            assert min(compare(detector, run, batch(sizes), sizes, pixels=1e-2)) > 20


@pytest.mark.slow
def test_an_exported_program_of_pytorch(tmp_path: Path) -> None:
    for make in (with_masks, proposals_alone):
        file = tmp_path / f"{make.__name__}.pt2"
        export_torch(make(), file, LABELS)
        run = in_torch(file)
        for sizes in SIZES:
            compare(make(), run, batch(sizes), sizes, pixels=1e-4)
        about = {"regio.json": ""}
        torch.export.load(file, extra_files=about)
        assert json.loads(about["regio.json"])["labels"] == list(LABELS)
    nothing(in_torch(tmp_path / "with_masks.pt2"))


def torchvisions() -> TwoStageDetector:
    """torchvision's Mask R-CNN on one block a stage: its anchors, conventions and layers."""

    def resnet(eps: float) -> Backbone:
        body = ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=lambda width: FrozenBatchNorm2d(width, eps=eps))
        layers = {name: child for name, child in body.named_children() if name not in ("avgpool", "fc")}
        stages = ("layer1", "layer2", "layer3", "layer4")
        levels = [Level(2, 256, 4), Level(3, 512, 8), Level(4, 1024, 16), Level(5, 2048, 32)]
        return Backbone(Chain(layers, stages), levels, levels=(2, 3, 4, 5), mean=(GREY / 255,) * 3)

    torch.manual_seed(0)
    sizes = ((16.0,), (24.0,), (32.0,), (48.0,), (64.0,))
    kind = replace(TORCHVISION["maskrcnn_resnet50_fpn"], backbone=resnet, sizes=sizes, short_side=64, long_side=120)
    detector = kind.build(5)
    detector.roi_heads[0].postprocess = Postprocess(detections_per_image=40)
    return distinct(detector)


@pytest.mark.slow
def test_torchvisions_mask_rcnn(exported: Exported) -> None:
    file, detector = exported(torchvisions), torchvisions()
    assert {each.key: each.value for each in onnx.load(file).metadata_props}["mask_pasting"] == "PasteRounded"
    for runtime in RUNTIMES.values():
        assert compare(detector, runtime(file), batch(SIZES[0]), SIZES[0]) == [40, 40]


@pytest.mark.slow
def test_the_command_and_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default backbone with RoIPool on one map, and the example, which runs where there is no PyTorch."""
    torch.manual_seed(0)
    scale = {"short_side": 64, "long_side": 96, "anchor_sizes": (16.0, 32.0)}
    model = FasterRCNN(channels=16, hidden=32, extractor=RoIPool(), score_threshold=0.2, **scale)
    detector = distinct(model.build(4, pretrained=False))
    save(tmp_path / "best.safetensors", detector, Card(LABELS, (1, 2, 3, 4), model_to_dict(model)))
    assert regio("export", str(tmp_path / "best.safetensors"), "--score", "0.1") == 0
    assert "4 labels" in capsys.readouterr().out
    detector = model.build(4, pretrained=False).eval()
    load_weights(tmp_path / "best.safetensors", detector)
    detector.roi_heads[0].postprocess = replace(detector.roi_heads[0].postprocess, score_threshold=0.1)
    images, sizes = batch([[32, 41]]), [[32, 41]]
    for runtime in RUNTIMES.values():
        assert min(compare(detector, runtime(tmp_path / "best.onnx"), images, sizes)) > 5
    Image.fromarray(images[0].transpose(1, 2, 0)).save(tmp_path / "photo.png")
    example = Path(__file__).parents[1] / "examples" / "onnx_runtime.py"
    program = "import runpy, sys; sys.modules['torch'] = sys.modules['regio'] = None; del sys.argv[0]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", program, example, tmp_path / "best.onnx", tmp_path / "photo.png", "0"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    boxes, labels, scores, _ = in_onnx_runtime(tmp_path / "best.onnx")(images=images, sizes=np.array(sizes))
    for line, label, score, box in zip(printed, labels, scores, boxes, strict=True):
        name, *numbers = line.split()
        assert name == LABELS[label - 1]
        np.testing.assert_allclose(float(numbers[0]), score, rtol=0, atol=6e-4)
        np.testing.assert_allclose([float(n) for n in numbers[1:]], box, rtol=0, atol=6e-2)


def test_images_are_scaled_as_by_the_detector() -> None:
    preprocess = Preprocess(96, 160, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), divisor=16)
    sizes = [(h, w) for h in range(1, 400, 7) for w in range(1, 400, 11)]
    scaled = scaled_sizes(preprocess, torch.tensor(sizes))
    assert scaled.tolist() == [list(preprocess.size_of(size)) for size in sizes]
    for each in (*SIZES, [[96, 100]], [[1, 5], [3, 2]]):
        images, size = torch.from_numpy(batch(each)), torch.tensor(each)
        expected = preprocess([x[:, :h, :w] for x, (h, w) in zip(images, each, strict=True)])
        scaled = scaled_sizes(preprocess, size)
        torch.testing.assert_close(
            scaled_batch(preprocess, images, size, scaled, torch.float32), expected.data, rtol=0, atol=1e-4
        )


def test_a_detector_that_scales_otherwise_takes_scaled_images() -> None:
    detector = proposals_alone()
    detector.preprocess = replace(detector.preprocess, antialias=True)
    graph = DetectorGraph(detector)
    assert not graph.scales
    images, sizes = torch.from_numpy(batch([[96, 128]])), torch.tensor([[96, 128]])
    with torch.no_grad():
        boxes, _, scores, _ = graph(images, sizes)
        (expected,) = detector([images[0]])  # this size is that to which it would be scaled
    torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)


class Custom(FastRCNNHead):
    """A head with a way of its own."""

    def forward(self, maps, found):  # type: ignore[no-untyped-def]
        return found


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    sampled = pyramid(regions.LearnedRegionFeatures(16, 7, 64, 32, mode=regions.Sampled(9, 9)))
    for export in (export_onnx, export_torch):
        with pytest.raises(ValueError, match="extractor: .*mode=sampled"):
            export(sampled, file)
    masked = pyramid(regions.MaskedBins(regions.RoIAlign(2)))
    with pytest.raises(ValueError, match="extractor: MaskedBins has no form in ONNX"):
        export_onnx(masked, file)
    given = proposals_alone()
    given.proposals = None
    with pytest.raises(ValueError, match=r"proposals: expected a proposal network \(RPN\), got none"):
        export_onnx(given, file)
    own = pyramid()
    own.roi_heads[0].__class__ = Custom
    with pytest.raises(ValueError, match="roi_heads: Custom finds detections in a way of its own"):
        export_torch(own, file)
    own.roi_heads[0] = nn.Identity()
    with pytest.raises(ValueError, match="roi_heads: expected box heads and mask heads, got Identity"):
        export_torch(own, file)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("something")
    for export in (export_onnx, export_torch):
        with pytest.raises(FileExistsError, match=r"model\.onnx: exists already"):
            export(proposals_alone(), tmp_path / "model.onnx")
        with pytest.raises(OSError, match=r"model\.onnx"):
            export(proposals_alone(), tmp_path / "model.onnx" / "below.onnx")
    assert (tmp_path / "model.onnx").read_text() == "something"


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert regio("export", "weights", "--format", "tflite") == 2
    assert "'tflite' is not one of 'onnx', 'torch'" in capsys.readouterr().err
    assert regio("export", str(tmp_path / "none.safetensors")) == 2
    assert capsys.readouterr().err.strip() == f"error: {tmp_path / 'none.safetensors'}: no such checkpoint"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r'onnxscript: is not installed, .*; pip install "\.\[export\]"'):
        export_onnx(proposals_alone(), tmp_path / "model.onnx")
