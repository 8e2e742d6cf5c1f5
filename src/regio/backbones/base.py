"""What a backbone is: a network that gives the maps of some levels, and which of its weights they depend on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regio.backbones.chain import Chain, Level
from regio.evaluation_mode import evaluation_mode
from regio.frozen_norm import freeze_batch_norm
from regio.types import FeatureMap

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Backbone", "ImageItself"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A network `body` that gives one tensor [N, C, H, W] for each of `gives`, of which the `levels` are passed on.

    frozen: the level up to which weights are fixed, 0 for none. Attributes `channels` and `strides` are those of the
    given levels. Raises ValueError when `body` has not the levels asked for, or cannot run on images of any size.
    """

    def __init__(
        self,
        body: nn.Module,
        gives: Sequence[Level],
        *,
        levels: Sequence[int],
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        frozen: int = 0,
        frozen_norm: bool = True,
    ) -> None:
        super().__init__()
        place = {each.level: i for i, each in enumerate(gives)}
        if list(levels) != sorted(set(levels)) or not levels:
            raise ValueError(f"levels: expected at least one, in rising order, got {list(levels)}")
        for name, level in [*(("levels", each) for each in levels), *([("frozen", frozen)] if frozen else [])]:
            if level not in place:
                raise ValueError(f"{name}: expected levels among {sorted(place)}, which this backbone has, got {level}")
        self._gives = tuple(gives)
        self.levels = tuple(levels)
        self.places = tuple(place[level] for level in levels)
        self.channels = tuple(gives[i].channels for i in self.places)
        self.strides = tuple(gives[i].stride for i in self.places)
        self.mean, self.std = mean, std
        self.body = body.to(memory_format=torch.channels_last)
        body.eval()  # this run must leave no trace
        depends = _dependencies(body, gives)
        for name in depends[place[frozen]] if frozen else ():
            body.get_parameter(name).requires_grad_(False)
        if frozen_norm:
            freeze_batch_norm(body, torch.rand(1, 3, 64, 64))
        body.train()

    def forward(self, images: Tensor) -> tuple[FeatureMap, ...]:
        """The maps of the levels, finest first, of `images` [N, 3, H, W] normalised by `mean` and `std`."""
        maps = self.body(images)
        return tuple(FeatureMap(maps[i], stride) for i, stride in zip(self.places, self.strides, strict=True))

    def stages(self) -> dict[int, set[str]]:
        """The parameters of each stage, by the level of its map: the names in `body` of those that this map depends on
        and that of the level before does not. Stages after the last of `levels` are left out."""
        depends = dict(zip((each.level for each in self._gives), _dependencies(self.body, self._gives), strict=True))
        found, before = dict[int, set[str]](), set[str]()
        for level in sorted(level for level in depends if level <= self.levels[-1]):
            found[level], before = depends[level] - before, before | depends[level]
        return found

    def split(self) -> tuple[Backbone, nn.Sequential]:
        """A backbone of the levels but the last one, and the layers from there to the last: what C4 detectors have as
        a head (He et al. 2016, section 3, "Networks on Conv feature maps"). They are the layers of this backbone, not
        copies.

        Raises ValueError for a backbone of one level, and for one that is not a chain of stages.
        """
        if len(self.levels) < 2:
            raise ValueError(f"backbone: expected two levels at least, the last to be split off, got {self.levels}")
        rest = self.up_to(self.levels[-2])
        return rest, nn.Sequential(OrderedDict(self.after(self.levels[-2]).named_children()))

    def up_to(self, level: int) -> Backbone:
        """A backbone of `level`, which need not be one of its levels, and of its levels before that. Its layers are
        those of this backbone, not copies. Errors as of `split`."""
        gives, chain = self._ends(lambda each: each == level or (each < level and each in self.levels))
        part = Backbone(
            chain.part([*gives.values()]),
            [*gives],
            levels=[each.level for each in gives],
            mean=self.mean,
            std=self.std,
            frozen_norm=False,  # as it is already
        )
        return part.train(self.training)

    def after(self, level: int) -> Chain:
        """The layers after the map of `level`, which give the later ones of its maps from it. They are those of this
        backbone, not copies. Errors as of `split`."""
        gives, chain = self._ends(lambda each: each == level or (each > level and each in self.levels))
        first, *later = gives.values()
        return chain.part(later, after=first)

    def _ends(self, wanted: Callable[[int], bool]) -> tuple[dict[Level, str], Chain]:
        """The layers that end the `wanted` levels, and the chain of all."""
        chain = Chain.of(self.body)
        if chain is None:
            raise ValueError(
                "backbone: expected a chain of stages, which ResNets of torchvision and timm are, to take apart at a "
                f"level; got {type(self.body).__name__}"
            )
        ends = zip(self._gives, chain.ends, strict=True)
        return {level: name for level, name in ends if wanted(level.level)}, chain


class ImageItself(nn.Module):
    """The backbone that passes the image on as its only map, of stride 1: R-CNN's, whose convolutions come after the
    region operation. mean, std: those of the images that the network after it was trained on."""

    levels = (0,)
    channels = (3,)
    strides = (1,)

    def __init__(
        self, mean: tuple[float, float, float] = IMAGENET_MEAN, std: tuple[float, float, float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> tuple[FeatureMap]:
        """`images` [N, 3, H, W] as a map."""
        return (FeatureMap(images, 1),)


def _dependencies(body: nn.Module, gives: Sequence[Level]) -> list[set[str]]:
    """The names of the parameters that each output of `body` depends on, from a run on a small black image.

    Raises ValueError when the outputs are not those that `gives` declares.
    """
    parameters = dict(body.named_parameters())
    required = {name: parameter.requires_grad for name, parameter in parameters.items()}
    like = next(iter(parameters.values()))
    body.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(body):  # batch norm learns nothing
            outputs = body(torch.zeros(1, 3, 64, 96, device=like.device, dtype=like.dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"body: expected a network for images of any size; on one of 64 x 96 it fails: {error}"
        ) from error
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(required[name])
    depends = []
    for output, (level, channels, _) in zip(outputs, gives, strict=True):
        if output.ndim != 4 or output.shape[1] != channels:
            raise ValueError(f"body: expected shape [1, {channels}, H, W] at level {level}, got {list(output.shape)}")
        leaves = _leaves(output)
        depends.append({name for name, parameter in parameters.items() if id(parameter) in leaves})
    return depends


def _leaves(output: Tensor) -> set[int]:
    """The `id` of each leaf in the graph of `output`: what a gradient would reach, which need not be computed."""
    seen, waiting, leaves = set[Any](), [output.grad_fn], set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    return leaves
