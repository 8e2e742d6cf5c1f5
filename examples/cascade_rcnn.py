"""Cascade R-CNN (Cai and Vasconcelos 2018): box heads for IoU 0.5, 0.6 and 0.7, each trained on the boxes that the one
before has refined; scores are the mean of all three. `python examples/cascade_rcnn.py [SEED [STEPS]]` trains it and a
single head on generated scenes, and prints the AP of both at IoU 0.50, 0.75 and 0.90."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from regio.backbones import efficientnet_lite0
from regio.boxes import BoxCoder, clip
from regio.data import Shapes
from regio.evaluate import BoxEvaluator
from regio.matching import BalancedSampler, Matcher, RegionSampler, TakeAll
from regio.optimisation import AdamW
from regio.proposals import Anchors
from regio.regions import Levels, RoIAlign
from regio.roi_heads import FastRCNNHead, FullyConnected
from regio.systems import faster_rcnn_fpn
from regio.train import TrainConfig, train
from regio.types import Regions


class Stage(FastRCNNHead):
    def __init__(self, iou, precision, earlier=(), last=False):
        sampler = RegionSampler(Matcher(iou, iou), TakeAll() if earlier else BalancedSampler(64, 0.25), not earlier)
        coder, trunk = BoxCoder(tuple(precision * w for w in (10, 10, 5, 5))), FullyConnected(64, (7, 7), 256)
        super().__init__(Levels(RoIAlign(7)), trunk, 256, 7, class_agnostic=True, sampler=sampler, coder=coder)
        self.stages, self.last = (*earlier, self), last  # in a tuple: the heads before are not parts of this one

    def forward(self, maps, found):
        r = Regions.from_list([each.boxes for each in found])
        outputs = [stage.predict(maps, r) for stage in (self.stages if self.last else (self,))]
        if not self.last:
            return [replace(f, boxes=b) for f, b in zip(found, self.refine(outputs[0], r, maps), strict=True)]
        scores = torch.stack([self.scores(output.logits) for output in outputs]).mean(0)
        return self.detect(scores, outputs[-1].deltas, [each.boxes for each in found], maps[0].image_sizes)

    def losses(self, maps, boxes, targets):
        r, labels, objects, _ = self.sampler(boxes, targets)
        output = self.predict(maps, r)
        return self.refine(output, r, maps), self.compare(output, r, labels, objects)

    def refine(self, output, r, maps):
        boxes = Regions(self.coder.decode(output.deltas[:, 0].detach(), r.boxes), r.image)
        return [clip(*each) for each in zip(boxes.split(len(maps[0].image_sizes)), maps[0].image_sizes, strict=True)]


SEED, STEPS = (int(word) for word in (*sys.argv[1:], *("0", "600")[len(sys.argv) - 1 :]))
for stages in (1, 3):
    torch.manual_seed(SEED)
    scale = {"short_side": 160, "long_side": 240, "anchors": Anchors(((16,), (32,), (64,), (128,)))}
    detector = faster_rcnn_fpn(7, efficientnet_lite0((3, 4, 5)), channels=64, regions_per_image=64, hidden=256, **scale)
    first, second = Stage(0.5, 1, last=stages == 1), Stage(0.6, 2)
    detector.roi_heads = torch.nn.ModuleList([first, second, Stage(0.7, 3, (first, second), last=True)][:stages])
    config = TrainConfig(steps=STEPS, batch_size=8, optimizer=AdamW(1e-3), evaluate_every=1e9, seed=SEED)
    evaluator = BoxEvaluator(Shapes(100, seed=1))
    found = train(detector, Shapes(500), evaluator, config, Path("runs", f"cascade-{stages}-{SEED}"))
    print(stages, "stages, AP50, 75, 90:", *evaluator.coco(found.records).ap_by_iou[[0, 5, 8]].round(3).tolist())
