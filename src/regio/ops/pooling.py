"""Pooling of boxes on a feature map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regio.ops.overriding import overridable
from regio.ops.quantized import dequantized, quantized_like
from regio.ops.rois import as_regions, pair, read, reading_zeros
from regio.regions.precise_roi_pool import PreciseRoIPool
from regio.regions.quantisation import FastRCNNCorners, OverlappingBins
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIPool
from regio.regions.roi_warp import RoIWarp

__all__ = ["prroi_pool", "roi_align", "roi_pool", "roi_warp"]


@overridable
def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The largest cell in each bin of boxes rounded to whole cells, [K, C, *output_size] (Girshick 2015, section 2.1).

    Signature, defaults and results of torchvision's function. input: [N, C, H, W]. boxes: [K, 5], each row the image
    and (x1, y1, x2, y2), or one tensor [L, 4] for each image. spatial_scale: cells per unit of the boxes. An inverted
    side counts as one cell. Differentiable in `input`.

    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit, for coordinates that are not finite
    and for an image that is not in the batch.
    """
    bins = pair("output_size", output_size)
    return read(RoIPool(bins, FastRCNNCorners(), OverlappingBins()), *as_regions(input, boxes, spatial_scale))


@overridable
def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The mean of bilinear samples in each bin, [K, C, *output_size] (He et al. 2017, section 3).

    Arguments as of `roi_pool`. sampling_ratio: samples along each axis of a bin; zero or less takes ceil(bin side in
    cells), which differs from box to box (and does not go through `torch.compile` in one graph). aligned: False leaves
    out the half-pixel shift and forces sides to at least one cell; True is the convention of detectron2.

    Signature, defaults and results of torchvision's function, and gradients for boxes that ask for them. An inverted
    box is sampled backwards, or not at all with an adaptive number of samples. A quantized `input`, and quantized
    boxes, are read as the numbers that they stand for, and the result is quantized as `input` is. Raises as `roi_pool`
    does.
    """
    bins = pair("output_size", output_size)
    x, r = as_regions(dequantized(input), dequantized(boxes), spatial_scale)
    return quantized_like(read(RoIAlign(bins, max(sampling_ratio, 0), aligned), x, r), input)


@overridable
def prroi_pool(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean of the bilinear surface over each bin, [K, C, *output_size] (Jiang et al. 2018, section 3.3). Signature
    and convention of mmcv's function: the centre of cell 0 is at 0, and a box without area, or inverted, gives zeros.

    Arguments as of `roi_pool`. Differentiable in features and rois, exactly. Raises as `roi_pool` does.
    """
    bins = pair("output_size", output_size)
    x, r = as_regions(features, rois, spatial_scale, "rois", "features")
    x1, y1, x2, y2 = r.boxes.unbind(1)
    return read(PreciseRoIPool(bins, aligned=False), x, reading_zeros(r, (x2 <= x1) | (y2 <= y1)))


@overridable
def roi_warp(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 1,
) -> Tensor:
    """One bilinear sample where each bin of a box in whole cells begins, [K, C, *output_size] (Dai, He,
    Sun 2016, section 3.2), or the mean of sampling_ratio x sampling_ratio samples.

    Arguments as of `roi_pool`; neither torchvision nor mmcv has this function. An inverted box is sampled backwards.
    Differentiable in `input`. Raises as `roi_pool` does.
    """
    bins = pair("output_size", output_size)
    if sampling_ratio < 1:
        raise ValueError(f"sampling_ratio: expected a positive number, got {sampling_ratio}")
    return read(RoIWarp(bins, sampling_ratio), *as_regions(input, rois, spatial_scale, "rois"))
