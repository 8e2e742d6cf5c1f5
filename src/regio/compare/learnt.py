"""The part of a study's page on what extractors have learned to read, from the checkpoints that runs have kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure

from regio.analysis import divergence_over_training, divergence_rows, measured_images, write_divergences
from regio.compare.plan import Run
from regio.compare.study import Learnt
from regio.data import DetectionDataset
from regio.visualize import divergence_figure
from regio.visualize.before_and_after import initial_and_final_figure, typical_objects
from regio.visualize.page import Illustration, figures, heading, paragraph

__all__ = ["learnt_parts"]

IMAGES = 40  # that are measured


def learnt_parts(
    learnt: Learnt, runs: Mapping[str, Run], validation: DetectionDataset, folder: Path, device: torch.device | str
) -> list[str]:
    """A section on the runs of the arms of `learnt`, by label; those that are not among `runs` are passed over. Its
    plots and numbers are written to `folder`, too. Empty where there is no run or no object.

    The divergences of the weights over the steps, and the weights before and after training over photos, see
    `regio.analysis.divergence_over_training` and `regio.visualize.before_and_after`; on up to 40 validation images.
    Raises ValueError for a run that has kept no checkpoint.
    """
    found = {label: runs[label].folder for label in learnt.arms if label in runs}
    photos = measured_images(validation, IMAGES)
    if not found or not any((~record.crowd).any() for record in photos.records):
        return []
    objects = typical_objects(photos)
    series = {label: divergence_over_training(place, photos, device=device) for label, place in found.items()}
    write_divergences(folder / "tables" / "divergence.csv", series)
    drawn: dict[str, tuple[str, Figure]] = {}
    if divergence_rows(series):
        caption = "Divergence of the weights over the steps, by the size of the objects"
        drawn["divergence"] = (caption, divergence_figure(series))
    for label, place in found.items():
        figure = initial_and_final_figure(place, photos, objects=objects, device=device)
        drawn[f"weights-{place.parent.name}"] = (f"{label}: weights before and after training", figure)
    shown: list[Illustration] = []
    for name, (caption, figure) in drawn.items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
        shown.append((caption, figure))
    return [heading(learnt.title), paragraph(learnt.about), figures(shown)]
