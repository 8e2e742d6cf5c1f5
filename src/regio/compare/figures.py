"""Plots of a comparison, and what its detectors find in the same photos."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from regio.compare.results import Measured, spread
from regio.data import DetectionDataset
from regio.interchange import detections_from_coco
from regio.visualize import contact_sheet, draw_class_map, draw_detections, draw_targets, with_legend
from regio.visualize.plots import INK, line_colour, style_axes
from regio.visualize.text import literal
from regio.whole_files import distinct_names

__all__ = ["accuracy_figure", "class_map_sheet", "examples_sheet", "time_figure"]

PHOTOS, CELL = 5, 300  # of the sheet, and pixels of each


def accuracy_figure(measured: Sequence[Measured], bars: Mapping[str, str]) -> Figure:
    """Bars of some numbers, titles by fields of `Measured`, for each arm: the mean over seeds, a line from the lowest
    to the highest, and a point for each seed."""
    labels = list(dict.fromkeys(each.label for each in measured))
    figure = Figure(figsize=(max(5.0, 1.6 + 1.3 * len(labels)), 4.4), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, "accuracy on the validation images")
    for i, (field, name) in enumerate(bars.items()):
        for place, label in enumerate(labels):
            values = [getattr(each, field) for each in measured if each.label == label]
            found, at = spread(values), place + (i - 0.5) * 0.38
            axes.bar(at, found.mean, 0.36, color=line_colour(i), alpha=0.85, label=name if place == 0 else None)
            if found.count > 1:
                reach = [[found.mean - found.low], [found.high - found.mean]]
                axes.errorbar(at, found.mean, reach, color=INK, capsize=4, linewidth=1.2)
                axes.plot([at] * len(values), values, "o", color=INK, markersize=2.5)
            if found.count:
                axes.annotate(
                    f"{found.mean:.3f}", (at, found.high), (0, 4), textcoords="offset points", ha="center", fontsize=8
                )
    axes.set_xticks(range(len(labels)), [_wrapped(label) for label in labels], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def time_figure(measured: Sequence[Measured], field: str, title: str) -> Figure:
    """A number, the field of `Measured` with this title, against the time of training and against the time for an
    image: a point for each seed, and the mean of each arm with a line over its seeds."""
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    times: dict[str, Callable[[Measured], float | None]] = {
        "seconds of training": lambda each: each.training_seconds,
        "seconds for an image": lambda each: each.seconds_an_image,
    }
    labels = list(dict.fromkeys(each.label for each in measured))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, time) in zip(panels, times.items(), strict=True):
        style_axes(axes, "")
        for i, label in enumerate(labels):
            pairs = [(time(each), getattr(each, field)) for each in measured if each.label == label]
            points = np.array([p for p in pairs if p[0] is not None and not math.isnan(p[1])], dtype=np.float64)
            if not len(points):
                continue
            mean, colour = points.mean(axis=0), line_colour(i)
            if len(points) > 1:
                axes.plot(*points.T, "o", color=colour, markersize=3.5, alpha=0.6)
                axes.vlines(mean[0], points[:, 1].min(), points[:, 1].max(), color=colour, linewidth=1.2)
            axes.plot(*mean, "o", color=colour, markersize=9, label=literal(label))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_xlim()
        middle, reach = math.sqrt(low * high), max(1.25 * math.sqrt(high / low), 1.6)
        axes.set_xlim(middle / reach, middle * reach)
        axes.set_xlabel(name, fontsize=9)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(title, fontsize=9)
    known: dict[str, Any] = {}  # an arm whose time for an image is not known is in the first panel alone
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        known = dict(zip(names, handles, strict=True)) | known
    ordered = [name for label in labels if (name := literal(label)) in known]
    if ordered:
        where = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        panels[1].legend([known[name] for name in ordered], ordered, fontsize=8, frameon=False, **where)
    return figure


def examples_sheet(
    found: Mapping[str, Sequence[Mapping[str, Any]]], validation: DetectionDataset
) -> Image.Image | None:
    """A row for each of a few validation images, a column for what is annotated and one for each arm: as many of its
    detections as objects are annotated, the best ones, whatever their scores. None where no image has an object.

    found: detections in COCO's results form, by label.
    """
    light = validation.without_masks()
    objects = [i for i, record in enumerate(light.records) if not record.crowd.all()]
    chosen = [objects[i * len(objects) // min(PHOTOS, len(objects))] for i in range(min(PHOTOS, len(objects)))]
    pictures, captions = [], []
    for i in chosen:
        sample = light[i]
        count = int((~light.records[i].crowd).sum())
        pictures.append(draw_targets(sample.image, sample.targets, light.class_names))
        captions.append(f"{sample.name}: {count} annotated")
        for rows in found.values():
            own = sorted((row for row in rows if row["image_id"] == sample.id), key=lambda row: -row["score"])[:count]
            best = [{k: v for k, v in row.items() if k != "segmentation"} for row in own]
            detections = detections_from_coco(best, light.category_ids)
            pictures.append(draw_detections(sample.image, detections, light.class_names, -math.inf))
            lowest = f", scores down to {own[-1]['score']:.2f}" if own else ""
            captions.append(f"{len(own)} best{lowest}")
    if not pictures:
        return None
    return contact_sheet(pictures, 1 + len(found), captions, ["annotated", *found], CELL)


def class_map_sheet(folders: Mapping[str, Path], validation: DetectionDataset) -> Image.Image:
    """A row for each of a few validation images with a class map, a column for what is annotated and one for what the
    run in each of `folders`, by label, has predicted. Over them are the names of the classes."""
    dataset = validation.with_class_maps()
    count = min(PHOTOS, len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)]
    names = distinct_names([record.name for record in dataset.records], ".png")
    pictures, captions, seen = [], [], set[int]()
    for i in chosen:
        sample = dataset[i]
        assert sample.targets.class_map is not None
        maps = [sample.targets.class_map]
        for folder in folders.values():
            with Image.open(folder / "predictions" / names[i]) as image:
                maps.append(torch.from_numpy(np.array(image)))
        pictures += [draw_class_map(sample.image, labels) for labels in maps]
        captions += [sample.name, *[""] * len(folders)]
        seen.update(*(labels.unique().tolist() for labels in maps))
    sheet = contact_sheet(pictures, 1 + len(folders), captions, ["annotated", *folders], CELL)
    return with_legend(sheet, sorted(seen), dataset.class_names)


def _wrapped(label: str, most: int = 16) -> str:
    """A label in several lines, broken at spaces and hyphens."""
    lines = [""]
    for word in literal(label).replace("-", "-\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > most:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)
