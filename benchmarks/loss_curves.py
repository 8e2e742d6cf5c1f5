"""Loss curves of several runs in one picture, from their metrics.csv:

python benchmarks/loss_curves.py PICTURE.png "NAME=runs/a" "OTHER NAME=runs/b,runs/c" ...

Runs joined by commas are seeds of one method and share a colour. The loss is the sum that is trained on, averaged over
100 steps.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]  # Okabe and Ito's
WINDOW = 100  # steps


def main() -> None:
    file, *methods = sys.argv[1:]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for colour, method in zip(COLOURS, methods, strict=False):
        name, _, folders = method.partition("=")
        for i, folder in enumerate(folders.split(",")):
            step, loss = curve(Path(folder) / "metrics.csv")
            axes.plot(
                step,
                loss,
                color=colour,
                linewidth=1.6,
                linestyle="-" if i == 0 else "--",
                label=name if i == 0 else None,
            )
    axes.set(xlabel="step", ylabel=f"loss, mean over {WINDOW} steps", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, dpi=110)


def curve(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The steps and the smoothed losses that a metrics.csv holds."""
    with file.open() as lines:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(lines) if row["loss"]]
    step, loss = np.array(rows).T
    width = max(1, round(WINDOW / np.median(np.diff(step))))
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    return step[width - 1 :], smooth


if __name__ == "__main__":
    main()
