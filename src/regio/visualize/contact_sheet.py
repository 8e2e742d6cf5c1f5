"""Several pictures on one sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from regio.masks import Masks
from regio.types import Detections, Targets
from regio.visualize.draw import draw_detections, draw_targets
from regio.visualize.labels import font, shorten

__all__ = ["comparison_sheet", "contact_sheet"]

PAPER, INK = (255, 255, 255), (32, 32, 32)
GAP, TEXT, CELL = 12, 16, 640  # pixels


def contact_sheet(
    pictures: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    headings: Sequence[str] | None = None,
    cell: int = CELL,
) -> Image.Image:
    """`pictures` row by row in `columns` columns, each shrunk or enlarged to `cell` pixels on its longer side.

    captions: one under each picture. headings: one over each column. Texts wider than a cell are cut.

    Raises ValueError when there are no pictures, and when captions or headings differ in number.
    """
    if not pictures or columns < 1:
        raise ValueError(f"pictures: expected at least one, in at least one column, got {len(pictures)} in {columns}")
    for name, texts, expected in (("captions", captions, len(pictures)), ("headings", headings, columns)):
        if texts is not None and len(texts) != expected:
            raise ValueError(f"{name}: expected {expected}, got {len(texts)}")
    cells = [_fitted(picture, cell) for picture in pictures]
    rows = [range(i, min(i + columns, len(cells))) for i in range(0, len(cells), columns)]
    heights = [max(cells[i].height for i in row) for row in rows]
    caption_height = 2 * TEXT if captions else 0
    top = GAP + (2 * TEXT if headings else 0)
    width = GAP + columns * (cell + GAP)
    sheet = Image.new("RGB", (width, top + sum(heights) + len(rows) * (GAP + caption_height)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings or ()):
        _write(draw, heading, GAP + column * (cell + GAP), GAP // 2, cell, bold=True)
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (cell + GAP)
            sheet.paste(cells[i], (left + (cell - cells[i].width) // 2, top))
            if captions:
                _write(draw, captions[i], left, top + height + TEXT // 4, cell)
        top += height + caption_height + GAP
    return sheet


def comparison_sheet(
    images: Iterable[Tensor | Image.Image],
    targets: Iterable[Targets],
    detections: Iterable[Detections],
    class_names: Sequence[str],
    captions: Sequence[str] | None = None,
    score_threshold: float = 0.5,
    masks: Iterable[Masks | None] | None = None,
) -> Image.Image:
    """A row for each image: on the left what is annotated, on the right what is detected, and how many.

    captions: one an image. masks: those annotated, as for `draw_targets`, by image. The images are taken and drawn one
    after the other, so an iterator needs the memory of one. Raises as `draw_detections`, and ValueError when the
    sequences differ in length.
    """
    pictures, both = [], []
    columns = (images, targets, detections) if masks is None else (images, targets, detections, masks)
    for i, (image, target, found, *given) in enumerate(zip(*columns, strict=True)):
        pictures.append(_fitted(draw_targets(image, target, class_names, *given), CELL))
        pictures.append(_fitted(draw_detections(image, found, class_names, score_threshold), CELL))
        shown = int((found.scores >= score_threshold).sum())
        below = f", and {len(found) - shown} of a lower score" if shown < len(found) else ""
        both += ["" if captions is None else captions[i], f"{shown} detected{below}"]
    return contact_sheet(pictures, 2, both, ["annotated", f"detected, score {score_threshold:g} and above"])


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, bold: bool = False) -> None:
    letters = font(TEXT, bold)
    draw.text((left, top), shorten(text, width, letters), font=letters, fill=INK)
