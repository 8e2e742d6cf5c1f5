"""What the CPU kernels of all map operations have in common: level by level, in the threads' shares.

A kernel is called as ``kernel(<map>, (G * C, H, W), image, boxes, starts, *arguments, <results>, begin, end)``: the map
as flat channels-last cells, the numbers of the boxes on its level, and the first channel that each part reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.arguments import by_group, coordinate_dtype
from regio.kernels.cpu import buffer_pool, layout, threads

__all__ = ["argument_gradients", "features", "grain", "levels", "map_gradients"]

Array = np.ndarray[Any, Any]
Kernel = Callable[..., None]
Levels = Iterator[tuple[Tensor, Array, tuple[Any, ...]]]

_LEAST = 1 << 15  # features: fewer are done before another thread has begun


def grain(features: int) -> int:
    """How many pieces of work of so many features a thread should have at least."""
    return -(-_LEAST // max(features, 1))


def levels(
    features: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    arguments: Sequence[Tensor],
    groups: Sequence[int],
) -> Levels:
    """Of each map: the map, the boxes on it, and the arguments that all kernels begin with, after the map. `features`
    [R, C, K] or [R, K, C] are there for their shape."""
    if groups:
        starts = np.array(groups, np.int64) * maps[0].shape[2]
    else:
        starts = np.zeros(max(features.shape[1:]), np.int64)  # at least one a part
    index, on, *where = layout.plain(image, level, *arguments)
    boxes_of_each = layout.boxes_of_each_level(index, on, maps[0].shape[0], len(maps))
    for x, boxes in zip(maps, boxes_of_each, strict=True):
        shape = (x.shape[1:-2].numel(), *x.shape[-2:])
        yield x, boxes, (shape, index, boxes, starts, *where)


def features(
    kernel: Kernel,
    out: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    arguments: Sequence[Tensor],
    groups: Sequence[int],
) -> Tensor:
    """Fill `out`, the boxes shared between the threads; returns it in the dtype of the maps."""
    result = out.numpy()
    for x, boxes, fixed in levels(out, maps, image, level, arguments, groups):
        if len(boxes):
            run = partial(kernel, layout.cells(x, out.dtype), *fixed, result)
            threads.share(run, len(boxes), grain=grain(result.shape[1] * result.shape[2]), shares=4)
    return out.to(maps[0].dtype)


def map_gradients(
    kernel: Kernel,
    grad: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    arguments: Sequence[Tensor],
    groups: Sequence[int],
    *,
    reads_map: bool = False,
) -> list[Tensor]:
    """A gradient of each map, in its dtype and memory format. A thread has its own channels of every group, whatever
    the boxes, so the order of the sums does not depend on the number of threads.

    The kernel adds to cells that hold nothing but the thread's channels: where threads write different channels of the
    same cells, the processor's prefetching takes the lines of each away from the other, and both can take twice as
    long. So it is called with the shape and the starts of such cells, begin and end being those in the gradient.

    reads_map: the kernel is called as ``kernel(<map>, C, starts, <cells of the thread>, ...)``.
    """
    dtype, count, channels = coordinate_dtype(maps[0]), by_group(maps[0]).shape[1], maps[0].shape[-3]
    (g,) = layout.plain(grad.to(dtype))
    block, per_channel = (16 if channels >= 64 else 4), g.size // max(channels, 1)

    def gradient(x: Tensor, boxes: Array, shape: tuple[int, int, int], *fixed: Any) -> Tensor:
        result = layout.room_like(x, dtype)
        if not len(boxes):
            return result.zero_()
        (c, h, w), (index, which, starts, *where) = shape, fixed
        read = (layout.cells(x, dtype), c, starts) if reads_map else ()
        group = starts // channels

        def work(begin: int, end: int) -> None:
            size = end - begin
            own = buffer_pool.empty((len(x) * h * w * count * size,), dtype).numpy()
            own[:] = 0
            kernel(*read, own, (count * size, h, w), index, which, group * size - begin, *where, g, begin, end)
            layout.put_channels(own, result, begin, end)

        threads.share(work, channels, grain=block * grain(block * per_channel))
        return result

    each = levels(grad, maps, image, level, arguments, groups)
    return [gradient(x, boxes, *fixed).to(x.dtype) for x, boxes, fixed in each]


def argument_gradients(
    kernel: Kernel,
    grad: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    arguments: Sequence[Tensor],
    groups: Sequence[int],
) -> list[Tensor]:
    """A gradient of each argument, the boxes shared between the threads; the kernel adds to zeros."""
    dtype = coordinate_dtype(maps[0])
    (g,) = layout.plain(grad.to(dtype))
    grads = [torch.zeros(a.shape, dtype=dtype) for a in arguments]
    results = [a.numpy() for a in grads]
    for x, boxes, fixed in levels(grad, maps, image, level, arguments, groups):
        if len(boxes):
            run = partial(kernel, layout.cells(x, dtype), *fixed, g, *results)
            threads.share(run, len(boxes), grain=grain(g.shape[1] * g.shape[2]), shares=4)
    return grads
