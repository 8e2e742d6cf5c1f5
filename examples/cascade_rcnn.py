"""Cascade R-CNN (Cai and Vasconcelos 2018): three box heads, for IoU 0.5, 0.6 and 0.7, each trained on the boxes that the
one before has refined; scores are the mean of all three. `python examples/cascade_rcnn.py [SEED [STEPS]]` trains it and
one with a single head on generated scenes and prints the AP of both at IoU 0.50, 0.75 and 0.90."""

import sys
from dataclasses import replace

import torch

from regio.backbones import efficientnet_lite0
from regio.boxes import BoxCoder, clip
from regio.matching import BalancedSampler, Matcher, RegionSampler, TakeAll
from regio.proposals import Anchors
from regio.regions import Levels, RoIAlign
from regio.roi_heads import FastRCNNHead, FullyConnected
from regio.types import Regions


class Stage(FastRCNNHead):
    def __init__(self, iou, precision, earlier=(), last=False):
        sampler = RegionSampler(Matcher(iou, iou), TakeAll() if earlier else BalancedSampler(64, 0.25), not earlier)
        coder, levels = BoxCoder(tuple(precision * w for w in (10, 10, 5, 5))), Levels(RoIAlign(7, samples=2))
        trunk = FullyConnected(64, (7, 7), 256)
        super().__init__(levels, trunk, 256, 7, class_agnostic=True, sampler=sampler, coder=coder)
        self.stages, self.last = (*earlier, self), last  # in a tuple: the heads before are not parts of this one

    def forward(self, maps, found):
        r = Regions.from_list([each.boxes for each in found])
        outputs = [stage.predict(maps, r) for stage in (self.stages if self.last else (self,))]
        if not self.last:
            return [replace(f, boxes=b) for f, b in zip(found, self.refine(outputs[0], r, maps), strict=True)]
        scores = torch.stack([self.scores(output.logits) for output in outputs]).mean(0)
        return self.detect(scores, outputs[-1].deltas, [each.boxes for each in found], maps[0].image_sizes)

    def losses(self, maps, boxes, targets):
        sample = self.sampler(boxes, targets)
        output = self.predict(maps, sample.regions)
        losses = self.compare(output, sample.regions, sample.labels, sample.objects)
        return self.refine(output, sample.regions, maps), losses

    def refine(self, output, r, maps):
        boxes = Regions(self.coder.decode(output.deltas[:, 0].detach(), r.boxes), r.image)
        sizes = maps[0].image_sizes
        return [clip(each, size) for each, size in zip(boxes.split(len(sizes)), sizes, strict=True)]


for heads in (1, 3):
    torch.manual_seed(seed := int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    backbone, anchors = efficientnet_lite0((3, 4, 5)), Anchors(((16,), (32,), (64,), (128,)))
    options = {"short_side": 160, "long_side": 240, "regions_per_image": 64, "channels": 64, "hidden": 256}
