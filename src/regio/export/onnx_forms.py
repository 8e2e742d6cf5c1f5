"""The operations of regio in operators that ONNX has.

Three of them are ONNX's own: `NonMaxSuppression`, `RoiAlign`, and `MaxRoiPool`, of which every bin is a box with a
single bin. The others are written in plain PyTorch, without loops over boxes or levels that depend on the data.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regio.kernels.attend import attend_reference
from regio.kernels.deform_conv import Geometry
from regio.kernels.nms import floor_to
from regio.regions import (
    Convolved,
    Enlarged,
    FastRCNNCorners,
    Levels,
    MaskedBins,
    OverlappingBins,
    RoIAlign,
    RoIPool,
)
from regio.regions.base import RegionExtractor
from regio.regions.sampling import bilinear_weight
from regio.types import FeatureMap, Regions

__all__ = ["OPSET", "forms", "require_onnx_forms", "translations", "with_onnx_pooling"]

OPSET = 18


def require_onnx_forms(module: nn.Module) -> None:
    """Raise ValueError, naming the extractor, where `module` reads region features in a way without a form in ONNX."""
    for extractor in module.modules():
        if isinstance(extractor, MaskedBins):
            raise ValueError(f"extractor: {type(extractor).__name__} has no form in ONNX; --format torch has it")


def with_onnx_pooling(module: nn.Module) -> nn.Module:
    """`module` with RoIAlign and RoIPool as operators of ONNX, in place."""
    for levels in module.modules():
        if isinstance(levels, Levels):
            levels.extractors = nn.ModuleList(_onnx_pooling(each) for each in levels.extractors)
    return module


def forms() -> dict[Any, Callable[..., Tensor]]:
    """Functions in plain PyTorch that take the place of operations when a graph is decomposed."""
    ops = torch.ops.regio
    return {
        ops.sample_points.default: _sample_points,
        ops.sample_grid.default: _sample_grid,
        ops.pool_max.default: _pool_max,
        ops.attend.default: _attend,
        ops.deform_conv.default: _deform_conv,
    }


def translations() -> dict[Any, Callable[..., Any]]:
    """Functions of onnxscript that write an operation, for ``torch.onnx.export(custom_translation_table=...)``."""
    return {torch.ops.regio.nms.default: _nms, operator.le: _at_most, operator.floordiv: _quotient}


def _nms(boxes: Any, scores: Any, group: Any, iou_threshold: float) -> Any:
    """`regio.kernels.nms.batched_nms`: the groups are the classes of NonMaxSuppression, in which a box has the score
    -inf unless it belongs to the group. A box more, which is in no group, stands for none."""
    import onnx
    from onnxscript import opset18 as op

    lowest = float(np.finfo(np.float32).min)
    threshold = float(floor_to(iou_threshold, np.float32))
    one_more = op.Constant(value_ints=[1])
    boxes = op.Concat(boxes, op.Constant(value=onnx.numpy_helper.from_array(np.zeros((1, 4), np.float32))), axis=0)
    scores = op.Concat(scores, op.Constant(value_floats=[-math.inf]), axis=0)
    group = op.Concat(group, op.Constant(value_ints=[0]), axis=0)
    first, last = op.Constant(value_int=0), op.ReduceMax(group, keepdims=0)
    groups = op.Unsqueeze(op.Range(first, op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1)), one_more)
    by_group = op.Where(op.Equal(groups, group), scores, op.Constant(value_float=-math.inf))
    kept = op.NonMaxSuppression(
        op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
        op.Unsqueeze(by_group, op.Constant(value_ints=[0])),
        op.Shape(scores),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[lowest]),
    )
    kept = op.Gather(kept, op.Constant(value_int=2), axis=1)
    count = op.Shape(kept)
    kept, _ = op.TopK(kept, count, largest=0)  # of equal scores the first box comes first
    _, order = op.TopK(op.Gather(scores, kept), count)
    return op.Gather(kept, order)


def _at_most(a: Any, b: Any) -> Any:
    """``a <= b`` of whole numbers, where a Python number may be larger than any of 64 bits: sizes have such bounds."""
    from onnxscript import opset18 as op

    return op.LessOrEqual(*(min(each, 2**63 - 1) if isinstance(each, int) else each for each in (a, b)))


def _quotient(a: Any, b: Any) -> Any:
    """``a // b`` of sizes, which are not negative. OpenVINO divides whole numbers in floating point and rounds, so the
    quotient is kept half a unit of `a` from the next whole number."""
    import onnx
    from onnxscript import opset18 as op

    double, whole = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
    a, b = (op.Constant(value_int=each) if isinstance(each, int) else each for each in (a, b))
    half = op.CastLike(op.Constant(value_float=0.5), op.Cast(a, to=double))
    return op.Cast(op.Floor(op.Div(op.Add(op.Cast(a, to=double), half), op.Cast(b, to=double))), to=whole)


class _ByLevel(RegionExtractor):
    """An extractor that reads one map after the other."""

    def __init__(self, extractor: RegionExtractor) -> None:
        super().__init__()
        self.extractor, self.bins = extractor, extractor.bins

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.extractor.weights(x, r)

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        y = maps[0].data.new_zeros((r.boxes.shape[0], maps[0].data.shape[1], *self.bins))
        for i, x in enumerate(maps):
            rows = (level == i).nonzero()[:, 0]
            y = y.index_copy(0, rows, self(x, Regions(r.boxes[rows], r.image[rows])))
        return y

    def _operator(self, name: str, version: int, inputs: Sequence[Tensor], attributes: dict[str, Any]) -> Tensor:
        """Region features [R, C, *bins] by the operator `name`, of inputs (map [N, C, H, W], [R, ...], ...)."""
        x, boxes = inputs[:2]
        shape = (boxes.shape[0], x.shape[1], *self.bins)
        return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=x.dtype, shape=shape, version=version)


class _NeverEmpty(_ByLevel):
    """One that reads one box more, since operators in it do not take none: ONNX Runtime 1.31 divides by zero."""

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        boxes = torch.cat([r.boxes, r.boxes.new_zeros((1, 4))])
        image = torch.cat([r.image, r.image.new_zeros(1)])
        return self.extractor(x, Regions(boxes, image))[: r.boxes.shape[0]]


class _OnnxRoIAlign(_ByLevel):
    """`RoIAlign`, in both conventions and with any number of samples."""

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        assert isinstance(self.extractor, RoIAlign)
        attributes = {
            "coordinate_transformation_mode": "half_pixel" if self.extractor.aligned else "output_half_pixel",
            "output_height": self.bins[0],
            "output_width": self.bins[1],
            "sampling_ratio": self.extractor.samples,
            "spatial_scale": 1 / x.stride,
        }
        return self._operator("RoiAlign", 16, (x.data, r.boxes.to(x.data.dtype), r.image), attributes)


class _OnnxRoIPool(_ByLevel):
    """`RoIPool` with Fast R-CNN's rounding."""

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        boxes = torch.cat([r.image[:, None].to(x.data.dtype), r.boxes.to(x.data.dtype)], 1)
        attributes = {"pooled_shape": list(self.bins), "spatial_scale": 1 / x.stride}
        return self._operator("MaxRoiPool", 1, (x.data, boxes), attributes)


