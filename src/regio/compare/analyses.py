"""What a study may ask of trained detectors beside their accuracy: more columns of a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from regio.analysis import LearnedSize, count_samples, extractor_of, published_flops, separable_flops
from regio.backbones import Backbone
from regio.boxes import resize_boxes
from regio.data import DetectionDataset
from regio.detector import TwoStageDetector
from regio.regions import LearnedRegionFeatures, Sampled
from regio.types import FeatureMap, Regions

__all__ = ["ANALYSES", "Analysis", "sampled_cells"]

Analysis = Callable[[TwoStageDetector, DetectionDataset], Mapping[str, float]]
"""Numbers by the names of columns, of a trained detector and the validation images with what it is given; none where it
does not apply."""

IMAGES = 100  # that are looked at, spread over the validation images
ALL = 10**9  # maxima of samples that leave no cell out


@torch.no_grad()
def sampled_cells(detector: TwoStageDetector, validation: DetectionDataset) -> dict[str, float]:
    """Of learned region features on one map: the mean number of cells that a proposal reads outside and inside of its
    box, and the operations that follow for an image, in 1e9: of the paper's equations as they are written (its table
    1), and of the separable form. Empty for other extractors and for pyramids.

    Means are over the proposals of up to 100 images.
    """
    try:
        (extractor, *more), backbone = extractor_of(detector).extractors, detector.backbone
    except TypeError:  # no heads, or heads that read no levels
        return {}
    single = isinstance(backbone, Backbone) and len(backbone.strides) == 1 and not more
    if not isinstance(extractor, LearnedRegionFeatures) or not single:
        return {}
    assert isinstance(backbone, Backbone)
    head: Any = detector.roi_heads[0]
    channels: int = head.trunk.channels
    mode = extractor.mode if isinstance(extractor.mode, Sampled) else Sampled(ALL, ALL)
    outside, inside, flops, separable = [], [], [], []
    few = min(IMAGES, len(validation))
    for i in range(few):
        sample = validation[i * len(validation) // few]
        if sample.proposals is None or not len(sample.proposals):
            continue
        size = (int(sample.image.shape[1]), int(sample.image.shape[2]))
        scaled = detector.preprocess.size_of(size)
        height, width = (side // backbone.strides[0] for side in detector.preprocess.padded([scaled]))
        x = FeatureMap(torch.empty(1, 1, height, width), backbone.strides[0], (scaled,))
        r = Regions.from_list([resize_boxes(sample.proposals, size, scaled)])
        within, beside = count_samples(x, r, mode, extractor.support)
        cells = LearnedSize(
            *x.extents[0],
            float((within + beside).double().mean()),
            len(r),
            extractor.bins[0] * extractor.bins[1],
            extractor.embedding_channels,
            extractor.key_channels,
            channels,
        )
        inside += within.tolist()
        outside += beside.tolist()
        flops.append(published_flops(cells).total / 1e9)
        separable.append(separable_flops(cells).total / 1e9)
    if not inside:
        return {}
    return {
        "cells outside": statistics.fmean(outside),
        "cells inside": statistics.fmean(inside),
        "GFLOP": statistics.fmean(flops),
        "GFLOP, separable": statistics.fmean(separable),
    }


ANALYSES: dict[str, Analysis] = {"sampled-cells": sampled_cells}
"""By the names in the files of studies."""
