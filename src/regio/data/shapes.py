"""Generated scenes: coloured shapes on a textured ground, with boxes and instance masks; no download, no files.

A scene depends on (seed, index, size) alone. Six classes in random sizes, colours and turns, plain, shaded, striped or
dotted, overlapping each other and cut by the border, under light and noise; grey strokes that belong to no class lie
between them. A box and a mask are those of the *visible* part. A shape of which more than 70 % would be hidden, by
others or by the border, is not in the scene at all, so there are no half-annotated objects.

Drawing is anti-aliased: each shape is drawn four times as large and reduced to the share of each pixel it covers. A
pixel belongs to the mask when it is covered at least by half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from regio.data.dataset import DetectionDataset
from regio.data.masks import encode_mask
from regio.data.records import Annotation, Record

__all__ = ["SHAPE_CLASSES", "Shapes"]

SHAPE_CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")

_OVERSAMPLING = 4
_MIN_VISIBLE = 0.3
_MIN_PIXELS = 40  # a smaller rest cannot be told apart


class Shapes(DetectionDataset):
    """`count` generated scenes as a dataset.

    size: (height, width) in pixels about which the scenes vary by a fifth. Two datasets of different `seed` share no
    scene; scene i is the same whatever the count.

    Raises ValueError for a count below 1 and for a size below 64 x 64.
    """

    def __init__(self, count: int, seed: int = 0, size: tuple[int, int] = (160, 160)) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least 1 scene, got {count}")
        if min(size) < 64:
            raise ValueError(f"size: expected at least 64 x 64 pixels, got {size[0]} x {size[1]}")
        records = [_record(_scene(seed, index, size), seed, index) for index in range(count)]
        super().__init__(SHAPE_CLASSES, range(1, len(SHAPE_CLASSES) + 1), records, read=_Painter(seed, size))


@dataclass(frozen=True)
class _Item:
    """A placed shape. coverage: [h, w] in 0..1, the share of each pixel it covers, with its corner at (top, left)."""

    label: int
    coverage: np.ndarray
    top: int
    left: int
    colour: np.ndarray
    pattern: str
    visible: np.ndarray


@dataclass(frozen=True)
class _Scene:
    """size: (height, width). items: from the front to the back."""

    size: tuple[int, int]
    items: list[_Item]


@dataclass(frozen=True)
class _Painter:
    """Gives the image of a record, drawing its scene again: a picture costs less to draw than to keep."""

    seed: int
    size: tuple[int, int]

    def __call__(self, record: Record) -> Tensor:
        index = record.id - 1
        pixels = _paint(_scene(self.seed, index, self.size), np.random.default_rng([self.seed, index, 1]))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _record(scene: _Scene, seed: int, index: int) -> Record:
    name = f"{seed:03d}_{index:06d}.png"
    rows = []
    for id, item in enumerate(scene.items, start=1):
        y, x = np.flatnonzero(item.visible.any(1)), np.flatnonzero(item.visible.any(0))
        box = (float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1))
        area = float(item.visible.sum())
        rows.append(Annotation(id, box, item.label, area, segmentation=encode_mask(item.visible)))
    return Record.of(index + 1, Path("shapes") / name, name, scene.size, rows)


def _scene(seed: int, index: int, size: tuple[int, int]) -> _Scene:
    """What is where: shapes are placed from the front to the back, each behind those before it."""
    rng = np.random.default_rng([seed, index, 0])
    height, width = (round(side * rng.uniform(0.8, 1.2)) for side in size)
    covered = np.zeros((height, width), dtype=bool)
    scale = math.sqrt(height * width)
    items: list[_Item] = []
    for _ in range(rng.integers(2, 9)):
        label = int(rng.integers(1, len(SHAPE_CLASSES) + 1))
        radius = scale * math.exp(rng.uniform(math.log(0.06), math.log(0.22)))
        coverage = _coverage(SHAPE_CLASSES[label - 1], radius, rng)
        top = int(rng.integers(0, height)) - coverage.shape[0] // 2
        left = int(rng.integers(0, width)) - coverage.shape[1] // 2
        colour = _vivid(rng)
        pattern = str(rng.choice(["plain", "shaded", "shaded", "stripes", "dots"]))
        full = coverage >= 0.5
        visible = np.zeros_like(covered)
        here, there = _overlap(full.shape, top, left, covered.shape)
        visible[there] = full[here]
        visible &= ~covered
        if visible.sum() < max(_MIN_PIXELS, _MIN_VISIBLE * full.sum()):
            continue
        covered |= visible
        items.append(_Item(label, coverage, top, left, colour, pattern, visible))
    return _Scene((height, width), items)


def _overlap(
    patch: tuple[int, ...], top: int, left: int, canvas: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a patch at (top, left) inside the canvas, as slices of the patch and of the canvas."""
    y1, x1 = max(top, 0), max(left, 0)
    y2, x2 = max(min(top + patch[0], canvas[0]), y1), max(min(left + patch[1], canvas[1]), x1)
    return (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)), (slice(y1, y2), slice(x1, x2))


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """Corners [P, 2] of a shape that has them, in the unit circle."""
    if name == "square":
        aspect = rng.uniform(0.75, 1.0)
        return np.array([[-1, -aspect], [1, -aspect], [1, aspect], [-1, aspect]]) * 0.8
    if name == "triangle":
        angles = np.array([0, 2, 4]) * math.pi / 3 + rng.uniform(-0.2, 0.2, 3)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if name == "star":
        angles = np.arange(10) * math.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.38, 0.5))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    arm = rng.uniform(0.24, 0.34)
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])  # a quarter turn of row vectors
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)]) * 0.96


