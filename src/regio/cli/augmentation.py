"""Options of `regio val` and `regio detect` that look at each image several times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BoxVoting", "Flip", "Rounds", "Scales", "augmented"]

Scales = Annotated[
    str | None,
    typer.Option(
        metavar="480,576,...",
        help="Short sides in pixels at which each image is looked at (default: that of the training). The boxes of all "
        "are merged.",
    ),
]
Flip = Annotated[bool, typer.Option("--flip", help="Look at the mirror image of each image too.")]
Rounds = Annotated[
    int, typer.Option(min=1, help="How often the head is applied: 2 looks again at the boxes that it found.")
]
BoxVoting = Annotated[
    bool,
    typer.Option(
        "--box-voting",
        help="Suppress at IoU 0.3, and replace each box that stays by the mean of those of its class around it (IoU "
        "above 0.5), weighted by their scores.",
    ),
]


def augmented(model: nn.Module, scales: str | None, flip: bool, rounds: int, box_voting: bool) -> nn.Module:
    """`model` as these options want it, which only a detector can be. Raises ValueError naming the option that does not
    fit."""
    if scales is None and not flip and rounds == 1 and not box_voting:
        return model
    from regio import augmented as test_time
    from regio.detector import TwoStageDetector

    if not isinstance(model, TwoStageDetector):
        raise ValueError(f"--scales, --flip, --rounds, --box-voting: expected a detector, got a {type(model).__name__}")
    sides = [each.strip() for each in (scales or "").split(",") if each.strip()]
    if not all(side.isdecimal() for side in sides) or (scales is not None and not sides):
        raise ValueError(f"--scales: expected numbers of pixels such as 480,576, got {scales!r}")
    try:
        return test_time.AugmentedDetector.of(
            model,
            scales=[int(side) for side in sides],
            flip=flip,
            rounds=rounds,
            merge=test_time.BoxVoting.of(model) if box_voting else None,
        )
    except ValueError as error:
        raise ValueError(f"--scales, --flip, --rounds, --box-voting: {error}") from error
