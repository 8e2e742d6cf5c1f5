"""Maps of a backbone that is not trained, made once, kept on disk, and read in place of photos.

Where nothing of the backbone learns, a training spends most of its time on maps that are the same in each epoch and for
each seed. With them kept, a step costs what comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regio.backbones import Backbone
from regio.data import DetectionDataset
from regio.data.records import Record
from regio.detector import TwoStageDetector
from regio.errors import Interrupted
from regio.fitting import FeatureStore
from regio.identity import describe, weights_hash
from regio.preprocess import ImageBatch
from regio.ready import ReadyDetector
from regio.train import stop_requests
from regio.types import FeatureMap

__all__ = ["KeptMaps", "MappedDetector", "MappedImage"]

Size = tuple[int, int]


@dataclass(frozen=True)
class MappedImage:
    """Stands for an image [3, H, W] of which nothing is left but its maps: it has a shape, a mirror image and a device.

    size: (H, W). scaled: those of the image as the backbone saw it. maps: of each level [C, h, w], half precision.
    mirrored: those of the mirror image, where they were made.
    """

    size: Size
    scaled: Size
    maps: tuple[Tensor, ...]
    mirrored: tuple[Tensor, ...] | None = None

    @property
    def shape(self) -> torch.Size:
        """That of the image."""
        return torch.Size((3, *self.size))

    def flip(self, axis: int) -> MappedImage:
        """Left and right exchanged. Raises ValueError for another axis, and where the mirror image has no maps."""
        if axis not in (-1, 2) or self.mirrored is None:
            raise ValueError(f"axis: expected that of the width, with maps of the mirror image, got {axis}")
        return replace(self, maps=self.mirrored, mirrored=self.maps)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MappedImage:
        """The same on `device`; the mirror image is left out."""
        return replace(self, maps=tuple(x.to(device, non_blocking=non_blocking) for x in self.maps), mirrored=None)

    def pin_memory(self) -> MappedImage:
        """The same in page-locked memory; the mirror image is left out."""
        return replace(self, maps=tuple(x.pin_memory() for x in self.maps), mirrored=None)


class MappedDetector(TwoStageDetector):
    """A detector for `MappedImage`s in place of images: their maps are taken, and its backbone is not run. It has the
    modules of the detector that it is made from, and so its state dict."""

    @staticmethod
    def of(detector: TwoStageDetector) -> MappedDetector:
        """`detector` for mapped images; the modules are shared, not copied."""
        return MappedDetector(
            preprocess=detector.preprocess,
            backbone=detector.backbone,
            neck=detector.neck,
            proposals=detector.proposals,
            roi_heads=[*detector.roi_heads],
        )

    def features(self, images: Sequence[Tensor]) -> tuple[ImageBatch, list[FeatureMap]]:
        """The maps of `images`, padded with zeros to one size a level. Raises TypeError for an image with pixels."""
        mapped = [cast(MappedImage, image) for image in images]
        for i, image in enumerate(mapped):
            if not isinstance(image, MappedImage):
                raise TypeError(f"images[{i}]: expected a MappedImage, got {type(image).__name__}")
        strides = cast(Backbone, self.backbone).strides
        sizes = tuple(image.scaled for image in mapped)
        maps = [
            FeatureMap(_stacked([image.maps[level] for image in mapped]), stride, sizes)
            for level, stride in enumerate(strides)
        ]
        batch = ImageBatch(maps[0].data, [*sizes], [image.size for image in mapped])
        return batch, [replace(x, sizes=sizes) for x in self.neck(maps)]


class KeptMaps:
    """The maps of `dataset` by the backbone of `detector`, in `folder`, in half precision.

    They depend on the weights of the backbone, on how images are scaled and on the images; other maps in the same
    folder are not taken for these. Each image is run by itself, padded to the divisor of the preprocessing, so that its
    maps do not depend on a batch. mirrored: whether maps of the mirror images are kept too, for `HorizontalFlip`.

    Raises ValueError for a detector whose maps are not those of one backbone that stays as it is (no parameter and no
    running statistics are trained) on images of one scale; OSError where the disk has not enough room.
    """

    def __init__(
        self, folder: Path, detector: TwoStageDetector, dataset: DetectionDataset, *, mirrored: bool = False
    ) -> None:
        require_fixed(detector.backbone)
        backbone, preprocess = cast(Backbone, detector.backbone), detector.preprocess
        self.detector, self.dataset, self.mirrored = detector, dataset, mirrored
        identity = {key: value for key, value in dataset.identity().items() if key in ("images", "files")}
        identity |= {"weights": weights_hash(backbone), "mirrored": str(mirrored)}
        identity |= describe(preprocess, "preprocess") | describe(backbone, "backbone")
        self.scaled = [preprocess.size_of(size) for size in dataset.sizes]
        padded = [preprocess.padded([size]) for size in self.scaled]
        self.cells = [[(h // stride, w // stride) for h, w in padded] for stride in backbone.strides]
        self.stores = [
            FeatureStore(
                folder,
                identity,
                [h * w for h, w in cells] * (1 + mirrored),
                {f"C{level}": channels},
            )
            for level, channels, cells in zip(backbone.levels, backbone.channels, self.cells, strict=True)
        ]
        self._place = {record.id: index for index, record in enumerate(dataset.records)}
        self._layers: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without the detector, and without the files that are open: for processes that read images."""
        return self.__dict__ | {"_layers": [], "detector": None}

    @property
    def missing(self) -> list[int]:
        """The images some of whose maps are not there."""
        count = len(self.dataset)
        return sorted({entry % count for store in self.stores for entry in store.missing})

    @property
    def nbytes(self) -> int:
        """The size of all maps."""
        return sum(store.nbytes for store in self.stores)

    @torch.no_grad()
    def make(
        self,
        *,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] = lambda done, images: None,
    ) -> None:
        """Make what is missing. progress: called with (images done, images) after each image.

        Raises Interrupted after SIGINT or SIGTERM: what is made is kept; ValueError where the backbone gives maps of
        other sizes than its strides say.
        """
        missing, count = self.missing, len(self.dataset)
        if not missing:
            return
        ready = ReadyDetector(self.detector, device, "32-true").detector
        with stop_requests() as stop_requested:
            for number, index in enumerate(missing):
                if stop_requested():
                    done = count - len(missing) + number
                    raise Interrupted(f"stopped with the maps of {done} of {count} images; they are kept")
                image = self.dataset.read_image(index).to(device)
                for entry, each in ((index, image), (index + count, image.flip(-1)))[: 1 + self.mirrored]:
                    for x, store, cells in zip(
                        ready.backbone(ready.preprocess([each]).data), self.stores, self.cells, strict=True
                    ):
                        if x.size != cells[index]:
                            raise ValueError(
                                f"backbone: expected maps of {cells[index]} cells at stride {x.stride:g}, got {x.size}"
                            )
                        store.write(entry, {name: x.data[0].flatten(1).T for name in store.widths})
                progress(count - len(missing) + number + 1, count)

    def read(self, record: Record) -> Tensor:
        """The `MappedImage` of a record."""
        if not self._layers:
            self._layers = [store.layer(next(iter(store.widths))) for store in self.stores]
        index = self._place[record.id]
        maps = [
            tuple(
                torch.from_numpy(layer.values[layer.offsets[entry] : layer.offsets[entry + 1]].copy())
                .unflatten(0, cells[index])
                .permute(2, 0, 1)
                for layer, cells in zip(self._layers, self.cells, strict=True)
            )
            for entry in (index, index + len(self.dataset))[: 1 + self.mirrored]
        ]
        image = MappedImage(record.size, self.scaled[index], maps[0], maps[1] if self.mirrored else None)
        return cast(Tensor, image)

    def in_place_of_images(self) -> DetectionDataset:
        """The data set whose images are `MappedImage`s."""
        return self.dataset.with_images(self.read)


def require_fixed(backbone: nn.Module) -> None:
    """Raise ValueError unless `backbone` is a `Backbone` of which nothing changes in a training."""
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"keep_maps: expected a backbone that reads images at one scale, got {type(backbone).__name__}"
        )
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    norms = any(isinstance(each, _BatchNorm) for each in backbone.modules())
    if trained or norms:
        what = f"{trained} parameters" if trained else "running statistics"
        raise ValueError(
            f"keep_maps: expected a backbone of which nothing is trained, got {what} that are; "
            f"frozen={max(backbone.levels)} fixes all"
        )


def _stacked(maps: Sequence[Tensor]) -> Tensor:
    """[N, C, H, W] float32, channels last, of maps [C, h, w] at the upper left."""
    height, width = max(x.shape[1] for x in maps), max(x.shape[2] for x in maps)
    shape = (len(maps), maps[0].shape[0], height, width)
    data = torch.zeros(shape, device=maps[0].device).contiguous(memory_format=torch.channels_last)
    for row, x in zip(data, maps, strict=True):
        row[:, : x.shape[1], : x.shape[2]] = x
    return data
