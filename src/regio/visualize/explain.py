"""Which cells of the feature map an extractor reads for a box, and where deformable layers read, as pictures: what
`regio explain` draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from regio.analysis import MOST_PARTS, extractor_of
from regio.backbones import efficientnet_lite0
from regio.boxes import resize_boxes
from regio.config import EXTRACTORS
from regio.detector import TwoStageDetector
from regio.preprocess import Preprocess
from regio.regions import RegionExtractor, RoIAlign, RoIPool
from regio.settings import named
from regio.types import FeatureMap, Regions
from regio.visualize.sample_positions import moved_bins_figure, offsets_figure, quantisation_figure
from regio.visualize.sampling_points import PhotoPoints, photo_points, points_on_objects, sampling_points_figure
from regio.visualize.weights import parts_figure, terms_figure

__all__ = ["ReadBox", "pictures", "points_picture", "read_by", "read_untrained"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ReadBox:
    """A box about to be read from a map.

    image: uint8 [3, h, w] at the scale of the map. box: in its pixels. x: the map of the level that the box is read
    from, of this one image. source: where the map comes from, in words.
    """

    image: Tensor
    box: Box
    x: FeatureMap
    extractor: RegionExtractor
    name: str
    source: str

    @property
    def regions(self) -> Regions:
        return Regions(
            torch.tensor([self.box], device=self.x.data.device), torch.zeros_like(self.x.data[:1, 0, 0, 0]).long()
        )

    def require_few_parts(self) -> None:
        """Raise ValueError for more parts than can be drawn."""
        rows, columns = self.extractor.bins
        if rows * columns > MOST_PARTS:
            raise ValueError(
                f"{self.source}: expected an extractor of up to {MOST_PARTS} parts, got {self.name} of "
                f"{rows} x {columns}, whose weights cannot be drawn"
            )


def read_untrained(pixels: Tensor, box: Box, name: str | None, device: torch.device) -> ReadBox:
    """A new extractor on the last map of the default backbone, at stride 16 as in Gu et al. 2018.

    pixels: the photo, uint8 [3, H, W]. box: (x1, y1, x2, y2) in its pixels. name: one of `regio.config.EXTRACTORS`.
    Raises ValueError for any other name, and for None.
    """
    if name is None:
        raise ValueError(f"extractor: expected one of {', '.join(EXTRACTORS)}, or a checkpoint in --weights")
    make = named(EXTRACTORS, name, "extractor")
    backbone = efficientnet_lite0(levels=(5,), output_stride=16).eval().to(device)
    preprocess = Preprocess(600, 1000, backbone.mean, backbone.std)
    batch = preprocess([pixels.to(device)])
    torch.manual_seed(0)  # the same pictures every time
    extractor = make().build(backbone.channels[-1]).eval().to(device)
    with torch.no_grad():
        x = replace(backbone(batch.data)[0], sizes=tuple(batch.sizes))
    source = "a new extractor on ImageNet features"
    return _scaled(pixels, box, batch.sizes[0], x, extractor, name, source)


def read_by(detector: TwoStageDetector, pixels: Tensor, box: Box, name: str | None, source: str) -> ReadBox:
    """The extractor of the first head of `detector`, on the map from which it reads this box.

    pixels, box: as in `read_untrained`. name: the extractor's, that of its class unless given. source: the detector, in
    words. Raises TypeError as `regio.analysis.extractor_of`.
    """
    levels = extractor_of(detector)
    device = next(detector.parameters()).device
    with torch.no_grad():
        batch, maps = detector.features([pixels.to(device)])
    size = batch.sizes[0]
    scaled = resize_boxes(torch.tensor([box], device=device), (pixels.shape[1], pixels.shape[2]), size)
    r = Regions(scaled, torch.zeros(1, dtype=torch.int64, device=device))
    level = int(levels.assign(maps, r)) if len(maps) > 1 else 0
    extractor = levels.by_level(maps)[level]
    return _scaled(pixels, box, size, maps[level], extractor, name or type(extractor).__name__, source)


def _scaled(
    pixels: Tensor, box: Box, size: tuple[int, int], x: FeatureMap, extractor: RegionExtractor, name: str, source: str
) -> ReadBox:
    image = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True).round().clamp(0, 255)
    x1, y1, x2, y2 = resize_boxes(torch.tensor([box]), (pixels.shape[1], pixels.shape[2]), size)[0].tolist()
    return ReadBox(image[0].to(torch.uint8), (x1, y1, x2, y2), x, extractor, name, source)


@torch.no_grad()
def pictures(read: ReadBox) -> dict[str, Figure]:
    """The pictures by the names of their files; see `regio explain --help`. Raises ValueError for more parts than can
    be drawn: those of R-CNN's crop are the pixels of an image."""
    image, box, x, extractor, r = read.image, read.box, read.x, read.extractor, read.regions
    read.require_few_parts()
    rows, columns = extractor.bins
    where = f"{x.size[1]} x {x.size[0]} cells at stride {x.stride:g}; {_end(read.source)}"
    title = f"{read.name}: {f'{rows} x {columns}' if columns > 1 else rows} parts"
    weights = extractor.weights(x, r)[0]
    figures = {"weights.png": parts_figure(image, weights, extractor.bins, x.stride, box, title, where)}
    bins = extractor.bins if min(extractor.bins) > 1 else (7, 7)
    pool, align = RoIPool(bins), RoIAlign(bins, samples=2)
    rounding = f"The box, rounded or not, in {bins[0]} x {bins[1]} bins"
    figures["rounding.png"] = quantisation_figure(image, x, box, pool, align, rounding, where)
    terms = extractor.terms_alone()
    if terms:
        maps = {name: each.weights(x, r)[0] for name, each in {**terms, "both": extractor}.items()}
        figures["terms.png"] = terms_figure(image, maps, x.stride, box, f"{title}, the largest weight", where)
    samples = extractor.moved_samples(x, r)
    if samples is not None:
        figures["offsets.png"] = offsets_figure(image, x, box, *samples, f"{title}, moved by offsets", where)
    shifts = extractor.part_shifts(x, r)
    if shifts is not None:
        each = shifts[0]
        largest = int(each.square().sum(-1).sqrt().mean((1, 2)).argmax())
        of = f"range {largest + 1} of {len(each)} of its channels, which moves the most; " if len(each) > 1 else ""
        figures["bins.png"] = moved_bins_figure(image, x, box, each[largest], f"{title}, moved", of + where)
    return figures


