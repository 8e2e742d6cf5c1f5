"""`regio explain`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from regio.backbones import efficientnet_lite0
from regio.checkpoints import read_card
from regio.cli.runs import new_folder, pick_device
from regio.config import EXTRACTORS, load_detector, named
from regio.data import read_image
from regio.detector import TwoStageDetector
from regio.preprocess import Preprocess, resize_boxes
from regio.regions import LearnedRegionFeatures, Levels, RegionExtractor, RoIAlign, RoIPool
from regio.regions.deformable import DeformableRoIPool
from regio.types import FeatureMap, Regions
from regio.visualize.sampling import offsets_figure, quantisation_figure
from regio.visualize.weights import parts_figure, terms_figure

__all__ = ["Reading", "explain", "parse_box", "pictures"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Reading:
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


def explain(
    image: Annotated[Path, typer.Argument(help="The photo.")],
    *,
    box: Annotated[str, typer.Option(help="x1,y1,x2,y2 in pixels of the photo, of which pixel i covers i to i + 1.")],
    extractor: Annotated[
        str | None, typer.Option(help=f"What reads the box: {', '.join(EXTRACTORS)} (default: that of --weights).")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint whose maps and extractor are used (default: ImageNet's maps).")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the pictures (default: a new one in runs/).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dpi: Annotated[int, typer.Option(min=30, max=600, help="Pixels per inch of the pictures.")] = 150,
) -> None:
    """Draw which cells of the feature map an extractor reads for a box, and with what weight.

    Writes weights.png (the parts' weights over the photo) and rounding.png (RoIPool's rounded bins beside RoIAlign's
    samples for this box); for learned region features also terms.png (geometry alone, appearance alone, both); for
    deformable pooling offsets.png (the samples, and where they come from).

    Without --weights the extractor is new, and reads a map of the default backbone with its ImageNet weights.
    """
    console = Console()
    pixels = read_image(image)
    corners = parse_box(box, (pixels.shape[1], pixels.shape[2]))
    place = pick_device(device)
    if weights is None:
        reading = _untrained(pixels, corners, extractor, place)
    else:
        reading = _trained(pixels, corners, extractor, weights, place)
    figures = pictures(reading)
    folder = new_folder(Path("runs"), None, "explain") if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=dpi)
    console.print(f"{', '.join(figures)} in {folder}", highlight=False)


def parse_box(text: str, size: tuple[int, int]) -> Box:
    """The box that "x1,y1,x2,y2" names in an image of `size` (height, width).

    Raises ValueError unless it is four numbers, x1 < x2 and y1 < y2, inside the image.
    """
    try:
        x1, y1, x2, y2 = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--box: expected four numbers x1,y1,x2,y2, got '{text}'") from None
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"--box: expected x1 < x2 and y1 < y2, got '{text}'")
    height, width = size
    if not (x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height):
        raise ValueError(f"--box: expected a box in the image, 0,0,{width},{height}, got '{text}'")
    return x1, y1, x2, y2


def _untrained(pixels: Tensor, box: Box, name: str | None, device: torch.device) -> Reading:
    """A new extractor on the last map of the default backbone, at stride 16 as in Gu et al. 2018."""
    if name is None:
        raise ValueError(f"--extractor: expected one of {', '.join(EXTRACTORS)}, or a checkpoint in --weights")
    make = named(EXTRACTORS, name, "--extractor")
    backbone = efficientnet_lite0(levels=(5,), output_stride=16).eval().to(device)
    preprocess = Preprocess(600, 1000, backbone.mean, backbone.std)
    batch = preprocess([pixels.to(device)])
    torch.manual_seed(0)  # the same pictures every time
    extractor = make(backbone.channels[-1]).to(device)
    with torch.no_grad():
        x = backbone(batch.data)[0].of_images(batch.sizes)
    source = "a new extractor on ImageNet features"
    return _scaled(pixels, box, batch.sizes[0], x, extractor, name, source)


def _trained(pixels: Tensor, box: Box, name: str | None, weights: Path, device: torch.device) -> Reading:
    """The extractor of a checkpoint, on the map of its detector from which it reads this box."""
    own = read_card(weights).model.get("extractor")
    if name is not None and own is not None and name != own:
        named(EXTRACTORS, name, "--extractor")
        raise ValueError(f"{weights}: its extractor is {own}, not {name}; leave --extractor out, or --weights")
    detector, _ = load_detector(weights)
    detector.to(device).eval()
    with torch.no_grad():
        batch, maps = detector.features([pixels.to(device)])
    levels = _levels(detector)
    size = batch.sizes[0]
    scaled = resize_boxes(torch.tensor([box], device=device), (pixels.shape[1], pixels.shape[2]), size)
    r = Regions(scaled, torch.zeros(1, dtype=torch.int64, device=device))
    level = int(levels.assign(maps, r)) if len(maps) > 1 else 0
    extractor = levels.extractors[level if len(levels.extractors) > 1 else 0]
    assert isinstance(extractor, RegionExtractor)
    return _scaled(pixels, box, size, maps[level], extractor, str(own), str(weights))


def _levels(detector: TwoStageDetector) -> Levels:
    assert isinstance(detector.extractor, Levels)  # as all detectors that a configuration makes
    return detector.extractor


def _scaled(
    pixels: Tensor, box: Box, size: tuple[int, int], x: FeatureMap, extractor: RegionExtractor, name: str, source: str
) -> Reading:
    image = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True).round().clamp(0, 255)
    x1, y1, x2, y2 = resize_boxes(torch.tensor([box]), (pixels.shape[1], pixels.shape[2]), size)[0].tolist()
    return Reading(image[0].to(torch.uint8), (x1, y1, x2, y2), x, extractor, name, source)


@torch.no_grad()
def pictures(reading: Reading) -> dict[str, Figure]:
    """The pictures by the names of their files."""
    image, box, x, extractor, r = reading.image, reading.box, reading.x, reading.extractor, reading.regions
    rows, columns = extractor.bins
    source = reading.source if len(reading.source) <= 50 else f"…{reading.source[-49:]}"
    where = f"{x.size[1]} x {x.size[0]} cells at stride {x.stride:g}; {source}"
    title = f"{reading.name}: {f'{rows} x {columns}' if columns > 1 else rows} parts"
    weights = extractor.weights(x, r)[0]
    figures = {"weights.png": parts_figure(image, weights, extractor.bins, x.stride, box, title, where)}
    bins = extractor.bins if min(extractor.bins) > 1 else (7, 7)
    pool, align = RoIPool(bins), RoIAlign(bins, samples=2)
    rounding = f"The box, rounded or not, in {bins[0]} x {bins[1]} bins"
    figures["rounding.png"] = quantisation_figure(image, x, box, pool, align, rounding, where)
    if isinstance(extractor, LearnedRegionFeatures) and extractor.geometry and extractor.appearance_weight is not None:
        geometry, appearance = copy.deepcopy(extractor), copy.deepcopy(extractor)
        geometry.appearance_weight, appearance.geometry, appearance.prior = None, False, None
        terms = {"geometry alone": geometry, "appearance alone": appearance, "both": extractor}
        maps = {name: each.weights(x, r)[0] for name, each in terms.items()}
        figures["terms.png"] = terms_figure(image, maps, x.stride, box, f"{title}, the largest weight", where)
    if isinstance(extractor, DeformableRoIPool):
        offsets = extractor.offsets([x], r, torch.zeros_like(r.image))
        moved, unmoved = (extractor.samples(x, r, each) for each in (offsets, torch.zeros_like(offsets)))
        figures["offsets.png"] = offsets_figure(image, x, box, moved, unmoved, f"{title}, moved by offsets", where)
    return figures
