"""What is compared: arms, each a system with settings of its own.

An arm in words: ``faster-rcnn``; with settings, ``faster-rcnn:extractor=roi-pool:hidden=256``; with a label,
``pooled=faster-rcnn:...``. Commas lie between arms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regio.config import RunConfig, TrainConfig
from regio.settings import UnknownSetting, override

__all__ = ["Arm", "build_arm", "make_arm", "require_classes", "split_arms", "split_settings", "system_in", "with_seed"]

SAME = ("data", "validation", "classes", "images", "validation_images", "difficult")
"""Settings of a run that decide what is measured, and are of no arm's own."""
PROPOSALS = ("proposals", "validation_proposals", "proposals_per_image")
"""Those of systems whose boxes are given; the others find their own."""
FILES = ("proposals", "validation_proposals", "weights")
"""Settings that may name, as ``<LABEL>``, the weights of a network that is trained before the arms."""


@dataclass(frozen=True)
class Arm:
    """One of those that are compared. config: its runs' settings, for seed 0; where its number of steps is None, it
    follows from the budget. left_out: those of the settings for all arms that its system does not have."""

    label: str
    config: RunConfig
    left_out: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return re.sub(r"[^\w.=+-]+", "-", self.label).strip("-.") or "arm"

    @property
    def first(self) -> tuple[str, ...]:
        """The labels of the networks whose weights it needs, see FILES."""
        return tuple(dict.fromkeys(self._named().values()))

    def with_weights(self, weights: Mapping[str, Path]) -> Arm:
        """The same with the files of these networks, by label, in place of their names."""
        files: dict[str, Any] = {name: str(weights[label]) for name, label in self._named().items()}
        return replace(self, config=replace(self.config, **files))

    def _named(self) -> dict[str, str]:
        """Labels by the settings of FILES that name them."""
        found = {name: re.fullmatch(r"<(.+)>", getattr(self.config, name) or "") for name in FILES}
        return {name: match[1] for name, match in found.items() if match}


def split_arms(text: str) -> list[str]:
    """The arms in `text`, at the commas that lie in no brackets. Raises ValueError where there is none."""
    arms = [each.strip() for each in re.split(r",(?![^\[]*\])", text)]
    if not all(arms):
        raise ValueError(f"systems: expected names with commas between them, got '{text}'")
    return arms


def split_settings(shared: RunConfig, words: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """`shared` with those of the assignments `words` that decide what is measured, see SAME; and the other words."""
    same = [word for word in words if word.partition("=")[0] in SAME]
    return override(shared, same), [word for word in words if word not in same]


def make_arm(text: str, shared: RunConfig, defaults: Sequence[str] = (), settings: Sequence[str] = ()) -> Arm:
    """The arm that `text` describes, see the module.

    shared: what all arms have, such as the data. defaults, settings: assignments for all arms, of which each arm takes
    those that its system has; the arm's own win over `settings`, and these over `defaults`. Raises ValueError for a
    system or a setting that is unknown, or that is not an arm's to choose.
    """
    head, *own = _words(text)
    label, equals, _ = head.rpartition("=")
    label = label.strip() if equals else " ".join([head, *own])
    arm = build_arm(label, system_in(text), own, shared, defaults, settings)
    require_classes(arm)
    return arm


def build_arm(
    label: str,
    system: str,
    own: Sequence[str],
    shared: RunConfig,
    defaults: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Arm:
    """As `make_arm`, for a system that may find objects of no class."""
    base = override(shared, [f"model={system}"])
    unneeded = () if base.model.needs_proposals else PROPOSALS
    common = [word for word in (*defaults, *settings) if word.partition("=")[0] not in unneeded]
    try:
        config = _fitting(base, common, own)
        _require_comparable(shared, config)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error
    return Arm(label, config, tuple(word for word in settings if word not in common))


def system_in(text: str) -> str:
    """The name of the system of the arm that `text` describes."""
    return text.partition(":")[0].rpartition("=")[2].strip()


def _words(text: str) -> list[str]:
    """`text` at its colons, but for those inside a value: a word after the first has an equals sign."""
    head, *rest = text.split(":")
    words: list[str] = []
    for each in rest:
        if "=" in each:
            words.append(each)
        elif words:
            words[-1] += f":{each}"
        else:
            raise ValueError(f"{text}: expected SYSTEM:key=value, got '{each}' after the colon")
    return [head, *words]


def _fitting(base: RunConfig, common: list[str], own: Sequence[str]) -> RunConfig:
    """`base` with those of the `common` settings that it has, and all of its `own`; the others go from `common`."""
    while True:
        try:
            return override(base, [*common, *own])
        except UnknownSetting as error:
            kept = [word for word in common if word.partition("=")[0] != error.key]
            if len(kept) == len(common) or any(word.partition("=")[0] == error.key for word in own):
                raise
            common[:] = kept


def _require_comparable(shared: RunConfig, config: RunConfig) -> None:
    for name in SAME:
        if getattr(config, name) != getattr(shared, name):
            raise ValueError(f"{name}: expected the same for all that is compared")
    training, default = config.training, TrainConfig()
    if training.epochs != default.epochs:
        raise ValueError("epochs: the budget decides how long is trained; give --budget or steps=N")
    if training.seed != default.seed:
        raise ValueError("seed: expected --seeds, how many there are")
    if training.devices != 1:
        raise ValueError(f"devices: expected 1, got {training.devices}")


def require_classes(arm: Arm) -> None:
    """Raise ValueError for a system that finds objects of no class."""
    if arm.config.model.labels(("a", "b")) != ("a", "b"):
        raise ValueError(f"{arm.label}: finds objects of no class, and detections of classes are compared")


def with_seed(config: RunConfig, seed: int, steps: int) -> RunConfig:
    """The settings of one run."""
    return replace(config, training=replace(config.training, seed=seed, steps=steps))
