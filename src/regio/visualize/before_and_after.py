"""The weights of an extractor before and after its training, beside each other (Gu et al. 2018, figure 2).

Pictures are matplotlib figures, as in `regio.visualize.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from regio.analysis import SIZES, size_class
from regio.checkpoints import kept_checkpoints
from regio.config import load_detector
from regio.data import DetectionDataset
from regio.visualize.explain import ReadBox, read_by
from regio.visualize.text import literal
from regio.visualize.weights import (
    FAINT,
    INK,
    colour_scale,
    extent_of,
    four_parts,
    grey_of,
    header,
    outline,
    overlay,
    part_name,
    parts_of,
    place,
    show_image,
)

__all__ = ["Subject", "initial_and_final_figure", "moments_figure", "objects_named", "typical_objects"]

WIDTH = 14.0  # inches, of a figure
MARGIN, GAP, BETWEEN, NAME, TITLE = 0.2, 0.08, 0.45, 0.2, 0.2  # inches; between: groups of columns
TOP, CAPTION, FOOTER = 1.05, 0.32, 0.55


@dataclass(frozen=True)
class Subject:
    """A box, as read at several moments of a training.

    title: what is in it. read: by the names of the moments; all of the same image, box and level.
    """

    title: str
    read: Mapping[str, ReadBox]


def initial_and_final_figure(
    folder: Path,
    dataset: DetectionDataset,
    *,
    objects: Sequence[tuple[int, int]] | None = None,
    parts: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Figure:
    """What the extractor of the run in `folder` reads at the first and at the last of the steps that its training has
    kept, of each term of its weights alone and of both, where they have such terms.

    objects: an image of `dataset` and a row of its objects each, `typical_objects` unless given. parts: those shown on
    their own, beside the largest of all, counted from 0 row by row; two that lie on the diagonal unless given.

    Raises as `regio.checkpoints.kept_checkpoints`, `regio.config.load_detector` and `moments_figure`.
    """
    kept = kept_checkpoints(folder)
    chosen = typical_objects(dataset) if objects is None else list(objects)
    moments = {f"step {step:,}": kept[step] for step in (min(kept), max(kept))}
    read: list[dict[str, ReadBox]] = [{} for _ in chosen]
    for moment, path in moments.items():
        detector, card = load_detector(path)
        detector.to(device).eval()
        name = card.model.get("extractor", {}).get("name")
        for (image, row), found in zip(chosen, read, strict=True):
            x1, y1, x2, y2 = dataset.records[image].boxes[row].tolist()
            found[moment] = read_by(detector, dataset.read_image(image), (x1, y1, x2, y2), name, str(path))
    titles = [_title(dataset, *each) for each in chosen]
    subjects = [Subject(title, found) for title, found in zip(titles, read, strict=True)]
    return moments_figure(subjects, parts, str(folder))


def typical_objects(dataset: DetectionDataset) -> list[tuple[int, int]]:
    """An object of each of COCO's sizes, the largest size first: the one of median area, crowds left out, in an image
    of its own where there is one. As (image, row of its objects).

    Raises ValueError where there is no object.
    """
    chosen: list[tuple[int, int]] = []
    for size in reversed(range(len(SIZES))):
        own = [
            (float(record.area[row]), image, row)
            for image, record in enumerate(dataset.records)
            for row in range(len(record))
            if not record.crowd[row] and int(size_class(torch.tensor(record.area[row]))) == size
        ]
        seen = {image for image, _ in chosen}
        own = [each for each in own if each[1] not in seen] or own
        if own:
            chosen.append(sorted(own)[len(own) // 2][1:])
    if not chosen:
        raise ValueError(f"dataset: expected objects, got none in {len(dataset)} images")
    return chosen


def objects_named(dataset: DetectionDataset, words: Sequence[str]) -> list[tuple[int, int]]:
    """Objects as (image, row) by words: the name of an image for its largest object that is no crowd, or NAME:N for the
    N-th of its objects, counted from 1.

    Raises ValueError for an image that `dataset` does not have, or has several of, and for an object that this has not.
    """
    return [_named(dataset, word) for word in words]


def _named(dataset: DetectionDataset, word: str) -> tuple[int, int]:
    name, colon, number = word.rpartition(":") if word.rpartition(":")[2].isdigit() else (word, "", "")
    found = [image for image, record in enumerate(dataset.records) if record.name == name]
    if len(found) != 1:
        got = f"{len(found)} of them" if found else f"none among {len(dataset)}"
        raise ValueError(f"objects: expected an image of the name {name}, or NAME:N for its N-th object, got {got}")
    record = dataset.records[found[0]]
    rows = [row for row in range(len(record)) if not record.crowd[row]]
    if colon and not 1 <= int(number) <= len(record):
        raise ValueError(f"objects: expected {name}:1 to {name}:{len(record)}, got {word}")
    if not colon and not rows:
        raise ValueError(f"objects: expected an image with an object, got {name}, which has none")
    return found[0], int(number) - 1 if colon else max(rows, key=lambda row: float(record.area[row]))


@torch.no_grad()
def moments_figure(subjects: Sequence[Subject], parts: Sequence[int] | None, caption: str = "") -> Figure:
    """For each subject its photo, and beside it at each moment the largest weight of all parts, then `parts` alone; a
    row for each term of the weights. Each map is divided by its own maximum, which is written above it, and blended
    half and half with the photo in grey.

    Raises ValueError for no subjects, for a part that the extractor does not have, and for an extractor of too many.
    """
    if not subjects:
        raise ValueError("subjects: expected at least one, got none")
    first = next(iter(subjects[0].read.values()))
    first.require_few_parts()
    bins, moments = first.extractor.bins, [*subjects[0].read]
    shown = _two(bins) if parts is None else list(parts)
    for part in shown:
        if not 0 <= part < prod(bins):
            raise ValueError(f"parts: expected 0 .. {prod(bins) - 1}, got {part}")
    columns = 1 + len(shown)
    fixed = 2 * MARGIN + len(moments) * (BETWEEN + (columns - 1) * GAP)
    side = (WIDTH - fixed) / (1 + len(moments) * columns)
    maps = [{moment: _terms(read) for moment, read in subject.read.items()} for subject in subjects]
    heights = [side / _aspect(subject) for subject in subjects]
    rows = [len(next(iter(each.values()))) for each in maps]
    blocks = [CAPTION + count * (TITLE + height) for count, height in zip(rows, heights, strict=True)]
    figure = Figure(figsize=(WIDTH, TOP + sum(blocks) + FOOTER))
    header(figure, f"{first.name}: {bins[0]} x {bins[1]} parts", caption)

    lefts = [MARGIN + side + BETWEEN + i * (columns * (side + GAP) - GAP + BETWEEN) for i in range(len(moments))]
    for moment, left in zip(moments, lefts, strict=True):
        _write(figure, left, TOP - 0.12, moment, 12, weight="bold")
    top = TOP
    for subject, by_moment, height, block in zip(subjects, maps, heights, blocks, strict=True):
        read = next(iter(subject.read.values()))
        stride = f"map of stride {read.x.stride:g}, {read.x.size[1]} x {read.x.size[0]} cells"
        _write(figure, MARGIN, top + CAPTION - 0.08, f"{subject.title}; {stride}", 10)
        _photo(place(figure, MARGIN, top + CAPTION + TITLE, side, height), read)
        for left, terms in zip(lefts, by_moment.values(), strict=True):
            for row, (term, weights) in enumerate(terms.items()):
                down = top + CAPTION + row * (TITLE + height) + TITLE
                if len(terms) > 1:
                    _write(figure, left - 0.06, down + height / 2, term, 9, rotation=90, ha="right", va="center")
                each = {"largest": weights.max(0), **{part_name(part, bins): weights[part] for part in shown}}
                for column, (name, own) in enumerate(each.items()):
                    _map(place(figure, left + column * (side + GAP), down, side, height), read, own, name)
        top += block
    colour_scale(figure)
    return figure


def _terms(read: ReadBox) -> dict[str, NDArray[np.float64]]:
    """The weights [K, H, W] of each term alone and of all, or of the one that there is."""
    each = {**read.extractor.terms_alone(), "both": read.extractor}
    weights: dict[str, Tensor] = {name: own.mean_weights(read.x, read.regions)[0] for name, own in each.items()}
    return {name: parts_of(own, read.extractor.bins) for name, own in weights.items()}


def _aspect(subject: Subject) -> float:
    """Width over height of what is shown of it."""
    read = next(iter(subject.read.values()))
    width, height = extent_of(read.image, read.x.data, read.x.stride)
    return width / height


def _photo(axes: Axes, read: ReadBox) -> None:
    """The photo and the box, with as much room beside it as in the pictures of its weights."""
    show_image(axes, read.image.permute(1, 2, 0).cpu().numpy())
    width, height = extent_of(read.image, read.x.data, read.x.stride)
    axes.set(xlim=(0, width), ylim=(height, 0))
    outline(axes, read.box, line=1.6)


def _map(axes: Axes, read: ReadBox, weights: NDArray[np.float64], name: str) -> None:
    """Weights [H, W] over the photo, with small titles."""
    overlay(axes, grey_of(read.image), weights, read.x.stride, read.box, name, small=True)
    axes.set_title(axes.get_title("left"), fontsize=8, loc="left", color=INK, pad=3)
    axes.set_title(axes.get_title("right"), fontsize=7.5, loc="right", color=FAINT, pad=3)


def _two(bins: tuple[int, int]) -> list[int]:
    """Two parts on the diagonal, or in a list; none where there is one part in all."""
    four = [*four_parts(bins).values()]
    return [] if prod(bins) == 1 else [*dict.fromkeys((four[0], four[-1]))]


def _write(figure: Figure, left: float, top: float, text: str, size: float, **how: Any) -> None:
    """Text whose lower left corner is so many inches from the left and the top."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, literal(text), fontsize=size, color=INK, **how)


def _title(dataset: DetectionDataset, image: int, row: int) -> str:
    record = dataset.records[image]
    x1, y1, x2, y2 = record.boxes[row].tolist()
    size = SIZES[int(size_class(torch.tensor(record.area[row])))]
    name = dataset.class_names[record.labels[row] - 1]
    return f"{record.name}: {name}, {size}, {x2 - x1:.0f} x {y2 - y1:.0f} pixels"
