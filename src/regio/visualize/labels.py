"""Text on coloured plates, placed so that it can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from regio.visualize.colours import Colour, ink_on

__all__ = ["Chip", "Rectangle", "draw_chip", "font", "place_chips", "shorten"]

Rectangle = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, half-open."""

BUDGET = 1 / 10  # the share of the picture that chips may cover together
UNREADABLE = 0.1  # a chip of which others cover more than this share is left out


@dataclass(frozen=True)
class Chip:
    """A text on a plate of `colour` that belongs to the rectangle `box`."""

    text: str
    colour: Colour
    box: Rectangle


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, at `size` pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def shorten(text: str, width: int, letters: ImageFont.FreeTypeFont) -> str:
    """`text` in one line, cut with an ellipsis to at most `width` pixels."""
    text = in_one_line(text)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def place_chips(chips: list[Chip], size: tuple[int, int], text_size: int) -> list[Rectangle | None]:
    """A place for each chip, first come first served, in a picture of `size` (width, height); None without one.

    A chip goes where the fewest pixels of earlier chips and of its own box are under it: above the box, under it, or
    just inside, to the left or to the right. No place is outside the picture; one for a text too long for it is as
    wide as the picture. A chip of which others would cover more than a tenth wherever it went has no place, so that
    the rest can be read; nor have those after a tenth of the picture is covered, so that the picture can be seen.
    The first always has one.
    """
    width, height = size
    taken: list[Rectangle] = []
    places: list[Rectangle | None] = []
    for chip in chips:
        best, lowest = None, float("inf")
        extent = chip_size(chip.text, text_size)
        extent = min(extent[0], width), extent[1]
        full = sum(_area(place) for place in taken) > BUDGET * width * height
        for order, (left, top) in enumerate([] if full else _candidates(chip.box, extent)):
            left, top = max(0, min(left, width - extent[0])), max(0, min(top, height - extent[1]))
            place = left, top, left + extent[0], min(top + extent[1], height)
            hidden = sum(_overlap(place, other) for other in taken) / _area(place)
            cost = hidden + 0.2 * _overlap(place, chip.box) / max(1, _area(chip.box)) + 0.01 * order
            if cost < lowest and hidden <= UNREADABLE:
                best, lowest = place, cost
        places.append(best)
        taken += [] if best is None else [best]
    return places


def draw_chip(draw: ImageDraw.ImageDraw, chip: Chip, place: Rectangle, text_size: int) -> None:
    """Draw `chip` at `place`, its text cut to the width of it."""
    left, top, right, bottom = place
    draw.rectangle((left, top, right - 1, bottom - 1), fill=chip.colour)
    text = in_one_line(chip.text)
    if right - left < chip_size(text, text_size)[0]:
        text = shorten(text, right - left - 2 * _padding(text_size), font(text_size))
    letters, shift = _letters(text, text_size)
    draw.bitmap((left + _padding(text_size), (top + bottom) // 2 + shift), letters, fill=ink_on(chip.colour))


@lru_cache(maxsize=1024)
def _letters(text: str, text_size: int) -> tuple[Image.Image, int]:
    """How much of each pixel `text` covers, and how far its upper edge is below the middle of its line."""
    left, top, right, bottom = font(text_size).getbbox(text, anchor="lm")
    picture = Image.new("L", (math.ceil(right - min(left, 0)) or 1, math.ceil(bottom - top) or 1))
    ImageDraw.Draw(picture).text((-min(left, 0), -top), text, font=font(text_size), fill=255, anchor="lm")
    return picture, math.floor(top)


@lru_cache(maxsize=4096)
def chip_size(text: str, text_size: int) -> tuple[int, int]:
    """(width, height) in pixels of the chip of `text`."""
    return math.ceil(font(text_size).getlength(in_one_line(text))) + 2 * _padding(text_size), round(1.4 * text_size)


def in_one_line(text: str) -> str:
    """`text` with a space for each run of white space: names in files have line feeds, which are not drawn."""
    return " ".join(text.split())


def _padding(text_size: int) -> int:
    return text_size // 3


def _candidates(box: Rectangle, extent: tuple[int, int]) -> list[tuple[int, int]]:
    """Left top corners, the preferred first."""
    (left, top, right, bottom), (width, height) = box, extent
    rows = [top - height, top, bottom, bottom - height]  # above, inside above, under, inside under
    return [(column, row) for row in rows for column in (left, right - width)]


def _area(r: Rectangle) -> int:
    return (r[2] - r[0]) * (r[3] - r[1])


def _overlap(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
