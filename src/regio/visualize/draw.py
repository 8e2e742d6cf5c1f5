"""Boxes, masks and class names on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from regio.data.images import rgb_pixels
from regio.masks import Masks, PixelMasks
from regio.types import Detections, Targets
from regio.visualize.colours import Colour, class_colour
from regio.visualize.labels import Chip, Rectangle, draw_chip, place_chips

__all__ = ["as_picture", "draw_detections", "draw_targets", "enlarged"]

LEAST_SIDE = 640  # pixels: the longer side of a picture that is drawn on
MASK_OPACITY = 0.4
PALE = 180  # of 255: opacity of the thin outline of a box without a chip


@dataclass(frozen=True)
class _Pasted:
    """The mask of one object, put on an image when asked for."""

    masks: Masks
    box: Tensor

    def on(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
        """A window of an image of `size`, and the mask [h, w] in it."""
        ((window, mask),) = self.masks.windows(self.box[None], size)
        return window, mask.cpu().numpy()


@dataclass(frozen=True)
class _Mark:
    """One object to draw. box: in pixels of the image. mask: the masks that its own is one of, which are pasted when
    they are drawn: all at once would need as many pictures of memory."""

    box: tuple[float, float, float, float]
    colour: Colour
    text: str
    dashed: bool
    mask: _Pasted | None


def draw_detections(
    image: Tensor | Image.Image, detections: Detections, class_names: Sequence[str], score_threshold: float = 0.5
) -> Image.Image:
    """`image` (uint8 [3, H, W] or a PIL image) with the detections of at least `score_threshold`.

    Each has a box in the colour of its class, its mask if there is one, and a chip "name 0.87" with label l named
    class_names[l - 1]. A small image is first enlarged by a whole factor, to 640 pixels on its longer side or more;
    lines and text grow with the picture. Better scores are drawn later and get the better places for their chips. A
    chip that finds no readable place, or would hide the picture, is left out, and its box has a thin, pale outline:
    of a hundred boxes the best stay legible.

    Raises ValueError when a tensor is no such image, a label has no name, or masks are not of the image's size.
    """
    _require_names(detections.labels, class_names)
    order = (detections.scores >= score_threshold).nonzero()[:, 0]
    order = order[detections.scores[order].argsort(descending=True, stable=True)]
    detections = detections[order]
    marks = [
        _Mark(
            (*box,),
            class_colour(label),
            f"{class_names[label - 1]} {score:.2f}",
            False,
            _mask(detections.masks, detections.boxes, i),
        )
        for i, (box, label, score) in enumerate(
            zip(
                detections.boxes.tolist(),
                detections.labels.tolist(),
                detections.scores.tolist(),
                strict=True,
            )
        )
    ]
    return _draw(image, marks)


def draw_targets(
    image: Tensor | Image.Image, targets: Targets, class_names: Sequence[str], masks: Masks | None = None
) -> Image.Image:
    """`image` with what is annotated in it: as `draw_detections`, without scores.

    Boxes of crowds and of difficult objects are dashed, and their chips say so. masks: one an object, in place of those
    of `targets`, which may take more memory than there is.

    Raises as `draw_detections`.
    """
    _require_names(targets.labels, class_names)
    columns = (targets.boxes, targets.labels, targets.crowd, targets.difficult)
    if masks is None and targets.masks is not None:
        masks = PixelMasks(targets.masks)
    marks = []
    for i, (box, label, crowd, difficult) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        text = class_names[label - 1] + " (crowd)" * crowd + " (difficult)" * difficult
        marks.append(_Mark((*box,), class_colour(label), text, crowd or difficult, _mask(masks, targets.boxes, i)))
    return _draw(image, marks)


def _draw(image: Tensor | Image.Image, marks: list[_Mark]) -> Image.Image:
    """The picture with `marks`, the first in front."""
    original = as_picture(image)
    picture = enlarged(original)
    factor = picture.width // original.width
    line, text_size = max(2, round(max(picture.size) / 250)), max(13, round(max(picture.size) / 50))
    picture = _blend_masks(picture, marks, factor, line)
    boxes = [_rectangle(mark.box, factor, picture.size) for mark in marks]
    chips = [Chip(mark.text, mark.colour, box) for mark, box in zip(marks, boxes, strict=True)]
    places = place_chips(chips, picture.size, text_size)
    back_to_front = list(reversed(list(zip(marks, boxes, chips, places, strict=True))))
    thin = ImageDraw.Draw(picture, "RGBA")
    for mark, box, _, place in back_to_front:
        if place is None:
            thin.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(*mark.colour, PALE))
    draw = ImageDraw.Draw(picture)
    for mark, box, _, place in back_to_front:
        if place is not None:
            _outline(draw, box, mark.colour, line, mark.dashed)
    for _, _, chip, place in back_to_front:
        if place is not None:
            draw_chip(draw, chip, place, text_size)
    return picture


def enlarged(picture: Image.Image) -> Image.Image:
    """`picture`, a small one enlarged by a whole factor, to 640 pixels on its longer side or more."""
    factor = -(-LEAST_SIDE // max(picture.size))
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BILINEAR)


def as_picture(image: Tensor | Image.Image) -> Image.Image:
    """`image`, uint8 [3, H, W] or a PIL image, as one of RGB. Raises ValueError for another tensor, and for a
    PIL image of numbers whose range is not known."""
    if isinstance(image, Image.Image):
        return Image.fromarray(rgb_pixels(image))
    pixels = image.detach().cpu().numpy()
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"image: expected uint8 [3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _rectangle(box: tuple[float, float, float, float], factor: int, size: tuple[int, int]) -> Rectangle:
    """The pixels of the enlarged picture that `box` covers, cut to it, at least one on each axis."""
    (x1, y1, x2, y2), (width, height) = box, size
    left, top = min(max(round(x1 * factor), 0), width - 1), min(max(round(y1 * factor), 0), height - 1)
    return left, top, min(max(round(x2 * factor), left + 1), width), min(max(round(y2 * factor), top + 1), height)


def _outline(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int, dashed: bool) -> None:
    """Four bars just inside `box`, on a dark edge of one pixel around it."""
    left, top, right, bottom = box
    line = min(line, max(1, min(right - left, bottom - top) // 3))
    horizontal = [(left, top, right, top + line), (left, bottom - line, right, bottom)]
    vertical = [(left, top, left + line, bottom), (right - line, top, right, bottom)]
    if dashed:
        dash = 5 * line
        horizontal = [(x, t, min(x + dash, r), b) for l, t, r, b in horizontal for x in range(l, r, 2 * dash)]
        vertical = [(l, y, r, min(y + dash, b)) for l, t, r, b in vertical for y in range(t, b, 2 * dash)]
    for l, t, r, b in horizontal + vertical:
        draw.rectangle((l - 1, t - 1, r, b), fill=(24, 24, 24))
    for l, t, r, b in horizontal + vertical:
        draw.rectangle((l, t, r - 1, b - 1), fill=colour)


def _blend_masks(picture: Image.Image, marks: list[_Mark], factor: int, line: int) -> Image.Image:
    """The picture tinted where masks are, with an opaque rim."""
    if all(mark.mask is None for mark in marks):
        return picture
    pixels = np.array(picture)
    for mark in reversed(marks):
        if mark.mask is None:
            continue
        (rows, columns), mask = mark.mask.on((picture.height // factor, picture.width // factor))
        y, x = _span(mask, 1), _span(mask, 0)
        mask = mask[y, x].repeat(factor, axis=0).repeat(factor, axis=1)
        top, left = (rows.start + y.start) * factor, (columns.start + x.start) * factor
        window = pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        if not mask.size:
            continue
        colour = np.array(mark.colour, dtype=np.float32)
        before = window[mask].astype(np.float32)
        window[mask] = (before + MASK_OPACITY * (colour - before)).round()
        window[mask & ~_eroded(mask, max(1, line // 2))] = mark.colour
    return Image.fromarray(pixels)


def _span(mask: NDArray[np.bool_], across: int) -> slice:
    """The rows, or columns, from before the first to after the last with a pixel, so that these are seen to be rims."""
    places = np.flatnonzero(np.any(mask, axis=across))
    return slice(max(int(places[0]) - 1, 0), int(places[-1]) + 2) if len(places) else slice(0, 0)


def _eroded(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Pixels of `mask` with all four neighbours in it, `steps` times over. Outside the picture counts as inside."""
    for _ in range(steps):
        padded = np.pad(mask, 1, mode="edge")
        mask = mask & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask


def _mask(masks: Masks | None, boxes: Tensor, row: int) -> _Pasted | None:
    return None if masks is None else _Pasted(masks[torch.tensor([row], device=boxes.device)], boxes[row])


def _require_names(labels: Tensor, class_names: Sequence[str]) -> None:
    if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= len(class_names):
        raise ValueError(
            f"labels: expected 1 .. {len(class_names)}, one for each of class_names, "
            f"got {int(labels.min())} .. {int(labels.max())}"
        )
