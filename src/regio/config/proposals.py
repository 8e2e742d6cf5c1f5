"""Methods that find boxes, by the words of the command line and by the settings on a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regio.proposals import ProposalMethod

__all__ = ["METHODS", "method_named", "method_of_settings"]


def _selective_search() -> ProposalMethod:
    from regio.proposals import SelectiveSearch

    return SelectiveSearch.fast()


def _selective_search_quality() -> ProposalMethod:
    from regio.proposals import SelectiveSearch

    return SelectiveSearch.quality()


def _grid() -> ProposalMethod:
    from regio.proposals import Grid

    return Grid()


METHODS: dict[str, Callable[[], ProposalMethod]] = {
    "selective-search": _selective_search,
    "selective-search:quality": _selective_search_quality,
    "grid": _grid,
}
"""By the word on the command line; a checkpoint with a proposal network is a method too."""


def method_named(word: str) -> ProposalMethod:
    """The method called `word`, one of METHODS, or the proposal network of the checkpoint at that path.

    Raises ValueError for another word, for a detector without a proposal network, and as `regio.config.load_detector`.
    """
    if word in METHODS:
        return METHODS[word]()
    if not Path(word).is_file():
        raise ValueError(f"proposals: expected {', '.join(METHODS)}, or a file, got '{word}'")
    return _network(word)


def method_of_settings(settings: Mapping[str, Any]) -> ProposalMethod:
    """The inverse of `regio.proposals.method_settings`, for the methods of this library.

    Raises ValueError for another method, and where the checkpoint of a proposal network is no longer there or another
    one.
    """
    from regio.proposals import Grid, SelectiveSearch, method_settings

    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    name = values.pop("name", "")
    if name == "ProposalNetwork":
        path = values["weights"]
        if not Path(path).is_file():
            raise ValueError(f"its boxes are those of the proposal network {path}, which is not there")
        network = _network(path, values["number"])
        if method_settings(network)["detector"] != values["detector"]:
            raise ValueError(f"its boxes are those of the proposal network {path}, which is another one now")
        return network
    kinds: dict[str, Callable[..., ProposalMethod]] = {"SelectiveSearch": SelectiveSearch, "Grid": Grid}
    if name not in kinds:
        raise ValueError(f"its boxes were found by {name or 'what is not known'}")
    return kinds[name](**values)


def _network(path: str, number: int = 2000) -> ProposalMethod:
    from regio.config import load_detector
    from regio.proposals import ProposalNetwork

    detector, _ = load_detector(path)
    if detector.proposals is None:
        raise ValueError(f"{path}: expected a detector with a proposal network, got one whose boxes are given")
    return ProposalNetwork(detector, number, weights=path)