def _onnx_pooling(extractor: nn.Module) -> RegionExtractor:
    """The extractor as an operator of ONNX, where it is one, or in a form that ONNX runtimes take."""
    assert isinstance(extractor, RegionExtractor)
    if type(extractor) is Enlarged:
        return Enlarged(_onnx_pooling(extractor.extractor), extractor.area)
    if type(extractor) is Convolved:
        return Convolved(extractor.layer, _onnx_pooling(extractor.extractor))
    if type(extractor) is RoIAlign:
        return _OnnxRoIAlign(extractor)
    if type(extractor) is RoIPool and (extractor.corners, extractor.division) == (FastRCNNCorners(), OverlappingBins()):
        return _OnnxRoIPool(extractor)
    if type(extractor).pyramid is RegionExtractor.pyramid:
        return _NeverEmpty(extractor)
    return extractor


def _sample_points(
    maps: Sequence[Tensor], image: Tensor, level: Tensor, arguments: Sequence[Tensor], groups: Sequence[int]
) -> Tensor:
    """`regio.kernels.sample_points.sample_points`: the cells of all maps in one table, of which each sample reads four
    rows. With groups, those of an image are images of their own."""
    points, weight = arguments
    image, level = image[:, None, None], level[:, None, None]
    if groups:
        image = image * maps[0].shape[1] + _numbers(groups, image)[:, None]
        maps = [x.flatten(0, 1) for x in maps]
    height, width, begin = (torch.zeros_like(level) for _ in range(3))
    ends = 0
    for i, x in enumerate(maps):
        here = (level == i).to(torch.int64)
        height, width = height + here * x.shape[2], width + here * x.shape[3]
        begin = begin + here * (ends + image * (x.shape[2] * x.shape[3]))
        ends = ends + x.shape[0] * x.shape[2] * x.shape[3]
    table = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps]).to(points.dtype)
    boxes, parts, samples = weight.shape
    u, v = points.unbind(-1)
    near = (u >= -1) & (u < width) & (v >= -1) & (v < height)
    u, v = u.where(near, 0), v.where(near, 0)
    left, top = u.floor(), v.floor()
    y = table.new_zeros((boxes * parts, 1, table.shape[1]))
    for column, column_part in ((left, 1 - (u - left)), (left + 1, u - left)):
        for row, row_part in ((top, 1 - (v - top)), (top + 1, v - top)):
            inside = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            product = (weight * column_part * row_part).where(inside, 0)
            cell = (begin + row.to(torch.int64) * width + column.to(torch.int64)).where(inside, 0)
            read = table.index_select(0, cell.flatten()).view(boxes * parts, samples, table.shape[1])
            y = y + product.view(boxes * parts, 1, samples) @ read
    return y.view(boxes, parts, table.shape[1]).transpose(1, 2).to(maps[0].dtype)


