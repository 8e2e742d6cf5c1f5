"""Class maps on a picture, and as files with a palette."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from regio.types import IGNORED
from regio.visualize.colours import Colour, class_colour
from regio.visualize.draw import MASK_OPACITY, as_picture
from regio.visualize.labels import Chip, chip_size, draw_chip

__all__ = ["class_map_image", "draw_class_map", "legend", "with_legend"]

BACKGROUND, UNKNOWN = (0, 0, 0), (255, 255, 255)
TEXT, GAP = 16, 6  # pixels


def class_map_image(labels: Tensor) -> Image.Image:
    """labels [H, W] uint8 as a palette image whose pixel values they are: class l in `class_colour(l)`, the background
    black, `IGNORED` white."""
    image = Image.fromarray(labels.cpu().numpy())  # mode L
    image.putpalette([value for label in range(256) for value in _colour(label)])
    return image


def draw_class_map(image: Tensor | Image.Image, labels: Tensor) -> Image.Image:
    """`image` (uint8 [3, H, W] or a PIL image) with each pixel of a class tinted in its colour and its borders drawn;
    those that are `IGNORED` are whitened, the background is left as it is.

    Raises ValueError when a tensor is no such image, or labels [H, W] are of another size.
    """
    picture = as_picture(image)
    classes = labels.cpu().numpy()
    if classes.shape != (picture.height, picture.width):
        raise ValueError(f"labels: expected shape {[picture.height, picture.width]}, got {list(classes.shape)}")
    pixels = np.array(picture)
    palette = np.array([_colour(label) for label in range(256)], dtype=np.uint8)
    padded = np.pad(classes, 1, mode="edge")
    beside = (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2])
    rim = np.any([classes != other for other in beside], axis=0) & (classes != 0) & (classes != IGNORED)
    for label in np.unique(classes).tolist():
        if label == 0:
            continue
        own = classes == label
        before = pixels[own].astype(np.float32)
        pixels[own] = (before + MASK_OPACITY * (palette[label] - before)).round()
    pixels[rim] = palette[classes[rim]]
    return Image.fromarray(pixels)


def legend(labels: Sequence[int], class_names: Sequence[str], width: int) -> Image.Image:
    """The names of the classes `labels` in their colours, in rows of at most `width` pixels; label l is
    class_names[l - 1], 0 the background, `IGNORED` what is not known."""
    chips: list[tuple[Chip, tuple[int, int, int, int]]] = []
    left = top = GAP
    height = 0
    for label in labels:
        name = {0: "background", IGNORED: "not known"}.get(label) or class_names[label - 1]
        extent = chip_size(name, TEXT)
        extent = min(extent[0], max(width - 2 * GAP, 1)), extent[1]  # cut, where the picture is narrow
        if left > GAP and left + extent[0] + GAP > width:
            left, top = GAP, top + extent[1] + GAP
        place = (left, top, left + extent[0], top + extent[1])
        chips.append((Chip(name, _colour(label), place), place))
        left, height = left + extent[0] + GAP, place[3]
    picture = Image.new("RGB", (width, height + GAP), (225, 225, 225))
    draw = ImageDraw.Draw(picture)
    for chip, place in chips:
        draw_chip(draw, chip, place, TEXT)
    return picture


def with_legend(
    picture: Image.Image, labels: Sequence[int], class_names: Sequence[str], *, below: bool = False
) -> Image.Image:
    """`picture` with the `legend` of `labels` over it, or below it."""
    named = legend(labels, class_names, picture.width)
    both = Image.new("RGB", (picture.width, picture.height + named.height))
    both.paste(picture, (0, 0 if below else named.height))
    both.paste(named, (0, picture.height if below else 0))
    return both


def _colour(label: int) -> Colour:
    return {0: BACKGROUND, IGNORED: UNKNOWN}.get(label) or class_colour(label)