def points_picture(
    detector: TwoStageDetector, pixels: Tensor, name: str, at: Sequence[tuple[float, float]], source: str
) -> Figure:
    """Where stacked deformable layers of the backbone read, for units at the places `at` (x, y) in pixels of the photo
    `pixels`, uint8 [3, H, W]; without such places, for one on the background, on the smallest and on the largest of the
    objects that the detector finds with at least half the score of its best one.

    name: of the photo. source: the detector, in words. Raises ValueError where it finds nothing, or has no proposal
    network; and as `regio.visualize.sampling_points.photo_points`.
    """
    if at:
        photo = photo_points(detector, pixels, name, {f"at {x:g},{y:g}": (x, y) for x, y in at})
    else:
        photo = _points_on_detections(detector, pixels, name, source)
    return sampling_points_figure([photo], f"Where {photo.layers} read, one on the other", _end(source))


@torch.no_grad()
def _points_on_detections(detector: TwoStageDetector, pixels: Tensor, name: str, source: str) -> PhotoPoints:
    if detector.proposals is None:
        raise ValueError(f"--at: expected places x,y, since {source} finds no boxes by itself")
    (found,) = detector([pixels.to(next(detector.parameters()).device)])
    if not len(found.boxes):
        raise ValueError(f"--at: expected places x,y, since {source} finds nothing in {name}")
    return points_on_objects(detector, pixels, name, found.boxes[found.scores >= found.scores.max() / 2].cpu())


def _end(source: str) -> str:
    return source if len(source) <= 50 else f"…{source[-49:]}"
