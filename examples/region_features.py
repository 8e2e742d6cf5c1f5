"""Makes the pictures of docs/region_features.md, and prints the numbers of its short trainings (minutes on one core):

python examples/region_features.py docs/images

With --steps 1 --scenes 1 the pictures are made without waiting, of extractors that have learned nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from regio.analysis.divergence import kl_between_parts
from regio.backbones import efficientnet_lite0
from regio.boxes import BoxCoder, iou
from regio.data import SHAPE_CLASSES, Shapes
from regio.kernels.attend import readable
from regio.preprocess import Preprocess
from regio.regions import (
    BoxSupport,
    DeformableRoIPool,
    GridPrior,
    LearnedRegionFeatures,
    PositionSensitive,
    PreciseRoIPool,
    RegionExtractor,
    RoIAlign,
    RoIAveragePool,
    RoIPool,
    RoIWarp,
)
from regio.regions.learned import as_given
from regio.types import FeatureMap, Regions
from regio.visualize.weights import outline, show_image

WIDTH = 8.3  # inches, shown about 830 pixels wide
BOX, INK, FAINT = "#d55e00", "#222222", "#6b6b6b"
CHANNELS, BINS = 64, (3, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000, help="of each of the trainings")
    parser.add_argument("--scenes", type=int, default=200, help="that they see")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, figure: Figure) -> None:
        figure.savefig(arguments.folder / f"region_{name}", dpi=150, pil_kwargs={"optimize": True, "quality": 72})

    shown = read_scenes(8, seed=5)
    save("parts.jpg", image_to_part(shown[4]))
    save("weights.png", weights_of_one_bin())
    save("shift.png", moving_the_box())
    save("groups.png", channel_groups())

    seen, unseen = read_scenes(arguments.scenes, seed=0), read_scenes(min(60, arguments.scenes), seed=1)
    torch.manual_seed(0)
    align, deformable = Reader(RoIAlign(BINS)), Reader(DeformableRoIPool(RoIAlign(BINS), CHANNELS))
    # Equation 9 as it is printed
    plain = Reader(LearnedRegionFeatures(CHANNELS, BINS, 128, 64, feature_encoding=as_given))
    with_prior = LearnedRegionFeatures(CHANNELS, BINS, 128, 64, prior=GridPrior(sigma=1.0), feature_encoding=as_given)
    prior = Reader(with_prior)
    readers = {"RoIAlign": align, "deformable": deformable, "learned": plain, "learned, grid prior": prior}
    for reader in readers.values():
        reader.map(shown[0].x)  # gives the lazy layers their sizes, and their start
    before = {reader: weights(reader, shown[4]) for reader in (plain, prior)}
    for name, reader in readers.items():
        start = measure(reader, unseen)
        train(reader, seen, arguments.steps)
        print(f"{name}\n  before: {start}\n  after:  {measure(reader, unseen)}", flush=True)
    save("offsets.jpg", offsets(deformable, shown))
    rows = {
        "no prior,\nat the start": before[plain],
        "no prior,\ntrained": weights(plain, shown[4]),
        "grid prior,\nat the start": before[prior],
        "grid prior,\ntrained": weights(prior, shown[4]),
    }
    save("learned.jpg", learned(shown[4], rows))
    save("terms.jpg", terms(plain, [shown[4], shown[7]]))


# A training of the extractor and little else


@dataclass(frozen=True)
class Scene:
    """image: uint8 [3, h, w], at the scale at which x was made from it. boxes, labels: [R, 4], [R] of its objects."""

    image: Tensor
    x: FeatureMap
    boxes: Tensor
    labels: Tensor

    @property
    def largest(self) -> Regions:
        """Its largest object."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return Regions(self.boxes[[int(sides.prod(1).argmax())]], torch.zeros(1, dtype=torch.int64))


