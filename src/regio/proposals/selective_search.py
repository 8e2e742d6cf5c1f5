"""Selective search: the boxes of all regions of a hierarchy of segmentations, in several variants.

Uijlings, van de Sande, Gevers, Smeulders: Selective search for object recognition, IJCV 2013, with the settings that
R-CNN's released code uses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["SelectiveSearch"]

COLOUR_BINS, TEXTURE_BINS = 25, 10
SIMILARITIES = "CTSF"  # colour, texture, size, fill
COLOURS = {"hsv": 3, "lab": 3, "rgi": 3, "h": 1, "i": 1}  # channels by name
TALLEST = 4.0  # the scaled image has at most this many times the pixels of a square of its width

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective search, a method that finds boxes: called with an image, uint8 RGB [3, H, W].

    The image is scaled to `width` pixels (None: as it is). For each colour space and each k it is over-segmented
    (Felzenszwalb and Huttenlocher 2004, with `sigma` and segments of at least k pixels), and for each combination of
    similarities the two most similar neighbours are merged until one region is left (section 3.1). A combination is
    letters of C, T, S, F: colour, texture, size, fill, whose sum it is (equation 6). Each region of each hierarchy is a
    box; those with a side under `min_side` pixels of the scaled image are dropped, but for one as long as the image's.

    Boxes are sorted by rank times a random number in [0, 1) drawn from `seed`, where the rank is 1 for the whole image
    and grows by 1 from the last merge to the first and to the segments (section 3.3); of equal boxes the first stays.
    The score is the negative of that product. The same image gives the same boxes every time.

    colours: of "hsv", "lab", "rgi" (normalised red and green, intensity), "h" (hue), "i" (intensity), each scaled to
    0..255. An image that is more than four times as high as wide is scaled to fewer pixels than `width`.

    Raises ValueError for names that are unknown, and for numbers that are not positive.
    """

    colours: tuple[str, ...] = ("hsv", "lab")
    similarities: tuple[str, ...] = ("CTSF", "TSF")
    k: tuple[float, ...] = (50.0, 100.0)
    sigma: float = 0.8
    width: int | None = 500
    min_side: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        for colour in self.colours:
            if colour not in COLOURS:
                raise ValueError(f"colours: expected some of {', '.join(COLOURS)}, got {colour!r}")
        for letters in self.similarities:
            if not letters or set(letters) - set(SIMILARITIES) or len(set(letters)) < len(letters):
                raise ValueError(f"similarities: expected letters of {SIMILARITIES}, each once, got {letters!r}")
        for name, values in (("k", self.k), ("sigma", (self.sigma,))):
            if not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"{name}: expected positive numbers, got {list(values)}")
        for name in ("colours", "similarities", "k"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width: expected at least 1 pixel, got {self.width}")
        if not self.min_side >= 0:
            raise ValueError(f"min_side: expected pixels, got {self.min_side}")

    @classmethod
    def fast(cls, **changes: Any) -> SelectiveSearch:
        """The fast mode of R-CNN: HSV and Lab, two combinations of similarities, two k: 8 hierarchies, about 2000
        boxes. changes: other fields."""
        return cls(**changes)

    @classmethod
    def quality(cls, **changes: Any) -> SelectiveSearch:
        """The quality mode: five colour spaces, four combinations, four k: 80 hierarchies, about 10 000 boxes."""
        variants = {
            "colours": tuple(COLOURS),
            "similarities": ("CTSF", "TSF", "F", "S"),
            "k": (50.0, 100.0, 150.0, 300.0),
        }
        return cls(**(variants | changes))

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [P, 4] float32 in pixels of the image and inside it, and scores [P] float32, best first.

        Raises TypeError or ValueError unless the image is uint8 [3, H, W] with at least one pixel.
        """
        if image.dtype != torch.uint8:
            raise TypeError(f"image: expected dtype torch.uint8, got {image.dtype}")
        if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(f"image: expected shape [3, H, W], got {list(image.shape)}")
        height, width = image.shape[1:]
        scaled = self.scaled(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        boxes, priority = self._search(scaled)
        back = np.array([width / scaled.shape[1], height / scaled.shape[0]] * 2)
        found = np.minimum(boxes * back, [width, height] * 2).astype(np.float32)
        return torch.from_numpy(found), torch.from_numpy((-priority).astype(np.float32))

    def scaled(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image that is searched, RGB [H', W', 3], of `image` [H, W, 3]."""
        height, width = image.shape[:2]
        if self.width is None:
            return image
        scale = min(self.width / width, self.width * math.sqrt(TALLEST / (height * width)))
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        if size == (width, height):
            return image
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    def _search(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Boxes [P, 4] in pixels of `image` and what they are sorted by, [P]."""
        hierarchies = [boxes[::-1] for boxes in self.hierarchies(image)]  # from the whole image to the segments
        rank = np.concatenate([np.arange(1, len(boxes) + 1) for boxes in hierarchies])
        boxes = np.concatenate(hierarchies)
        priority = rank * np.random.default_rng(self.seed).random(len(rank))
        order = np.argsort(priority, kind="stable")
        least = np.minimum(self.min_side, image.shape[1::-1])
        order = order[(boxes[order, 2:] - boxes[order, :2] >= least).all(1)]
        _, first = np.unique(boxes[order], axis=0, return_index=True)
        order = order[np.sort(first)]
        return boxes[order], priority[order]

    def hierarchies(self, image: NDArray[np.uint8]) -> Iterator[NDArray[np.int32]]:
        """The boxes of each hierarchy: of the segments, then of the merges in their order."""
        from regio.kernels.cpu import hierarchical_grouping as kernels

        for colour in self.colours:
            channels = to_colour_space(image, colour)
            segmentation = Segmentation(channels, self.sigma)
            texture = Texture(channels)
            for k in self.k:
                labels, regions = segmentation.segments(k, math.ceil(k))
                size, box = np.zeros(2 * regions, np.int32), np.zeros((2 * regions, 4), np.int32)
                kernels.measure(labels, size, box)
                pairs = np.empty(4 * labels.size, np.int64)
                pairs = np.unique(pairs[: kernels.neighbours(labels, pairs)])
                colour_counts = np.zeros((2 * regions, channels.shape[2] * COLOUR_BINS), np.float32)
                kernels.colour_counts(channels, labels, COLOUR_BINS, colour_counts)
                texture_counts = texture.counts(labels, 2 * regions)
                for letters in self.similarities:
                    use = np.array([letter in letters for letter in SIMILARITIES])
                    merged = np.empty((regions, 2), np.int32)
                    merges = kernels.group(
                        regions, pairs, size, box, colour_counts, texture_counts, channels.shape[2], use, merged
                    )
                    yield box[: regions + merges].copy()


def to_colour_space(image: NDArray[np.uint8], name: str) -> Floats:
    """uint8 RGB [H, W, 3] in the colour space `name`, float32 [H, W, 1 or 3] in 0..255."""
    from regio.kernels.cpu import colour_spaces as kernels

    out = np.empty((*image.shape[:2], 3), np.float32)
    if name == "lab":
        value = np.arange(256) / 255
        linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
        kernels.lab(image, linear, out)
    elif name == "rgi":
        kernels.normalised_rg_grey(image, out)
    elif name == "i":
        out = out[:, :, :1].copy()
        kernels.grey(image, out)
    else:
        kernels.hsv(image, out)
    return np.ascontiguousarray(out[:, :, :1]) if name == "h" else out


def gaussian(sigma: float, order: int = 0) -> Floats:
    """Samples of a Gaussian, or of its first derivative, out to four sigma; the sum of the former is 1."""
    radius = int(4 * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    weight = np.exp(-0.5 * (x / sigma) ** 2)
    weight /= weight.sum()
    return (weight if order == 0 else x / sigma**2 * weight).astype(np.float32)


def filtered(image: Floats, down: Floats, right: Floats) -> Floats:
    """image [H, W, C] correlated with the weights `down` along columns and `right` along rows; mirrored at the border,
    the last pixel twice."""
    from regio.kernels.cpu import felzenszwalb as kernels

    height, width, channels = image.shape
    above, left = len(down) // 2, len(right) // 2
    padded = np.pad(image, ((above, above), (0, 0), (0, 0)), mode="symmetric").reshape(-1, width * channels)
    half = np.empty((height, width * channels), np.float32)
    kernels.along_columns(padded, down, half)
    wide = np.pad(half.reshape(image.shape), ((0, 0), (left, left), (0, 0)), mode="symmetric").reshape(height, -1)
    out = np.empty_like(half)
    kernels.along_rows(wide, right, channels, out)
    return out.reshape(image.shape)


class Segmentation:
    """The segmentations of one image [H, W, C] for any k, of which the edges are measured and sorted once.

    The distance of two pixels is Euclidean in three channels; a single channel counts three times.
    """

    def __init__(self, image: Floats, sigma: float) -> None:
        from regio.kernels.cpu import felzenszwalb as kernels

        self.height, self.width, channels = image.shape
        smooth = filtered(image, gaussian(sigma), gaussian(sigma))
        distance = np.empty(4 * self.height * self.width, np.float32)
        edge = np.empty(len(distance), np.uint32)
        count = kernels.differences(smooth, distance, edge)
        distance = distance[:count] * np.float32(math.sqrt(3 / channels))
        # Distances are not negative, so their bits are in their order; the number of the edge decides between equals.
        keys = distance.view(np.uint32).astype(np.uint64) << np.uint64(32) | edge[:count]
        keys.sort()
        self.distance = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
        self.edge = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def segments(self, k: float, min_size: int) -> tuple[NDArray[np.int32], int]:
        """Labels [H, W] in 0 .. R - 1, and R."""
        from regio.kernels.cpu import felzenszwalb as kernels

        labels = np.empty(self.height * self.width, np.int32)
        count = kernels.merged(self.distance, self.edge, self.height, self.width, float(k), min_size, labels)
        return labels.reshape(self.height, self.width), count


class Texture:
    """Histograms of the Gaussian derivatives (sigma 1) of an image [H, W, C], in eight directions and ten bins."""

    def __init__(self, image: Floats) -> None:
        self.right = filtered(image, gaussian(1.0), gaussian(1.0, 1))
        self.down = filtered(image, gaussian(1.0, 1), gaussian(1.0))
        self.largest = np.maximum(np.abs(self.right).max((0, 1)), np.abs(self.down).max((0, 1)))

    def counts(self, labels: NDArray[np.int32], rows: int) -> Floats:
        """Counts [rows, C 8 10] of the pixels of each region."""
        from regio.kernels.cpu import hierarchical_grouping as kernels

        counts = np.zeros((rows, self.right.shape[2] * 8 * TEXTURE_BINS), np.float32)
        kernels.texture_counts(self.right, self.down, self.largest, labels, TEXTURE_BINS, counts)
        return counts
