"""Features of all regions of a data set on disk, written image by image and read many times."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from regio.whole_files import write_json

__all__ = ["FeatureStore", "Layer"]

Floats = NDArray[np.float32]


class FeatureStore:
    """Features of the regions of N images, for each of some layers, in a folder of `root` of its own.

    identity: what the features depend on, in words (see `regio.identity`); features of another identity are in another
    folder, so that features are never those of other weights, proposals or settings. counts: the number of regions of
    each image. widths: that of each layer. dtype: float16, or float32 for twice the room.

    The size is known before anything is written: `nbytes`, and `missing_bytes` of what is not there yet. An image is
    either there as a whole or not at all, also after a kill or where the disk became full; `missing` are those that are
    not, and writing them is how to go on. `free` removes the folder.

    Files: NAME.bin of each layer, [sum(counts), width], row after row; `images.bin`, a byte an image, 1 where it is
    there; `features.json`, the identity.

    Raises OSError, in one line, where the disk has not enough room for what is missing.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, str],
        counts: Sequence[int],
        widths: Mapping[str, int],
        dtype: DTypeLike = np.float16,
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float16, np.float32):
            raise ValueError(f"dtype: expected float16 or float32, got {self.dtype}")
        self.counts, self.widths = tuple(counts), dict(widths)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)]).astype(np.int64)
        what = {**identity, "counts": str(self.counts), "widths": str(self.widths), "dtype": str(self.dtype)}
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / f"features-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.folder / "images.bin"
        if not done.is_file() or done.stat().st_size != len(self.counts):
            write_json(self.folder / "features.json", what)
            done.write_bytes(bytes(len(self.counts)))
        room = shutil.disk_usage(self.folder).free
        if room < self.missing_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{self.folder}: features need {_amount(self.missing_bytes)} more, and the disk has "
                f"{_amount(room)} free; make room, or take fewer proposals, fewer layers, or a narrower one",
            )

    @property
    def rows(self) -> int:
        """The number of regions of all images."""
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """The size of all features."""
        return self.rows * self._row_bytes

    @property
    def missing_bytes(self) -> int:
        """The size of the features that are not there yet."""
        return sum(self.counts[image] for image in self.missing) * self._row_bytes

    @property
    def missing(self) -> list[int]:
        """The images whose features are not there."""
        return np.flatnonzero(np.fromfile(self.folder / "images.bin", np.uint8) == 0).tolist()

    @property
    def _row_bytes(self) -> int:
        return sum(self.widths.values()) * self.dtype.itemsize

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {width}" for name, width in self.widths.items())
        return (
            f"{_amount(self.nbytes)} of features on disk ({len(self.counts)} images, {self.rows} regions, {layers}, "
            f"{self.dtype})"
        )

    def write(self, image: int, features: Mapping[str, Tensor]) -> None:
        """Write the features [R, width] of all layers of `image`.

        Raises ValueError for other layers or shapes, and for values that the dtype does not hold; OSError, in one line,
        where they cannot be written: nothing that was there is lost then, and this image is still missing.
        """
        for name, width in self.widths.items():
            values = features[name].detach().float().cpu()
            expected = (self.counts[image], width)
            if tuple(values.shape) != expected:
                raise ValueError(f"features: expected {name} of shape {list(expected)}, got {list(values.shape)}")
            largest = float(np.finfo(self.dtype).max)
            if len(values) and not float(values.abs().max()) <= largest:  # also where one is NaN
                raise ValueError(
                    f"features: {name} of image {image} has values beyond {largest:g} or NaN: not for {self.dtype}"
                )
            self._write(name, int(self.offsets[image]) * width, values.numpy().astype(self.dtype), image)
        with (self.folder / "images.bin").open("r+b") as file:
            file.seek(image)
            file.write(b"\1")

    def _write(self, name: str, place: int, values: NDArray[np.generic], image: int) -> None:
        path = self.folder / f"{name}.bin"
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(place * self.dtype.itemsize)
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{path}: could not be written ({os.strerror(error.errno or 0)}); the features of "
                f"{len(self.counts) - len(self.missing)} of {len(self.counts)} images are kept, and the next start "
                "goes on from there",
            ) from error

    def layer(self, name: str) -> Layer:
        """The features of one layer, to be read. Raises ValueError while images are missing, or for an unknown name."""
        if name not in self.widths:
            raise ValueError(f"layer: expected one of {', '.join(self.widths)}, got {name}")
        if self.missing:
            raise ValueError(f"{self.folder}: the features of {len(self.missing)} images are missing")
        shape = (self.rows, self.widths[name])
        if 0 in shape:
            return Layer(name, np.zeros(shape, self.dtype), self.offsets)
        return Layer(name, np.memmap(self.folder / f"{name}.bin", self.dtype, "r", shape=shape), self.offsets)

    def free(self) -> None:
        """Remove all features from the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Layer(NamedTuple):
    """The features of a layer. values: [rows, width], on disk. offsets: [N + 1], the rows of image i are those from
    ``offsets[i]`` to ``offsets[i + 1]``."""

    name: str
    values: NDArray[np.generic]
    offsets: NDArray[np.int64]

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def of_image(self, image: int) -> Floats:
        """Those of one image, [R, width] float32."""
        return np.array(self.values[self.offsets[image] : self.offsets[image + 1]], dtype=np.float32)

    def mean_norm(self, images: int = 200, regions: int = 200, seed: int = 0) -> float:
        """The mean length of the features of up to `regions` random regions of up to `images` random images."""
        generator = np.random.default_rng(seed)
        norms: list[Floats] = []
        for image in generator.permutation(len(self.offsets) - 1)[:images]:
            start, end = self.offsets[image : image + 2]
            rows = np.sort(start + generator.permutation(end - start)[:regions])
            norms.append(np.linalg.norm(np.asarray(self.values[rows], dtype=np.float32), axis=1))
        lengths = np.concatenate(norms) if norms else np.zeros(0)
        return float(lengths.mean()) if len(lengths) else 0.0


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
