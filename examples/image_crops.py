"""The region operation on the image itself, where R-CNN has it: the backbone is the identity, a region feature is the
crop of a box warped to 64 x 64 pixels, and a network for images is the head. Boxes come from outside, here a grid.
`python examples/image_crops.py [SEED [STEPS]]` trains it on generated scenes and prints AP50 and AP75."""

import sys

import torch
from torch import nn

from regio.boxes import clip
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.evaluate import coco_metrics, detections_to_coco
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.preprocess import Preprocess
from regio.regions import Levels, RoIAlign
from regio.roi_heads import FastRCNNHead
from regio.types import FeatureMap


class Pixels(nn.Module):
    """The image as a map of stride 1, all that a backbone and a neck would make of it."""

    def forward(self, data):
        return [FeatureMap(data, stride=1)]


def network():
    """From crops [R, 3, 64, 64] to vectors [R, 512]: four convolutions."""
    widths = (3, 16, 32, 64, 128)
    pairs = zip(widths, widths[1:], strict=False)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 512), nn.ReLU())


def grid(image, sides=(24, 40, 64, 100)):
    """Square boxes of several sizes, each half a side from the next."""
    height, width = image.shape[1:]
    centres = [torch.cartesian_prod(torch.arange(0, width, s / 2), torch.arange(0, height, s / 2)) for s in sides]
    halves = [torch.full_like(c, s / 2) for c, s in zip(centres, sides, strict=True)]
    return clip(
        torch.cat([torch.cat([c - h, c + h], 1) for c, h in zip(centres, halves, strict=True)]), (height, width)
    )


def main(seed=0, steps=300):
    torch.manual_seed(seed)
    sampler = RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(64, 0.25))
    detector = TwoStageDetector(
        preprocess=Preprocess(160, 240, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), divisor=1),
        backbone=Pixels(),
        neck=nn.Identity(),
        proposals=None,
        roi_heads=[FastRCNNHead(Levels(RoIAlign(64, samples=2)), network(), 512, 7, sampler=sampler)],
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    scenes, unseen = Shapes(1000), Shapes(50, seed=1)
    for _ in range(steps):
        samples = [scenes[i] for i in torch.randint(len(scenes), (8,)).tolist()]
        images, targets = [s.image for s in samples], [s.targets for s in samples]
        losses = detector.losses(images, targets, [grid(image) for image in images])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    detector.eval()
    with torch.no_grad():
        found = [(s.id, detector([s.image], [grid(s.image)])[0]) for s in unseen]
    rows = [row for i, each in found for row in detections_to_coco(each, i, unseen.category_ids)]
    metrics = coco_metrics(unseen.to_coco(), rows)
    print(f"AP50 {metrics.ap50:.3f}, AP75 {metrics.ap75:.3f} after {steps} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
