"""The region operation on the image itself, where R-CNN has it: the backbone is the identity, a region feature is the
crop of a box warped to 64 x 64 pixels, and a network for images is the head. Boxes come from outside, here a grid.
`python examples/image_crops.py [SEED [STEPS]]` trains it on generated scenes and prints its AP50 and AP75."""

import sys
from pathlib import Path

import torch
from torch import nn

from regio.boxes import clip
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.optimisation import AdamW
from regio.preprocess import Preprocess
from regio.regions import Levels, RoIAlign
from regio.roi_heads import FastRCNNHead
from regio.train import TrainConfig, train
from regio.types import FeatureMap


class Pixels(nn.Module):
    def forward(self, data):
        return [FeatureMap(data, stride=1)]


def convolutions(width=128):
    layers = []
    for i, o in ((3, 16), (16, 32), (32, 64), (64, width)):
        layers += [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 512), nn.ReLU())


def grid(size, sides=(24, 40, 64, 100)):
    """Square boxes of several sizes, each half a side from the next."""
    corners = [
        torch.cartesian_prod(torch.arange(-s / 4, size[1], s / 2), torch.arange(-s / 4, size[0], s / 2)) for s in sides
    ]
    return clip(torch.cat([torch.cat([xy, xy + s], 1) for xy, s in zip(corners, sides, strict=True)]), size)


SEED, STEPS = (int(word) for word in (*sys.argv[1:], *("0", "600")[len(sys.argv) - 1 :]))
torch.manual_seed(SEED)
sampler = RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(64, 0.25))
head = FastRCNNHead(Levels(RoIAlign(64, samples=2)), convolutions(), 512, num_classes=7, sampler=sampler)
scale = Preprocess(160, 240, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), divisor=1)
detector = TwoStageDetector(preprocess=scale, backbone=Pixels(), neck=nn.Identity(), proposals=None, roi_heads=[head])
scenes, unseen = (
    data.with_proposals({record.id: grid(record.size).numpy() for record in data.records})
    for data in (Shapes(500), Shapes(100, seed=1))
)
evaluator = BoxEvaluator(unseen)
config = TrainConfig(steps=STEPS, batch_size=8, optimizer=AdamW(1e-3), evaluate_every=1e9, seed=SEED)
found = train(detector, scenes, evaluator, config, Path("runs", f"crops-{SEED}"))
print("AP50, AP75:", *evaluator.coco(found.records).ap_by_iou[[0, 5]].round(3).tolist())
