"""What the papers report, to be read beside a comparison, and not to be compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from regio.settings import from_dict, setting

__all__ = ["Published", "published"]


@dataclass(frozen=True)
class Published:
    """A figure of a paper, see papers.yaml."""

    systems: tuple[str, ...] = setting((), "names in regio.config.SYSTEMS that it is of")
    paper: str = setting("", "the system as its authors call it")
    network: str = setting("", "and variant")
    data: str = setting("", "set it was measured on")
    measure: str = setting("", "mAP or AP")
    value: float = setting(0.0, "in percent", ge=0, le=100)
    seconds: float | None = setting(None, "for an image", gt=0)
    source: str = setting("", "where the figures are from")


@cache
def published() -> tuple[Published, ...]:
    """All figures of papers.yaml."""
    text = files("regio.compare").joinpath("papers.yaml").read_text(encoding="utf-8")
    return tuple(from_dict(Published, each) for each in yaml.safe_load(text))
