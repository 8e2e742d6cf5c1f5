"""What an object is, in words."""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from regio.data import Compose, HorizontalFlip, PhotometricJitter
from regio.identity import describe, differences


@dataclass(frozen=True)
class Spec:
    size: int = 3
    part: object = None


def halve(value: float) -> float:
    return value / 2


class Free:
    """An object of somebody else's, which holds itself."""

    def __init__(self, amount: float) -> None:
        self.amount, self.me, self._cache = amount, self, object()


def test_all_parts_by_path() -> None:
    assert describe(Spec(4, Spec(part=[1, 2])), "a") == {
        "a": "Spec", "a.size": "4", "a.part": "Spec", "a.part.size": "3", "a.part.part": "[1, 2]"
    }  # fmt: skip
    flips = describe(Compose([HorizontalFlip(0.25), PhotometricJitter()]), "t")
    assert flips["t.transforms.0"] == "HorizontalFlip" and flips["t.transforms.0.p"] == "0.25"
    assert flips["t.transforms.1.hue"] == "10.0"
    assert describe(functools.partial(halve, value=3), "f")["f.keywords.value"] == "3"
    assert describe(halve, "f") == {"f": "halve"}
    assert describe(Free(0.5), "o") == {"o": "Free", "o.amount": "0.5"}
    assert describe(None, "n") == {"n": "None"}


def test_modules_are_their_parts_and_numbers_but_not_their_weights() -> None:
    def net(slope: float = 0.1) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(slope), nn.Dropout(0.5))

    assert describe(net(), "m") == describe(net(), "m")
    assert differences(describe(net(), "m"), describe(net(0.2), "m")) == "m.1.negative_slope 0.1, got 0.2"
    frozen = net()
    frozen[2].eval()
    assert differences(describe(net(), "m"), describe(frozen, "m")) == "m.2.training True, got False"
    assert describe(torch.zeros(2, 3), "t") == {"t": "torch.float32 [2, 3]"}


def test_differences_in_words() -> None:
    was, now = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"}
    assert differences(was, was) == ""
    assert differences(was, now) == "b 2, got 4; c 3, got nothing; d absent, got 5"
    assert differences(was, now, count=1) == "b 2, got 4; and 2 more"
