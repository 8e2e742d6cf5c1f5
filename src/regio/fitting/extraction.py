"""The features of all regions of a data set, from the head that will classify them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from regio.data import DetectionDataset
from regio.detector import TwoStageDetector
from regio.fitting.feature_store import FeatureStore
from regio.fitting.labels import count_regions, label_regions
from regio.identity import describe, weights_hash
from regio.ready import ReadyDetector
from regio.roi_heads import SVMHead
from regio.types import Regions

__all__ = ["open_store", "store_features"]


def open_store(
    root: Path,
    detector: TwoStageDetector,
    dataset: DetectionDataset,
    dtype: Literal["float16", "float32"] = "float16",
    layers: Sequence[str] = (),
) -> FeatureStore:
    """The store in `root` for the `layers`, by default those that the head of `detector` reads, of all regions of
    `dataset`.

    They depend on the weights before them, on how regions are read and images scaled, and on the data set with its
    proposals; features that were made of anything else are not taken for these. Raises OSError where the disk has not
    enough room.
    """
    head = _head(detector)
    identity = dataset.identity() | {"weights": weights_hash(detector.backbone, detector.neck, head.trunk)}
    for name, part in (
        ("preprocess", detector.preprocess),
        ("backbone", detector.backbone),
        ("neck", detector.neck),
        ("extractor", head.extractor),
        ("trunk", head.trunk),
    ):
        identity |= describe(part, name)
    widths = {name: head.trunk.widths[name] for name in layers or head.read_layers}
    return FeatureStore(root, identity, count_regions(dataset), widths, dtype)


def store_features(
    store: FeatureStore,
    detector: TwoStageDetector,
    dataset: DetectionDataset,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, images: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Write what is missing in `store`, image by image, until all is there (True) or `stop` says so (False).

    progress: called with (images done, images) after each image. Raises OSError where the disk is full.
    """
    ready, missing = ReadyDetector(detector, device, "32-true").detector, store.missing
    head = _head(ready)
    with torch.no_grad():
        for number, index in enumerate(missing):
            if stop():
                return False
            boxes = label_regions(dataset, index).boxes.to(device)
            if len(boxes):
                batch, maps = ready.features([dataset.read_image(index).to(device)])
                features = head.layers(
                    maps, Regions.from_list(ready.preprocess.boxes([boxes], batch)), list(store.widths)
                )
            else:
                features = {name: torch.zeros(0, width) for name, width in store.widths.items()}
            store.write(index, features)
            progress(len(store.counts) - len(missing) + number + 1, len(store.counts))
    return True


def _head(detector: TwoStageDetector) -> SVMHead:
    heads = list(detector.roi_heads)
    if len(heads) != 1 or not isinstance(heads[0], SVMHead):
        raise TypeError(f"detector: expected one with an SVMHead alone, got {[type(h).__name__ for h in heads]}")
    return heads[0]
