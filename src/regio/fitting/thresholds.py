"""Score thresholds that leave so many candidates an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from regio.fitting.feature_store import Layer
from regio.fitting.labels import LabelledRegions
from regio.fitting.linear_svm import LinearClassifiers

__all__ = ["score_thresholds"]


def score_thresholds(
    layer: Layer,
    regions: Callable[[int], LabelledRegions],
    classifiers: LinearClassifiers,
    *,
    per_image: int = 40,
    per_class: int = 100,
) -> Tensor:
    """The score [C] of each class that `per_image` proposals of an image have in the mean, of at most `per_class` of
    each image (R-CNN's released code, which chooses them on the images that it is tested on, while it sees them; here
    those of `layer`, so that what is found in an image does not depend on others). -inf where there are fewer."""
    weight, bias = classifiers.weight.numpy(), classifiers.bias.numpy()
    images, best = len(layer.offsets) - 1, []
    for image in range(images):
        features = layer.of_image(image)[len(regions(image).labels) :]  # without the objects
        scores = features @ weight.T + bias
        best.append(np.sort(scores, axis=0)[::-1][:per_class])
    scores = np.concatenate(best) if best else np.zeros((0, len(bias)))
    count = per_image * images
    if len(scores) <= count:
        return torch.full((len(bias),), -torch.inf)
    return torch.from_numpy(np.sort(scores, axis=0)[::-1][count - 1].copy()).float()
