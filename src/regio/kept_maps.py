"""Maps of the levels of a backbone that are not trained, made once, kept on disk, and read in place of photos.

Where the first levels of the backbone do not learn, or none does, a training spends much of its time on maps that are
the same in each epoch and for each seed. With them kept, a step costs what comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regio.backbones import Backbone, LaterLevels
from regio.data import DetectionDataset
from regio.data.records import Record
from regio.detector import TwoStageDetector
from regio.errors import Interrupted
from regio.fitting import FeatureStore
from regio.identity import describe, weights_hash
from regio.preprocess import ImageBatch
from regio.ready import ReadyDetector
from regio.segmentation import SegmentationNetwork
from regio.train import stop_requests
from regio.types import FeatureMap

__all__ = ["KeptMaps", "MappedDetector", "MappedImage", "MappedSegmentationNetwork", "fixed_part"]

Size = tuple[int, int]


@dataclass(frozen=True)
class MappedImage:
    """Stands for an image [3, H, W] of which nothing is left but its maps: it has a shape, a mirror image and a device.

    size: (H, W). scaled: those of the image as the backbone saw it. maps: of each kept level [C, h, w].
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
    """A detector for `MappedImage`s in place of images: their maps are taken, and of its backbone only the layers after
    them are run. It has the modules of the detector that it is made from, and so its state dict."""

    @staticmethod
    def of(detector: TwoStageDetector) -> MappedDetector:
        """`detector` for mapped images, whose maps are those of `fixed_part`; the modules are shared, not copied.

        Raises ValueError as `fixed_part`."""
        kept = fixed_part(detector.backbone)
        return MappedDetector(
            preprocess=detector.preprocess,
            backbone=LaterLevels(cast(Backbone, detector.backbone), kept),
            neck=detector.neck,
            proposals=detector.proposals,
            roi_heads=[*detector.roi_heads],
        )

    def features(self, images: Sequence[Tensor]) -> tuple[ImageBatch, list[FeatureMap]]:
        """The maps of `images`, padded with zeros to one size a level. Raises TypeError for an image with pixels."""
        batch, maps = _later_maps(self.backbone, images)
        return batch, [replace(x, sizes=tuple(batch.sizes)) for x in self.neck(maps)]


class MappedSegmentationNetwork(SegmentationNetwork):
    """A segmentation network for `MappedImage`s, as `MappedDetector` is a detector for them."""

    @staticmethod
    def of(network: SegmentationNetwork) -> MappedSegmentationNetwork:
        """`network` for mapped images, as `MappedDetector.of`."""
        kept = fixed_part(network.backbone)
        return MappedSegmentationNetwork(
            preprocess=network.preprocess,
            backbone=LaterLevels(cast(Backbone, network.backbone), kept),
            hidden=network.hidden,
            classifier=network.classifier,
        )

    def features(self, images: Sequence[Tensor]) -> tuple[ImageBatch, FeatureMap]:
        """The last map of `images`, padded with zeros to one size. Raises TypeError for an image with pixels."""
        batch, maps = _later_maps(self.backbone, images)
        return batch, maps[-1]


class KeptMaps:
    """The maps of `dataset` by the levels of the backbone of `network` that are fixed (`fixed_part`), in `folder`.

    They depend on the weights of these levels, on how images are scaled and on the images; other maps in the same
    folder are not taken for these. Each image is run by itself, padded to the divisor of the preprocessing, so that its
    maps do not depend on a batch. mirrored: whether maps of the mirror images are kept too, for `HorizontalFlip`.
    dtype: float16, or float32 for twice the room.

    Raises ValueError as `fixed_part`, and for another dtype; OSError where the disk has not enough room.
    """

    def __init__(
        self,
        folder: Path,
        network: TwoStageDetector | SegmentationNetwork,
        dataset: DetectionDataset,
        *,
        mirrored: bool = False,
        dtype: DTypeLike = np.float16,
    ) -> None:
        backbone, preprocess = fixed_part(network.backbone), network.preprocess
        self.fixed: TwoStageDetector | None = TwoStageDetector(
            preprocess=preprocess, backbone=backbone, neck=nn.Identity(), proposals=None
        )
        self.dataset, self.mirrored = dataset, mirrored
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
                dtype,
            )
            for level, channels, cells in zip(backbone.levels, backbone.channels, self.cells, strict=True)
        ]
        self._place = {record.id: index for index, record in enumerate(dataset.records)}
        self._layers: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without the backbone, and without the files that are open: for processes that read images."""
        return self.__dict__ | {"_layers": [], "fixed": None}

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
        assert self.fixed is not None
        ready = ReadyDetector(self.fixed, device, "32-true").detector
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


def fixed_part(backbone: nn.Module) -> Backbone:
    """The levels of `backbone` of which nothing changes in a training: itself, or `Backbone.up_to` the last of them.

    Raises ValueError where not even the first level is fixed, where running statistics are trained; for a backbone that
    reads images at several scales, and one of which a part is fixed that is no chain of stages.
    """
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"keep_maps: expected a backbone that reads images at one scale, got {type(backbone).__name__}"
        )
    fixed: list[int] = []
    for level, names in backbone.stages().items():
        if any(backbone.body.get_parameter(name).requires_grad for name in names):
            break
        fixed.append(level)
    if not fixed:
        trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        last = max(backbone.levels)
        raise ValueError(
            f"keep_maps: expected a backbone that is fixed up to a level, got {trained} parameters that are trained, "
            f"some before the first level; frozen={last} fixes all, frozen={last - 1} all but the last stage"
        )
    part = backbone if fixed[-1] == backbone.levels[-1] else backbone.up_to(fixed[-1])
    if any(isinstance(each, _BatchNorm) for each in part.modules()):
        raise ValueError(
            "keep_maps: expected fixed levels of which nothing is trained, got running statistics that are"
        )
    return part


def _later_maps(backbone: nn.Module, images: Sequence[Tensor]) -> tuple[ImageBatch, Sequence[FeatureMap]]:
    """The batch of mapped `images`, and the maps that `backbone`, a `LaterLevels`, gives for it."""
    mapped = [cast(MappedImage, image) for image in images]
    for i, image in enumerate(mapped):
        if not isinstance(image, MappedImage):
            raise TypeError(f"images[{i}]: expected a MappedImage, got {type(image).__name__}")
    kept = [
        FeatureMap(_stacked([image.maps[i] for image in mapped]), level.stride)
        for i, level in enumerate(cast(LaterLevels, backbone).kept)
    ]
    maps: Sequence[FeatureMap] = backbone(kept)
    return ImageBatch(maps[0].data, [image.scaled for image in mapped], [image.size for image in mapped]), maps


def _stacked(maps: Sequence[Tensor]) -> Tensor:
    """[N, C, H, W] float32, channels last, of maps [C, h, w] at the upper left."""
    height, width = max(x.shape[1] for x in maps), max(x.shape[2] for x in maps)
    shape = (len(maps), maps[0].shape[0], height, width)
    data = torch.zeros(shape, device=maps[0].device).contiguous(memory_format=torch.channels_last)
    for row, x in zip(data, maps, strict=True):
        row[:, : x.shape[1], : x.shape[2]] = x
    return data