@torch.no_grad()
def read_scenes(count: int, seed: int) -> list[Scene]:
    """Generated scenes of about 320 pixels, and ImageNet features of them at stride 16."""
    backbone = efficientnet_lite0(levels=(4,)).eval()
    preprocess = Preprocess(320, 640, backbone.mean, backbone.std)
    scenes = []
    for sample in Shapes(count, seed):
        batch = preprocess([sample.image])
        (x,) = backbone(batch.data)
        targets = preprocess.targets([sample.targets], batch)[0]
        image = F.interpolate(sample.image[None].float(), batch.sizes[0], mode="bilinear").round().to(torch.uint8)[0]
        scenes.append(Scene(image, replace(x, sizes=tuple(batch.sizes)), targets.boxes, targets.labels))
    return scenes


class Reader(nn.Module):
    """An extractor on features that are not trained, and two layers that name the shape in a box and correct it."""

    def __init__(self, extractor: RegionExtractor) -> None:
        super().__init__()
        self.reduce = nn.LazyConv2d(CHANNELS, 1)
        self.extractor = extractor
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(CHANNELS * 9, 128), nn.ReLU(), nn.Linear(128, len(SHAPE_CLASSES) + 4)
        )

    def map(self, x: FeatureMap) -> FeatureMap:
        return replace(x, data=self.reduce(x.data))

    def forward(self, x: FeatureMap, r: Regions) -> tuple[Tensor, Tensor]:
        """Scores [R, 6] and box deltas [R, 4]."""
        return self.head(self.extractor(self.map(x), r)).split([len(SHAPE_CLASSES), 4], 1)


CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def train(reader: Reader, scenes: list[Scene], steps: int) -> None:
    """Adam on batches of four scenes, each object with two boxes near it. All layers have one rate, that of the offsets
    too, which has a hundredth of it in the training of a detector."""
    chance = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        some = [scenes[i] for i in torch.randint(len(scenes), (4,), generator=chance).tolist()]
        x, r, labels = batch(some + some)
        near = beside(r, chance)
        scores, deltas = reader(x, near)
        loss = F.cross_entropy(scores, labels - 1) + F.smooth_l1_loss(deltas, CODER.encode(r.boxes, near.boxes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def batch(scenes: list[Scene]) -> tuple[FeatureMap, Regions, Tensor]:
    """The maps of scenes, padded to one size, their boxes and labels."""
    height, width = (max(scene.x.size[axis] for scene in scenes) for axis in (0, 1))
    data = [F.pad(s.x.data, (0, width - s.x.size[1], 0, height - s.x.size[0])) for s in scenes]
    x = FeatureMap(torch.cat(data), scenes[0].x.stride, tuple(s.x.image_sizes[0] for s in scenes))
    return x, Regions.from_list([s.boxes for s in scenes]), torch.cat([s.labels for s in scenes])


def beside(r: Regions, chance: torch.Generator) -> Regions:
    """Boxes each of whose sides is moved by up to a quarter of the box."""
    sides = (r.boxes[:, 2:] - r.boxes[:, :2]).repeat(1, 2)
    return replace(r, boxes=r.boxes + (torch.rand(r.boxes.shape, generator=chance) - 0.5) / 2 * sides)


@torch.no_grad()
def measure(reader: Reader, scenes: list[Scene]) -> str:
    """Of boxes beside the objects of `scenes`: shapes named rightly, IoU of the box before and after correction, and of
    the weights the share in the box and the mean KL between parts."""
    x, r, labels = batch(scenes)
    near = beside(r, torch.Generator().manual_seed(1))
    scores, deltas = reader(x, near)
    right = (scores.argmax(1) + 1 == labels).float().mean()
    given, found = (iou(b, r.boxes).diagonal().mean() for b in (near.boxes, CODER.decode(deltas, near.boxes)))
    w = reader.extractor.weights(reader.map(x), near)
    inside = (w * readable(BoxSupport()(x, near), None, x.size)[:, None, None]).sum((3, 4)).mean()
    apart = kl_between_parts(w[(w.sum((3, 4)) > 0).all(2).all(1)]).mean()
    return f"named {right:.2f}, IoU {given:.2f} -> {found:.2f}, in the box {inside:.2f}, KL between parts {apart:.1f}"


@torch.no_grad()
def weights(reader: Reader, scene: Scene, extractor: RegionExtractor | None = None) -> Tensor:
    """[K, H, W] of the largest object."""
    return (extractor or reader.extractor).weights(reader.map(scene.x), scene.largest)[0, 0]


# Pictures on a grid of cells

MAP = torch.tensor(
    [
        [0.3, 0.2, 0.4, 0.5, 0.3, 0.1, 0.2],
        [0.2, 0.6, 0.8, 0.4, 0.2, 0.3, 0.1],
        [0.4, 0.9, 0.7, 0.6, 0.5, 0.7, 0.4],
        [0.5, 0.3, 0.5, 0.2, 0.6, 0.8, 0.3],
        [0.1, 0.2, 0.3, 0.4, 0.9, 0.5, 0.2],
        [0.3, 0.1, 0.2, 0.5, 0.4, 0.2, 0.1],
    ]
)
X = FeatureMap(MAP[None, None], stride=1)
CORNERS = (1.3, 1.3, 4.7, 4.6)


def region(move: float | Tensor = 0.0) -> Regions:
    """The box of these pictures, in cells, moved to the right; by several distances: a box for each."""
    boxes = torch.tensor([CORNERS]) + torch.as_tensor(move).reshape(-1, 1) * torch.tensor([1.0, 0.0, 1.0, 0.0])
    return Regions(boxes, torch.zeros(len(boxes), dtype=torch.int64))


def image_to_part(scene: Scene) -> Figure:
    """The image with its cells, one channel of the map, and the weights of one part."""
    figure = Figure(figsize=(WIDTH, 3.35))
    align, r, part = RoIAlign(BINS), scene.largest, 2
    data = scene.x.data[0]
    x = data[int(data.flatten(1).std(1).argmax())]
    w = align.weights(scene.x, r)[0, 0, part]
    height, width = x.shape
    x1, y1, x2, y2 = (r.boxes[0] / scene.x.stride).tolist()
    third, down = (x2 - x1) / 3, (y2 - y1) / 3
    first, second, last = (figure.add_axes((left, 0.08, 0.29, 0.84)) for left in (0.01, 0.335, 0.69))

    show_image(first, scene.image.permute(1, 2, 0).numpy())
    first.images[0].set_extent((0, *(side / scene.x.stride for side in scene.image.shape[:0:-1]), 0))
    grid_lines(first, width, height, "white", 0.4)
    second.imshow(x, cmap="cividis", extent=(0, width, height, 0))
    grid_lines(second, width, height, "white", 0.25)
    for axes in (first, second):
        axes.set(xlim=(0, width), ylim=(scene.image.shape[1] / scene.x.stride, 0), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        frame(axes, (x1, y1, x2, y2))
    for i in (1, 2):
        second.plot([x1 + i * third] * 2, [y1, y2], color=BOX, linewidth=1)
        second.plot([x1, x2], [y1 + i * down] * 2, color=BOX, linewidth=1)
    bin_ = (x2 - third, y1, x2, y1 + down)
    frame(second, bin_, colour="white", line=2)

    read = w.nonzero()
    (top, left), (bottom, right) = read.min(0).values.tolist(), read.max(0).values.tolist()
    numbers(last, w, (left - 1, top - 1, right + 2, bottom + 2))
    tall = (right - left + 3) * scene.image.shape[1] / scene.image.shape[2] / 2  # the shape of the other two
    last.set_ylim((top + bottom + 1) / 2 + tall, (top + bottom + 1) / 2 - tall)
    frame(last, bin_, line=2)
    titles = (
        f"image: {scene.image.shape[2]} x {scene.image.shape[1]} pixels, a box",
        f"map x, one channel: {width} x {scene.x.extents[0][0]} cells",
        "weights of one part (RoIAlign)",
    )
    for axes, title in zip((first, second, last), titles, strict=True):
        axes.set_title(title, fontsize=8.5, loc="left", color=INK, pad=4)
    below(first, "a cell is 16 x 16 pixels")
    below(second, "3 x 3 parts, the white one is read at the right")
    below(last, f"sum of weight x value = {(w * x).sum():.2f}")
    return figure


def weights_of_one_bin() -> Figure:
    """What the first of 2 x 2 bins reads, before and after the box has moved by a third of a cell."""
    extractors = {
        "RoIPool": RoIPool(2),
        "RoIAveragePool": RoIAveragePool(2),
        "RoIWarp": RoIWarp(2),
        "RoIAlign": RoIAlign(2),
        "PreciseRoIPool": PreciseRoIPool(2),
    }
    figure = Figure(figsize=(WIDTH, 4.05))
    for row, move in enumerate((0.0, 1 / 3)):
        r = region(move)
        x1, y1, x2, y2 = r.boxes[0].tolist()
        for column, (name, extractor) in enumerate(extractors.items()):
            axes = figure.add_axes((0.045 + column * 0.192, 0.51 - row * 0.47, 0.18, 0.40))
            w = extractor.weights(X, r)[0, 0, 0]
            numbers(axes, w, (0, 0, 6, 6))
            if isinstance(extractor, RoIPool):
                top, bottom, left, right = (
                    int(t[0, 0]) for t in extractor.cells([X], r, torch.zeros(1, dtype=torch.int64))
                )
                frame(axes, (left, top, right, bottom), colour=INK, line=1.6, style=(0, (2, 1.5)))
            frame(axes, (x1, y1, x2, y2))
            frame(axes, (x1, y1, (x1 + x2) / 2, (y1 + y2) / 2), line=1)
            if row == 0:
                axes.set_title(name, fontsize=9.5, color=INK, pad=5, weight="bold")
            below(axes, f"feature {extractor(X, r)[0, 0, 0, 0]:.2f}")
        figure.text(
            0.022, 0.71 - row * 0.47, ("the box", "moved by 1/3 of a cell")[row], rotation=90, fontsize=9, color=INK,
            ha="center", va="center",
        )  # fmt: skip
    return figure


def moving_the_box() -> Figure:
    """The feature of one bin and its derivative, while the box moves by two cells."""
    colours = {"RoIPool": "#d55e00", "RoIAveragePool": "#e69f00", "RoIAlign": "#0072b2", "PreciseRoIPool": "#009e73"}
    styles = {"RoIPool": "-", "RoIAveragePool": (0, (5, 1.5)), "RoIAlign": "-", "PreciseRoIPool": (0, (4, 1.5))}
    extractors = (RoIPool(2), RoIAveragePool(2), RoIAlign(2), PreciseRoIPool(2))
    figure = Figure(figsize=(WIDTH, 3.1))
    value, slope = (figure.add_axes((left, 0.17, 0.40, 0.70)) for left in (0.075, 0.575))
    moves = torch.linspace(0, 2, 401, requires_grad=True)
    for extractor in extractors:
        name = type(extractor).__name__
        y = extractor(X, region(moves))[:, 0, 0, 0]
        line = {"color": colours[name], "linestyle": styles[name], "linewidth": 1.8}
        jumps(value, moves.detach(), y.detach(), **line)
        value.plot([], [], label=name, **line)
        if y.requires_grad:
            jumps(slope, moves.detach(), torch.autograd.grad(y.sum(), moves)[0], **line)
    slope.plot([0, 2], [0, 0], color=colours["RoIPool"], linewidth=1.8)
    value.set_title("feature of the bin at the top left", fontsize=9.5, loc="left", color=INK)
    slope.set_title("its derivative, as autograd gives it", fontsize=9.5, loc="left", color=INK)
    value.set_ylim(0.25, 1.18)
    slope.set_ylim(-0.25, 0.05)
    value.legend(fontsize=8, ncols=2, frameon=False, loc="upper left", borderaxespad=0.1, labelcolor=INK)
    for axes in (value, slope):
        axes.set(xlim=(0, 2), xticks=[0, 0.5, 1, 1.5, 2])
        axes.set_xlabel("the box has moved to the right by (cells)", fontsize=8.5, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
    slope.annotate(
        "RoIPool, RoIAveragePool: none", (1.0, 0.0), xytext=(0, 3), textcoords="offset points", fontsize=8,
        color=INK, ha="center",
    )  # fmt: skip
    return figure


def jumps(axes: Axes, at: Tensor, values: Tensor, **line: object) -> None:
    """A line that is broken where the values jump."""
    shown = values.clone()
    shown[1:][(shown[1:] - shown[:-1]).abs() > 0.004] = torch.nan
    axes.plot(at, shown, **line)


def channel_groups() -> Figure:
    """The four groups of channels that position-sensitive pooling reads with 2 x 2 bins."""
    figure = Figure(figsize=(WIDTH, 2.35))
    extractor, r = PositionSensitive(RoIAlign(2)), region()
    x = FeatureMap(MAP.expand(1, 4, -1, -1), stride=1)
    w = extractor.weights(x, r)[0, 0]
    x1, y1, x2, y2 = CORNERS
    for k, name in enumerate(("top left", "top right", "bottom left", "bottom right")):
        axes = figure.add_axes((0.02 + k * 0.245, 0.04, 0.225, 0.80))
        numbers(axes, w[k], (0, 0, 7, 6))
        frame(axes, (x1, y1, x2, y2))
        axes.set_title(f"channels for the {name}", fontsize=8.5, color=INK, pad=5)
    return figure


def numbers(axes: Axes, values: Tensor, window: tuple[int, int, int, int]) -> None:
    """The cells (left, top, right, bottom) of a map: those of 0 empty, the others darker the larger their number."""
    left, top, right, bottom = window
    shade = {"cmap": "Blues", "vmin": 0.0, "vmax": float(values.max()) * 1.25}
    height, width = values.shape
    axes.imshow(values, extent=(0, width, height, 0), **shade)
    grid_lines(axes, width, height, "#c9c9c9", 1)
    for v in range(max(top, 0), min(bottom, height)):
        for u in range(max(left, 0), min(right, width)):
            value = float(values[v, u])
            if value >= 0.005:
                strength = value / shade["vmax"]
                ground = [patheffects.withStroke(linewidth=2.5, foreground=colormaps["Blues"](strength))]
                axes.text(
                    u + 0.5, v + 0.5, "1" if value == 1 else f"{value:.2f}".removeprefix("0"), ha="center", va="center",
                    fontsize=7.5, color="white" if strength > 0.5 else INK, zorder=6, path_effects=ground,
                )  # fmt: skip
    axes.set(xlim=(left - 0.03, right + 0.03), ylim=(bottom + 0.03, top - 0.03), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)


def grid_lines(axes: Axes, width: int, height: int, colour: str, alpha: float) -> None:
    axes.hlines(range(height + 1), 0, width, colors=colour, linewidth=0.7, alpha=alpha)
    axes.vlines(range(width + 1), 0, height, colors=colour, linewidth=0.7, alpha=alpha)


def frame(
    axes: Axes, box: Sequence[float], colour: str = BOX, line: float = 1.9, style: str | tuple[float, tuple] = "-"
) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line, linestyle=style, zorder=4,
            joinstyle="miter",
        )
    )  # fmt: skip


def below(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0.5, 0), xytext=(0, -5), xycoords="axes fraction", textcoords="offset points", fontsize=8.5, color=INK,
        ha="center", va="top",
    )  # fmt: skip


# Pictures over scenes


@torch.no_grad()
def offsets(reader: Reader, scenes: list[Scene]) -> Figure:
    """The samples of deformable pooling without and with the offsets that it finds, for three objects."""
    chosen = [scenes[i] for i in (4, 2, 6)]
    figure = Figure(figsize=(WIDTH, 3.3))
    deformable = reader.extractor
    assert isinstance(deformable, DeformableRoIPool)
    for i, scene in enumerate(chosen):
        r, stride = scene.largest, scene.x.stride
        moved, still = deformable.moved_samples(reader.map(scene.x), r)
        axes = figure.add_axes((0.01 + i * 0.332, 0.10, 0.316, 0.86))
        show_image(axes, scene.image.permute(1, 2, 0).numpy())
        tails, heads = (((s.points[0].flatten(0, 1) + 0.5) * stride).mean(1) for s in (still, moved))
        for tail, head in zip(tails.tolist(), heads.tolist(), strict=True):
            edge = [patheffects.Stroke(linewidth=3.4, foreground="#101010"), patheffects.Normal()]
            axes.plot(*tail, "o", markersize=5, color="white", markeredgecolor="#101010", zorder=8)
            axes.add_patch(
                FancyArrowPatch(
                    tail, head, arrowstyle="-|>", color="#ffb000", linewidth=1.8, shrinkA=0, shrinkB=0,
                    mutation_scale=8, zorder=7, path_effects=edge,
                )
            )  # fmt: skip
        x1, y1, x2, y2 = r.boxes[0].tolist()
        outline(axes, (x1, y1, x2, y2))
        half = 0.75 * max(x2 - x1, y2 - y1)
        height, width = scene.image.shape[1:]
        x, y = (min(max(at, half), side - half) for at, side in (((x1 + x2) / 2, width), ((y1 + y2) / 2, height)))
        axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    figure.text(
        0.5, 0.025, "white: the middle of a part before its offset; arrow: to where the offset moves it", fontsize=9,
        color=INK, ha="center",
    )  # fmt: skip
    return figure


def learned(scene: Scene, rows: dict[str, Tensor]) -> Figure:
    """Three parts and the largest weight of all nine, for each of `rows` [9, H, W]."""
    figure = Figure(figsize=(WIDTH, 8.9))
    for i, (name, w) in enumerate(rows.items()):
        figure.text(0.035, 0.86 - i * 0.245, name, rotation=90, fontsize=9.5, color=INK, ha="center", va="center")
        for j, part in enumerate((0, 4, 8, None)):
            axes = figure.add_axes((0.075 + j * 0.232, 0.745 - i * 0.245, 0.222, 0.215))
            overlay(axes, scene, w.amax(0) if part is None else w[part])
            if i == 0:
                title = "largest of the nine" if part is None else f"part {part + 1}"
                axes.set_title(title, fontsize=9.5, color=INK, pad=16)
    return figure


def terms(reader: Reader, scenes: list[Scene]) -> Figure:
    """The largest weight of all parts by the geometric term, by the appearance term and by both."""
    alone = {**reader.extractor.terms_alone(), "both": reader.extractor}
    figure = Figure(figsize=(WIDTH, 2.6 * len(scenes) + 0.5))
    for i, scene in enumerate(scenes):
        for j, (name, extractor) in enumerate(alone.items()):
            height = 0.43
            axes = figure.add_axes((0.02 + j * 0.325, 0.50 - i * 0.485, 0.31, height))
            overlay(axes, scene, weights(reader, scene, extractor).amax(0))
            if i == 0:
                axes.set_title(name, fontsize=9.5, color=INK, pad=16)
    return figure


def overlay(axes: Axes, scene: Scene, w: Tensor) -> None:
    """Weights [H, W], divided by their maximum, over the scene in grey."""
    grey = scene.image.float().mean(0).round().to(torch.uint8).numpy()
    show_image(axes, grey)
    height, width = (cells * scene.x.stride for cells in w.shape)
    axes.imshow(w / w.max(), cmap="inferno", vmin=0, vmax=1, alpha=0.5, extent=(0, width, height, 0))
    axes.set(xlim=(0, grey.shape[1]), ylim=(grey.shape[0], 0), xticks=[], yticks=[])
    x1, y1, x2, y2 = scene.largest.boxes[0].tolist()
    outline(axes, (x1, y1, x2, y2), line=1.5)
    axes.annotate(
        f"max {w.max():.2g}", (1, 1), xytext=(0, 2), xycoords="axes fraction", textcoords="offset points", fontsize=7.5,
        color=FAINT, ha="right", va="bottom",
    )  # fmt: skip


if __name__ == "__main__":
    main()
