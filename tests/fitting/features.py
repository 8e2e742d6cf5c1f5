"""Random features in a store, with what their regions overlap."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from regio.fitting import FeatureStore, LabelledRegions, Layer

CLASSES = ("first", "second", "third")


def made(
    folder: Path, images: int = 12, regions: int = 40, width: int = 8, classes: int = 3, seed: int = 0
) -> tuple[FeatureStore, list[LabelledRegions], NDArray[np.float32]]:
    """A store of a layer "fc7" whose features point where their class is, and all features [rows, width].

    Image i has two objects; other regions overlap one of them by 0.25 (negative) or 0.5 (neither), or none.
    """
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes + 1, width))
    labelled, values = [], []
    for image in range(images):
        labels = np.array([image % classes, (image + 1) % classes]) + 1
        of = np.concatenate([labels, generator.integers(0, classes + 1, regions - 2)])
        share = np.concatenate([[1.0, 1.0], generator.choice([0.0, 0.25, 0.5], regions - 2)])
        overlap = np.zeros((regions, classes), np.float32)
        overlap[np.arange(regions)[of > 0], of[of > 0] - 1] = share[of > 0]
        features = share[:, None] * centres[of] * 3 + generator.normal(size=(regions, width))
        x1, y1 = generator.uniform(0, 60, (2, regions))
        boxes = np.stack([x1, y1, x1 + generator.uniform(8, 40, regions), y1 + generator.uniform(8, 40, regions)], 1)
        labelled.append(
            LabelledRegions(
                torch.from_numpy(boxes.astype(np.float32)),
                torch.from_numpy(labels),
                torch.from_numpy(overlap),
                torch.zeros(regions, classes, dtype=torch.bool),
            )
        )
        values.append(features.astype(np.float32))
    store = FeatureStore(folder, {}, [regions] * images, {"fc7": width}, np.float32)
    for image, features in enumerate(values):
        store.write(image, {"fc7": torch.from_numpy(features)})
    return store, labelled, np.concatenate(values)


def layer_of(values: NDArray[np.float32], images: int) -> Layer:
    """Features [rows, width] in memory, of images with equally many regions."""
    return Layer("fc7", values, np.linspace(0, len(values), images + 1).astype(np.int64))
