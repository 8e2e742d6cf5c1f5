"""Classifiers taken apart: what R-CNN, SPPnet and Fast R-CNN make of a network trained to classify images.

Of the three transformations of Fast R-CNN (section 2.2), the first two are here: the last max pooling gives way to a
region operation with as many bins as the first fully connected layer expects, and the last fully connected layer, that
of the thousand classes, to those of a detector. The third, boxes as a second input, is the detector itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import nn

from regio.backbones import Backbone, Chain
from regio.pretrained import read_state, torchvision_classifier
from regio.roi_heads import FullyConnected

__all__ = ["SplitClassifier", "split_classifier"]

_HALF_A_CELL = 8  # pixels, of AlexNet's cells


class SplitClassifier(NamedTuple):
    """The parts of a classifier. backbone: its convolutions, one map of stride 16, the one that was pooled last.
    trunk: its layers fc6 and fc7, which take features of ``trunk.bins`` of that map."""

    backbone: Backbone
    trunk: FullyConnected


def split_classifier(
    name: str,
    *,
    pretrained: bool = True,
    weights: Path | str | None = None,
    frozen: int | None = None,
    centred: bool = True,
) -> SplitClassifier:
    """torchvision's `name`, "alexnet" or one of its VGGs ("vgg16"), as a backbone and a trunk with its weights.

    weights: a local file to read in place of the download, the state dict of the whole model. With `pretrained` False
    and no file the weights are random. frozen: the level up to which weights are fixed; by default, as in Fast R-CNN,
    conv1 of AlexNet (level 2), conv1 and conv2 of VGG (level 1).

    centred: AlexNet's convolutions and poolings pad less than half their sizes, so its cell (0, 0) looks at the pixels
    about (15.5, 15.5), not (8, 8), and the last row and column are missing. Zeros of 8 pixels around the images mend
    both. False: the map is that of the classifier itself, for crops that are classified whole (R-CNN).

    Raises ValueError for another model, FileNotFoundError naming weights that are nowhere, ValueError naming a file
    that does not hold the fully connected layers.
    """
    if name != "alexnet" and not name.startswith("vgg"):
        raise ValueError(
            f"name: expected alexnet or a VGG, which have fully connected layers, got {name}; others get new ones, "
            "FullyConnected(channels, bins, hidden)"
        )
    model = torchvision_classifier(name, pretrained, weights)
    layers = {f"classifier.{key}": layer for key, layer in model.classifier.named_children()}  # type: ignore[union-attr]
    linear = {key: layer for key, layer in layers.items() if isinstance(layer, nn.Linear)}
    names, (fc6, fc7, _) = [*linear][:2], linear.values()
    if weights is not None:
        _require(names, linear, Path(weights), name)
    if frozen is None:
        frozen = 2 if name == "alexnet" else 1

    with torch.device("meta"):
        natural = Chain.of_classifier(torchvision.models.get_model(name, weights=None))
    chain = Chain.of_classifier(model)
    gives = chain.cut(natural.levels(name, last=4), 16)
    if centred and name == "alexnet":
        chain = Chain({"pad": nn.ZeroPad2d(_HALF_A_CELL), **dict(chain.named_children())}, chain.ends)
    backbone = Backbone(chain, gives, levels=(4,), frozen=frozen)

    bins: tuple[int, int] = model.avgpool.output_size  # type: ignore[assignment,union-attr]
    dropout = next(layer.p for layer in layers.values() if isinstance(layer, nn.Dropout))
    with torch.device("meta"):
        trunk = FullyConnected(backbone.channels[0], bins, fc7.out_features, dropout=dropout)
    trunk.fc6, trunk.fc7 = fc6, fc7
    return SplitClassifier(backbone, trunk)


def _require(names: list[str], linear: dict[str, nn.Linear], file: Path, model: str) -> None:
    """Raise ValueError unless `file` has these layers: `torchvision_classifier` passes over a missing classifier."""
    state = read_state(file, f"weights of {model}")
    for key in (f"{name}.{what}" for name in names for what in ("weight", "bias")):
        expected = list(getattr(linear[key.rpartition(".")[0]], key.rpartition(".")[2]).shape)
        if key not in state or list(state[key].shape) != expected:
            got = f"shape {list(state[key].shape)}" if key in state else "nothing"
            raise ValueError(f"{file}: {key}: expected shape {expected}, a fully connected layer of {model}, got {got}")