def _sample_grid(
    maps: Sequence[Tensor], image: Tensor, level: Tensor, arguments: Sequence[Tensor], groups: Sequence[int]
) -> Tensor:
    """`regio.kernels.sample_grid.sample_grid`: few samples one by one; where their number grows with the map, as two
    matrix products with the weights of all rows and columns."""
    rows, row_weight, columns, column_weight = arguments
    boxes, kh, s = rows.shape
    kw, t = columns.shape[1:]
    if isinstance(s, int) and isinstance(t, int):
        shape = (boxes, kh, kw, s, t)
        v, u = rows[:, :, None, :, None].expand(shape), columns[:, None, :, None, :].expand(shape)
        weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        points = torch.stack([u, v], -1).view(boxes, kh * kw, s * t, 2)
        return _sample_points(maps, image, level, [points, weight.view(boxes, kh * kw, s * t)], groups)

    def along_axes(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [r, Kh, H] of rows, and [r, Kw, N * W] of the columns of all images."""
        row = (row_weight[at][..., None] * bilinear_weight(rows[at], x.shape[-2])).sum(2)
        column = (column_weight[at][..., None] * bilinear_weight(columns[at], x.shape[-1])).sum(2)
        own = image[at][:, None] == torch.arange(x.shape[0], device=x.device)
        return row, (column[:, :, None] * own[:, None, :, None].to(column.dtype)).flatten(2)

    def contracted(x: Tensor, at: Tensor) -> Tensor:
        (images, channels, height, width), count = x.shape, at.shape[0]
        row, column = along_axes(x, at)
        cells = x.permute(0, 3, 1, 2).to(column.dtype).reshape(images * width, channels * height)
        along = column.view(count * kw, images * width) @ cells
        y = along.view(count, kw * channels, height) @ row.transpose(1, 2)
        return y.view(count, kw, channels, kh).permute(0, 2, 3, 1).flatten(2).to(x.dtype)

    def by_group(x: Tensor, at: Tensor) -> Tensor:
        (images, _, channels, height, width), count = x.shape, at.shape[0]
        row, column = along_axes(x, at)
        parts = []
        for k, group in enumerate(groups):
            cells = x[:, group].permute(0, 3, 1, 2).to(column.dtype).reshape(images * width, channels * height)
            along = (column[:, k % kw] @ cells).view(count, channels, height)
            parts.append((along @ row[:, k // kw, :, None])[..., 0])
        return torch.stack(parts, 2).to(x.dtype)

    return _by_level(maps, level, kh * kw, by_group if groups else contracted)


def _pool_max(
    maps: Sequence[Tensor], image: Tensor, level: Tensor, arguments: Sequence[Tensor], groups: Sequence[int]
) -> Tensor:
    """`regio.kernels.pool_max.pool_max`: MaxRoiPool takes the largest cell of a box of whole cells, here of each bin.
    To it no box is empty."""
    top, bottom, left, right = arguments
    kh, kw = top.shape[1], left.shape[1]

    def pooled(x: Tensor, at: Tensor) -> Tensor:
        shape, of_image = (at.shape[0], kh, kw), image[at][:, None, None]
        if groups:  # those of an image are images of their own
            of_image = of_image * x.shape[1] + _numbers(groups, image).view(kh, kw)
            x = x.flatten(0, 1)
        edges = [left[at][:, None, :], top[at][:, :, None], right[at][:, None, :] - 1, bottom[at][:, :, None] - 1]
        bins = [edge.expand(shape).reshape(-1) for edge in (of_image, *edges)]
        inputs = (x, torch.stack(bins, 1).to(x.dtype))
        largest = torch.onnx.ops.symbolic(
            "MaxRoiPool",
            inputs,
            {"pooled_shape": [1, 1], "spatial_scale": 1.0},
            dtype=x.dtype,
            shape=(at.shape[0] * kh * kw, x.shape[1], 1, 1),
            version=1,
        )
        some = (bins[3] >= bins[1]) & (bins[4] >= bins[2])
        largest = largest.view(-1, x.shape[1]).where(some[:, None], 0)
        return largest.view(at.shape[0], kh * kw, x.shape[1]).transpose(1, 2)

    return _by_level(maps, level, kh * kw, pooled)


def _numbers(values: Sequence[int], like: Tensor) -> Tensor:
    """Whole numbers [K] as a tensor; `torch.tensor` changes its result in place, which a graph does not take here."""
    return torch.cat([torch.full((1,), value, dtype=like.dtype, device=like.device) for value in values])


def _attend(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`regio.kernels.attend.attend`, with the weights of all boxes at once."""
    return attend_reference(x, image, column, row, appearance, support, cells)


def _deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`regio.kernels.deform_conv.deform_conv`: the samples of all taps at once, then a matrix product."""
    outputs, channels, *kernel = weight.shape
    groups, offset_groups = x.shape[1] // channels, offset.shape[1] // (2 * kernel[0] * kernel[1])
    g = Geometry((kernel[0], kernel[1]), (*stride,), (*padding,), (*dilation,), groups, offset_groups)  # type: ignore[arg-type]
    points = g.points(offset)
    factors = points.new_ones(points.shape[:5]) if mask is None else mask.permute(0, 2, 3, 1).unsqueeze(4)
    bias = weight.new_zeros(outputs) if bias is None else bias
    return g.convolve(x, points, factors, g.matrix(weight), bias).permute(0, 3, 1, 2)


def _by_level(maps: Sequence[Tensor], level: Tensor, parts: int, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Features [R, C, parts]: ``read(x, at)`` of each map and the boxes `at` that read it."""
    if len(maps) == 1:
        return read(maps[0], torch.arange(level.shape[0], device=level.device))
    y = maps[0].new_zeros((level.shape[0], maps[0].shape[-3], parts))
    for i, x in enumerate(maps):
        at = (level == i).nonzero()[:, 0]
        y = y.index_copy(0, at, read(x, at))
    return y