def _coverage(name: str, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The share [h, w] of each pixel that a shape of `radius` pixels covers, cropped to about its size."""
    side = 2 * math.ceil(radius) + 2
    canvas = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    centre, reach = side * _OVERSAMPLING / 2, radius * _OVERSAMPLING
    if name in ("circle", "ring"):
        reach *= 0.9
        draw.ellipse((centre - reach, centre - reach, centre + reach, centre + reach), fill=255)
        if name == "ring":
            reach *= rng.uniform(0.5, 0.7)
            draw.ellipse((centre - reach, centre - reach, centre + reach, centre + reach), fill=0)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        corners = centre + reach * (_outline(name, rng) @ turn)
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float32) / 255


def _vivid(rng: np.random.Generator) -> np.ndarray:
    """A colour [3] in 0..1, of any hue, clearly coloured and neither black nor white."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.45, 1.0), rng.uniform(0.55, 1.0)
    ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def _ground(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A cloudy, dull background [H, W, 3] in 0..1."""
    grid = rng.uniform(0, 1, (rng.integers(3, 8), rng.integers(3, 8))).astype(np.float32)
    cloud = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))[:, :, None]
    base = rng.uniform(0.15, 0.85)
    first, second = (np.clip(base + rng.normal(0, 0.09, 3), 0.05, 0.95).astype(np.float32) for _ in range(2))
    return first * (1 - cloud) + second * cloud


def _add_strokes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image` with a few thin curves in shades of its own brightness: clutter of no class."""
    height, width = image.shape[:2]
    canvas = Image.new("L", (width * 2, height * 2))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 6)):
        x, y = rng.uniform(0, 2 * width), rng.uniform(0, 2 * height)
        heading, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.25)
        points = [(x, y)]
        for step in range(int(rng.integers(4, 14))):
            x, y = x + 14 * math.cos(heading + bend * step), y + 14 * math.sin(heading + bend * step)
            points.append((x, y))
        draw.line(points, fill=int(rng.integers(90, 200)), width=int(rng.integers(2, 6)), joint="curve")
    alpha = np.asarray(canvas.reduce(2), dtype=np.float32)[:, :, None] / 255
    shade = np.float32(np.clip(image.mean() + rng.choice([-0.3, 0.3]), 0.05, 0.95))
    return image * (1 - alpha) + shade * alpha


def _skin(item: _Item, rng: np.random.Generator) -> np.ndarray:
    """The colours [h, w, 3] of an item: plain, shaded as by a lamp, striped or dotted."""
    height, width = item.coverage.shape
    if item.pattern == "plain":
        return np.broadcast_to(item.colour, (height, width, 3))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    if item.pattern == "shaded":
        tone = 1.0 - 0.3 * along
    else:
        period = rng.uniform(0.3, 0.5)
        wave = np.cos(along * (2 * math.pi / period))
        if item.pattern == "dots":
            wave = wave + np.cos(across * (2 * math.pi / period)) - 1
        tone = 1.0 - 0.35 * np.clip(0.5 + 2 * wave, 0, 1)
    return item.colour * tone[:, :, None]


def _paint(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """The scene as uint8 [H, W, 3]."""
    height, width = scene.size
    image = _add_strokes(_ground(height, width, rng), rng)
    for item in reversed(scene.items):
        here, there = _overlap(item.coverage.shape, item.top, item.left, scene.size)
        _cast_shadow(image, item)
        alpha = item.coverage[here][:, :, None]
        image[there] = image[there] * (1 - alpha) + _skin(item, rng)[here] * alpha
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image * np.float32(rng.uniform(0.9, 1.1)) + noise * np.float32(rng.uniform(0.01, 0.035))
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _cast_shadow(image: np.ndarray, item: _Item) -> None:
    """Darken `image` in place where the item's soft shadow falls: two pixels down and to the right."""
    blur = 2
    patch = Image.fromarray((np.pad(item.coverage, 2 * blur) * 255).astype(np.uint8))
    shadow = np.asarray(patch.filter(ImageFilter.BoxBlur(blur)), dtype=np.float32)[:, :, None] / 255
    here, there = _overlap(shadow.shape, item.top - 2 * blur + 2, item.left - 2 * blur + 2, image.shape[:2])
    image[there] *= 1 - 0.35 * shadow[here]
