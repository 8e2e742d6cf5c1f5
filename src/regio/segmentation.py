"""Semantic segmentation: the class of every pixel.

    x = backbone(images)[-1]; scores = classifier(hidden(x)); upsample to pixels; softmax

Cell i of a map with stride s has its centre at pixel (i + 0.5) s, and between the centres scores are bilinear: a
pixel's scores are those of this surface at the pixel's centre. At the border of an image they are those of the nearest
cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.preprocess import ImageBatch, Preprocess
from regio.types import IGNORED, ClassMap, FeatureMap, Targets

__all__ = ["SegmentationNetwork", "bilinear_at"]

Size = tuple[int, int]

STRIP = 1 << 24  # scores that are upsampled at once: 64 MB


class SegmentationNetwork(nn.Module):
    """Gives every pixel a class with `forward`, trains with `losses`; which of them is called decides, not a mode of
    the module.

    Images are tensors [3, H, W], uint8 in 0..255 or floating point in 0..1, of any sizes. backbone: as that of a
    detector; its last map is read. hidden: layers on the data [N, channels, h, w] of that map. classifier: gives the
    scores [N, C + 1, h, w] of what these give, those of the background first.
    """

    class_layers = ("classifier",)

    def __init__(
        self, *, preprocess: Preprocess, backbone: nn.Module, hidden: nn.Module, classifier: nn.Module
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.hidden = hidden
        self.classifier = classifier

    def features(self, images: Sequence[Tensor]) -> tuple[ImageBatch, FeatureMap]:
        """The batch made of `images`, and the last map of the backbone."""
        batch = self.preprocess(images)
        return batch, self.backbone(batch.data)[-1]

    def scores(self, images: Sequence[Tensor]) -> tuple[ImageBatch, FeatureMap]:
        """The batch made of `images`, and the scores of its cells before the softmax, float32 or wider."""
        batch, x = self.features(images)
        scores: Tensor = self.classifier(self.hidden(x.data))
        wide = torch.promote_types(scores.dtype, torch.float32)
        return batch, replace(x, data=scores.to(wide), sizes=tuple(batch.sizes))

    def forward(self, images: Sequence[Tensor]) -> list[ClassMap]:
        """The class of every pixel of each of `images`, and its probability. Of a large image a strip of rows is made
        at a time, so that no more than 16 million scores are in memory."""
        batch, x = self.scores(images)
        return [
            _classified(scores, size, x.stride, original)
            for scores, size, original in zip(_cells(x), batch.sizes, batch.original, strict=True)
        ]

    def losses(self, images: Sequence[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """`pixel`, the mean cross-entropy over the pixels of the scaled images whose class is known; 0 where there is
        no such pixel.

        `targets` has a class map for each image, on its pixels; that of a scaled image is read at the nearest pixel.
        Padded pixels of the batch do not count. Raises ValueError where a class map is missing, has another size than
        its image or has a label that the network has not.
        """
        batch, x = self.scores(images)
        if len(targets) != len(batch.sizes):
            raise ValueError(f"targets: expected {len(batch.sizes)}, one an image, got {len(targets)}")
        total, count = x.data.new_zeros(()), 0
        for i, (scores, target) in enumerate(zip(_cells(x), targets, strict=True)):
            size = batch.sizes[i]
            truth = _scaled(_class_map(i, target, batch.original[i], len(scores)), size)
            pixels = bilinear_at(scores, *_centres(size, size, x.stride, scores))
            total = total + F.cross_entropy(pixels[None], truth[None].long(), ignore_index=IGNORED, reduction="sum")
            count += int((truth != IGNORED).sum())
        return {"pixel": total / max(count, 1)}


def bilinear_at(x: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """`x` [C, h, w], bilinear between its cells, at every pair of the rows v [H] and the columns u [W]: [C, H, W].

    Cell i is at i; before the first and after the last x is constant. The weights of the cells are products of two hat
    functions (Dai et al. 2017, equation 4), so the sum over cells is two matrix products. Law: it is what
    ``interpolate(mode="bilinear", align_corners=False)`` gives, where the points are those that it has.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _hats(v, x.shape[1]) @ (x @ _hats(u, x.shape[2]).T)


def _hats(at: Tensor, cells: int) -> Tensor:
    """The weights [P, cells] of cells 0, 1, ... at the points [P]."""
    inside = at.clamp(0, cells - 1)
    return (1 - (inside[:, None] - torch.arange(cells, dtype=at.dtype, device=at.device)).abs()).clamp(min=0)


def _cells(x: FeatureMap) -> Iterator[Tensor]:
    """The cells [C + 1, h, w] that belong to each image, without those of the padding."""
    for data, (height, width) in zip(x.data, x.extents, strict=True):
        yield data[:, :height, :width]


def _centres(pixels: Size, scaled: Size, stride: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns, in cells of an image of `scaled` (height, width), of the centres of `pixels` (height,
    width) that it has as given."""
    rows, columns = (
        (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * (side / count / stride) - 0.5
        for count, side in zip(pixels, scaled, strict=True)
    )
    return rows, columns


def _classified(scores: Tensor, scaled: Size, stride: float, original: Size) -> ClassMap:
    v, u = _centres(original, scaled, stride, scores)
    labels = torch.empty(original, dtype=torch.uint8, device=scores.device)
    best = torch.empty(original, dtype=scores.dtype, device=scores.device)
    rows = max(1, STRIP // (len(scores) * original[1]))
    for place in range(0, original[0], rows):
        strip = slice(place, place + rows)
        pixels = bilinear_at(scores, v[strip], u)
        highest, label = pixels.max(0)
        labels[strip], best[strip] = label.to(torch.uint8), (highest - pixels.logsumexp(0)).exp()
    return ClassMap(labels, best)


def _class_map(i: int, target: Targets, size: Size, classes: int) -> Tensor:
    """The class map of image i, of `size`, checked."""
    truth = target.class_map
    if truth is None:
        raise ValueError(f"targets[{i}]: expected a class map, as samples of dataset.with_class_maps() have, got none")
    if truth.shape != size:
        raise ValueError(
            f"targets[{i}]: expected a class map of the size {list(size)} of its image, got {list(truth.shape)}"
        )
    known = truth[truth != IGNORED]
    if known.numel() and int(known.max()) >= classes:
        raise ValueError(f"targets[{i}]: expected labels of 0 .. {classes - 1} or {IGNORED}, got {int(known.max())}")
    return truth


def _scaled(truth: Tensor, size: Size) -> Tensor:
    if truth.shape == size:
        return truth
    return F.interpolate(truth[None, None], size, mode="nearest-exact")[0, 0]
