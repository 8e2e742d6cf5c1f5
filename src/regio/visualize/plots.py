"""Plots of a training and of its result, as matplotlib figures that need no display and no global state.

Save one with ``figure.savefig("curves.png", dpi=150)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from regio.analysis import SIZES, Divergences, OffsetStatistics
from regio.evaluate import CocoMetrics
from regio.visualize.colours import class_colour
from regio.visualize.text import literal

__all__ = [
    "confusion_figure",
    "divergence_figure",
    "line_colour",
    "offset_length_figure",
    "precision_recall_figure",
    "recall_comparison_figure",
    "recall_figure",
    "style_axes",
    "training_figure",
]

INK, FAINT = "#222222", "#b8b8b8"
NOT_LOSSES = {"step", "epoch", "lr", "images_per_second", "seconds"}
MOST_NAMED = 10  # classes with a colour and a name of their own in a plot of many
MOST_COUNTS = 15  # classes up to which a confusion matrix shows its counts


def training_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Losses, learning rate and validation metrics against the step.

    rows: those of a run's metrics.csv, each with "step". Columns that begin with "val_" are metrics in [0, 1]; "lr" is
    the learning rate; all others but "epoch", "images_per_second" and "seconds" are losses, of which "loss" is the sum.
    Losses are drawn as they are, pale, and smoothed by an exponential mean over a twentieth of the run. NaN is not
    drawn, nor is a column of nothing else named: AP of small objects where there are none.

    Raises ValueError when there are no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one row of metrics, got none")
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not math.isnan(value)))
    metrics = [name for name in names if name.startswith("val_")]
    losses = sorted((n for n in names if n not in NOT_LOSSES and n not in metrics), key=lambda n: n != "loss")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    loss_axes, rate_axes, metric_axes = (
        figure.add_subplot(grid[where]) for where in ((0, 0), (1, 0), (slice(0, 2), 1))
    )
    rate_axes.sharex(loss_axes)
    metric_axes.sharex(loss_axes)
    for axes, title in ((loss_axes, "training loss"), (rate_axes, "learning rate"), (metric_axes, _metric(metrics))):
        style_axes(axes, title)

    tops = []
    for i, name in enumerate(losses):
        steps, values = _column(rows, name)
        smooth = _smoothed(values, len(values) / 20)
        colour, width = (INK, 2.0) if name == "loss" else (line_colour(i), 1.4)
        loss_axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.25)
        marker = "o" if len(steps) == 1 else None
        loss_axes.plot(
            steps, smooth, color=colour, linewidth=width, marker=marker, label=f"{_words(name)}  {smooth[-1]:.3g}"
        )
        tops.append(max(np.percentile(values, 99), smooth.max()))
    if losses:
        loss_axes.set_ylim(0, 1.05 * max(tops) or 1)
        loss_axes.legend(fontsize=8, facecolor="white", edgecolor="white", framealpha=0.8)
    loss_axes.tick_params(labelbottom=False)
    if "lr" in names:
        rate_axes.plot(*_column(rows, "lr"), color=INK, linewidth=1.4)
        rate_axes.set_ylim(bottom=0)
    for i, name in enumerate(metrics):
        steps, values = _column(rows, name)
        label = f"{_words(name.removeprefix('val_')).replace('ap', 'AP')}  {values[-1]:.3f}"
        main = i == 0
        metric_axes.plot(
            steps, values, color=INK if main else line_colour(i), linewidth=2 if main else 1.4, marker="o",
            markersize=3.5, label=label,
        )  # fmt: skip
    if metrics:
        metric_axes.set_ylim(bottom=0)
        metric_axes.legend(fontsize=8, facecolor="white", edgecolor="white", framealpha=0.8)
    for axes in (rate_axes, metric_axes):
        axes.set_xlabel("step", fontsize=9)
    return figure


def precision_recall_figure(metrics: CocoMetrics) -> Figure:
    """Precision against recall at IoU 0.5: thin for each class, thick for the mean over classes.

    Up to ten classes are all named, with their AP50. Of more, the five best and the five worst are, and the others are
    grey. Classes without objects have no curve.
    """
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, "precision and recall at IoU 0.5")
    names = [*metrics.per_class]
    defined = [i for i, name in enumerate(names) if metrics.per_class[name].objects]
    ranked = sorted(defined, key=lambda i: -metrics.per_class[names[i]].ap50)
    half = MOST_NAMED // 2
    named = ranked if len(ranked) <= MOST_NAMED else ranked[:half] + ranked[-half:]
    for i in defined:
        if i not in named:
            axes.plot(metrics.recall, metrics.precision[i], color=FAINT, linewidth=0.5, alpha=0.7)
    if defined:
        mean = metrics.precision[defined].mean(axis=0)
        label = f"mean of {len(defined)} classes  {metrics.ap50:.3f}"
        axes.plot(metrics.recall, mean, color=INK, linewidth=2.8, label=label, zorder=3)
    for i in named:
        label = f"{_short(names[i])}  {metrics.per_class[names[i]].ap50:.3f}"
        axes.plot(metrics.recall, metrics.precision[i], color=line_colour(i), linewidth=1.3, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel("recall", fontsize=9)
    axes.set_ylabel("precision", fontsize=9)
    if defined:
        title = "AP50" if named == ranked else f"AP50: {half} best, {half} worst"
        legend = axes.legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), title=title, title_fontsize=9
        )
        legend.set_alignment("left")
    return figure


def recall_figure(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Recall against the number of proposals, for each name points (number, recall); NaN is not drawn."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, "recall of proposals")
    _logarithmic(axes)
    for i, (name, points) in enumerate(curves.items()):
        numbers, values = zip(*points, strict=True)
        colour = INK if i == 0 else line_colour(i)
        axes.plot(numbers, values, color=colour, linewidth=1.8, label=f"{name}  {values[-1]:.3f}")
    axes.set_ylim(0, 1)
    axes.set_xlabel("proposals an image", fontsize=9)
    axes.set_ylabel("recall", fontsize=9)
    axes.legend(fontsize=8, facecolor="white", edgecolor="white", framealpha=0.8)
    return figure


def recall_comparison_figure(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Recall of several methods against the number of proposals: for each method the curves of
    `regio.evaluate.ProposalRecall.curves`, one a panel."""
    panels = list(next(iter(curves.values())))
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    for panel, (axes, what) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        style_axes(axes, f"recall, {what}")
        _logarithmic(axes)
        for i, (name, own) in enumerate(curves.items()):
            numbers, values = zip(*own[what], strict=True)
            colour = INK if i == 0 else line_colour(i)
            axes.plot(numbers, values, color=colour, linewidth=1.8, label=_short(name, 60))
        axes.set_ylim(0, 1)
        axes.set_xlabel("proposals an image", fontsize=9)
        if panel == 0:
            axes.set_ylabel("recall", fontsize=9)
            figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=max(1, 4 - len(curves) // 4))
    return figure


def divergence_figure(series: Mapping[str, Mapping[int, Divergences]]) -> Figure:
    """Mean KL between parts and KL of mask, in nats, against the step, a line for each of `series` and a panel for each
    size of objects (Gu et al. 2018, figure 3).

    series: by label, `regio.analysis.divergence_over_training`. Sizes without objects have no panel, and without masks
    there is no lower row. Numbers of objects are those of the first of the series.

    Raises ValueError where there is nothing to draw.
    """
    measures = {"mean KL between parts": "between_parts", "KL of mask": "of_mask"}
    all_steps = [found for steps in series.values() for found in steps.values()]
    rows = {
        title: name for title, name in measures.items()
        if any(each.count for found in all_steps for each in getattr(found, name).values())
    }  # fmt: skip
    sizes = [size for size in SIZES if any(found.between_parts[size].count for found in all_steps)]
    if not rows or not sizes:
        raise ValueError("series: expected divergences of at least one object, got none")
    figure = Figure(figsize=(1.2 + 3.2 * len(sizes), 0.8 + 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(sizes), squeeze=False, sharex=True, sharey="row")
    for (title, name), panels in zip(rows.items(), grid, strict=True):
        for axes, size in zip(panels, sizes, strict=True):
            objects = getattr(all_steps[0], name)[size].count
            style_axes(axes, f"{size}, {objects} objects" if objects != 1 else f"{size}, 1 object")
            for i, (label, steps) in enumerate(series.items()):
                means = [getattr(found, name)[size].mean for found in steps.values()]
                colour = INK if len(series) == 1 else line_colour(i)
                axes.plot(
                    [*steps], means, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=_short(label, 60)
                )
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel(f"{title} (nats)", fontsize=9)
    for axes in grid[-1]:
        _step_axis(axes, {step for steps in series.values() for step in steps})
    names, lines = grid[0][0].get_legend_handles_labels()[::-1]
    figure.legend(
        lines, names, fontsize=9, frameon=False, loc="outside lower center", ncols=max(1, 4 - len(series) // 4)
    )
    return figure


def offset_length_figure(series: Mapping[str, Mapping[int, OffsetStatistics]]) -> Figure:
    """The mean length of the offsets of each deformable layer, in cells, against the step; a panel for each of
    `series`, with a line for each of its layers, the last one first.

    series: by label, `regio.analysis.offsets_over_training`. Raises ValueError where there is nothing to draw.
    """
    layers = {
        label: list(dict.fromkeys(name for found in steps.values() for name in found.length))
        for label, steps in series.items()
    }
    drawn = {label: names for label, names in layers.items() if names}
    if not drawn:
        raise ValueError("series: expected offsets of at least one layer, got none")
    figure = Figure(figsize=(1 + 5.2 * len(drawn), 4.2), layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    for axes, (label, names) in zip(panels, drawn.items(), strict=True):
        style_axes(axes, _short(label, 60))
        for i, name in enumerate(reversed(names)):
            points = [(step, found.length[name]) for step, found in series[label].items() if name in found.length]
            steps, means = [step for step, _ in points], [each.mean for _, each in points]
            axes.plot(
                steps, means, color=line_colour(i), linewidth=1.8, marker="o", markersize=3.5, label=_end(name, 36)
            )
        _step_axis(axes, set(series[label]))
        axes.legend(fontsize=8, facecolor="white", edgecolor="white", framealpha=0.8)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean length of offsets (cells)", fontsize=9)
    return figure


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def confusion_figure(matrix: NDArray[np.int64], class_names: Sequence[str], unit: int = 1) -> Figure:
    """The confusion matrix [C + 1, C + 1] of `regio.evaluate.confusion_matrix`, coloured by the share of its row.

    Counts are written in the cells of up to 15 classes, in units of `unit`, but for those that round to 0. Row and
    column 0 are called "background". Raises ValueError when the matrix is not of that size.
    """
    side = len(class_names) + 1
    if matrix.shape != (side, side):
        raise ValueError(f"matrix: expected shape {[side, side]}, got {list(matrix.shape)}")
    inches = min(max(4.5, 2 + 0.5 * side), 14)
    figure = Figure(figsize=(1.12 * inches, inches), layout="constrained")
    axes = figure.add_subplot()
    sums = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(sums, 1)
    drawn = axes.imshow(share, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    names = ["background", *(_short(name) for name in class_names)]
    size = min(9.0, 72 * 0.7 * (inches - 2) / side)
    axes.set_xticks(range(side), names, rotation=90, fontsize=size)
    axes.set_yticks(range(side), names, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("detected as", fontsize=10)
    axes.set_ylabel("annotated as", fontsize=10)
    axes.spines[:].set_visible(False)
    if side <= MOST_COUNTS + 1:
        for (row, column), count in np.ndenumerate(matrix):
            if round(count / unit):
                colour = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, f"{count / unit:.0f}", ha="center", va="center", fontsize=size, color=colour)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, format=FuncFormatter(lambda value, _: f"{value:.0%}"))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_label("share of the row", fontsize=9)
    return figure


def _step_axis(axes: Axes, steps: set[int]) -> None:
    axes.set_xlabel("step", fontsize=9)
    if len(steps) == 1:  # a checkpoint alone
        axes.set_xticks([*steps])


def _column(rows: Sequence[Mapping[str, float]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of the rows that have `name`."""
    pairs = np.array([(row["step"], row[name]) for row in rows if name in row], dtype=np.float64)
    pairs = pairs.reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    return pairs[:, 0], pairs[:, 1]


def _smoothed(values: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """Exponential mean over about `span` values, without bias towards the start."""
    keep = 1 - 1 / max(span, 1.0)
    mean, weight, result = 0.0, 0.0, np.empty_like(values)
    for i, value in enumerate(values):
        mean, weight = keep * mean + value, keep * weight + 1
        result[i] = mean / weight
    return result


def style_axes(axes: Axes, title: str) -> None:
    """The look of all plots."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def line_colour(index: int) -> tuple[float, float, float]:
    """The colour of line `index`, as matplotlib takes it."""
    red, green, blue = class_colour(index + 1)
    return red / 255, green / 255, blue / 255


def _metric(names: Sequence[str]) -> str:
    return "validation AP" if "val_ap" in names or not names else "validation"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(name: str, most: int = 24) -> str:
    return literal(name if len(name) <= most else name[: most - 1] + "…")


def _end(name: str, most: int) -> str:
    """The end of a name with dots, which tells layers apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
