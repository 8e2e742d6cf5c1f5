"""A detector, or a segmentation network, made ready for inference on a device: fused, laid out, and in the precision
that the device is fast in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.backbones import Backbone, LaterLevels
from regio.detector import TwoStageDetector
from regio.fused import fuse
from regio.image_pyramid import ImagePyramid
from regio.necks import FPN
from regio.preprocess import Preprocess
from regio.roi_heads import WholeNetwork
from regio.segmentation import SegmentationNetwork
from regio.types import ClassMap, Detections

__all__ = ["InferencePrecision", "Ready", "ReadyDetector", "ReadySegmentation", "inference_precision"]

InferencePrecision = Literal["32-true", "bf16-mixed"]
"""Convolutions and hidden layers in float32, or in bfloat16. Boxes, scores and what extractors learn are float32."""


def inference_precision(device: torch.device, wanted: str | None = None) -> InferencePrecision:
    """`wanted`, or where nothing is wanted that in which convolutions are fast on `device`: bfloat16 where it
    multiplies matrices of them (AMX and AVX-512 with BF16 on a CPU, Ampere and later of CUDA).

    Raises ValueError for any other word.
    """
    if wanted is not None:
        if wanted not in get_args(InferencePrecision):
            raise ValueError(f"precision: expected {' or '.join(get_args(InferencePrecision))}, got '{wanted}'")
        return wanted  # type: ignore[return-value]
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return "bf16-mixed" if has.get("amx_bf16") or has.get("avx512_bf16") else "32-true"
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16-mixed" if fast else "32-true"


class Ready(Protocol):
    """A network for inference on `device`: called with images, uint8 [3, H, W] of any sizes, and with boxes where it
    needs some, it gives something for each, which has a method `to(device)`."""

    device: torch.device

    def padded_size(self, size: tuple[int, int], /) -> tuple[int, int]:
        """The (height, width) of the batch that an image of `size` makes alone."""

    def __call__(self, images: Sequence[Tensor], /, *given: Sequence[Tensor]) -> Sequence[Any]: ...


class _Placed(nn.Module):
    """Where a ready model runs, and in what. precision: None is `inference_precision`."""

    preprocess: Preprocess

    def __init__(self, device: torch.device | str, precision: InferencePrecision | None) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.precision = inference_precision(self.device, precision)

    @property
    def dtype(self) -> torch.dtype:
        """That of the convolutions."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the batch that an image of `size` makes alone."""
        return self.preprocess.padded([self.preprocess.size_of(size)])

    def run(self, network: nn.Module, images: Sequence[Tensor], *given: Any) -> Any:
        """What `network` gives for `images`, on the device and in the precision."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return network([image.to(self.device) for image in images], *given)


class ReadyDetector(_Placed):
    """`detector` for inference only, on `device`: what it was given stays as it is.

    Norms are folded into convolutions, activations and sums fused with them, weights cast and laid out for the device,
    all once. precision: None is `inference_precision`. What it finds differs from what `detector` finds by rounding;
    `forward` has the same arguments and result, and records nothing for gradients: its tensors are those of PyTorch's
    inference mode, which are cloned before they are changed in place.
    """

    def __init__(
        self,
        detector: TwoStageDetector,
        device: torch.device | str = "cpu",
        precision: InferencePrecision | None = None,
    ) -> None:
        super().__init__(device, precision)
        self.detector = _fused(copy.deepcopy(detector).to(self.device).eval(), self.dtype)
        self.preprocess = self.detector.preprocess

    @torch.inference_mode()
    def forward(self, images: Sequence[Tensor], proposals: Sequence[Tensor] | None = None) -> list[Detections]:
        """What is in each of `images`, best first, as `TwoStageDetector.forward`."""
        found: list[Detections] = self.run(self.detector, images, proposals)
        return found


class ReadySegmentation(_Placed):
    """`network` for inference only, on `device`, as `ReadyDetector` is a detector: its class maps differ from those of
    `network` by the rounding of scores, which are float32 from the classifier on."""

    def __init__(
        self,
        network: SegmentationNetwork,
        device: torch.device | str = "cpu",
        precision: InferencePrecision | None = None,
    ) -> None:
        super().__init__(device, precision)
        own = copy.deepcopy(network).to(self.device).eval()
        with torch.no_grad():
            own.backbone = _fused_backbone(own.backbone, self.dtype, self.device)
            own.hidden, own.classifier = fuse(own.hidden, self.dtype), fuse(own.classifier, torch.float32)
        self.network, self.preprocess = own, own.preprocess

    @torch.inference_mode()
    def forward(self, images: Sequence[Tensor]) -> list[ClassMap]:
        """The class of every pixel of each of `images`, as `SegmentationNetwork.forward`."""
        found: list[ClassMap] = self.run(self.network, images)
        return found


class _FusedFPN(FPN):
    """The pyramid whose sums are carried out by the lateral convolutions."""

    def __init__(self, fpn: FPN, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.channels = fpn.channels
        self.lateral, self.output = (
            nn.ModuleList(fuse(each, dtype) for each in some) for some in (fpn.lateral, fpn.output)
        )

    def merge(self, lateral: nn.Module, fine: Tensor, coarser: Tensor) -> Tensor:
        height, width = fine.shape[-2:]
        return lateral(fine, F.interpolate(coarser, size=(height, width), mode="nearest"))


def _fused_backbone(backbone: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if isinstance(backbone, ImagePyramid):
        backbone.backbone, backbone.neck = _fused_backbone(backbone.backbone, dtype, device), fuse(backbone.neck, dtype)
        return backbone
    if isinstance(backbone, LaterLevels):
        if backbone.later is not None:
            example = torch.rand(1, backbone.kept[-1].channels, 16, 20, device=device)
            backbone.__dict__["later"] = fuse(backbone.later, dtype, example.to(memory_format=torch.channels_last))
        return backbone
    if not isinstance(backbone, Backbone):
        return fuse(backbone, dtype)
    example = torch.rand(1, 3, 128, 160, device=device).contiguous(memory_format=torch.channels_last)
    backbone.body = fuse(backbone.body, dtype, example)
    return backbone


@torch.no_grad()
def _fused(detector: TwoStageDetector, dtype: torch.dtype) -> TwoStageDetector:
    device = next(detector.parameters()).device
    detector.backbone = _fused_backbone(detector.backbone, dtype, device)
    neck = detector.neck
    if type(neck) is FPN and all(type(each) is nn.Conv2d for each in neck.lateral):
        detector.neck = _FusedFPN(neck, dtype)
    else:
        detector.neck = fuse(neck, dtype)
    for head in detector.roi_heads:
        _fuse_layers(head, dtype, device)
    if isinstance(detector.proposals, nn.Module):
        _fuse_layers(detector.proposals, dtype, device)
    return detector


def _fuse_layers(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Those of a head or of a proposal network, in place."""
    for name, child in network.named_children():
        if isinstance(child, WholeNetwork):
            child.backbone = _fused_backbone(child.backbone, dtype, device)
            setattr(child, "fully_connected", fuse(child.fully_connected, dtype))  # noqa: B010
            continue
        # Scores stay in float32: in bfloat16 one of 0.9 is 0.898 or 0.902, and many are equal.
        setattr(network, name, fuse(child, torch.float32 if name in ("class_logits", "objectness") else dtype))
