"""What the CPU kernels of all map operations have in common: level by level, in the threads' shares.

A kernel is called as ``kernel(<map>, (G * C, H, W), image, boxes, channel_offset, *arguments, <results>, begin, end)``:
the map as flat channels-last cells, the indices of the boxes on its level, and the first channel that each part reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.arguments import Reads, by_group
from regio.kernels.cpu import buffer_pool, layout, threads

__all__ = ["argument_gradients", "features", "grain", "levels", "map_gradients"]

Array = np.ndarray[Any, Any]
Kernel = Callable[..., None]
Levels = Iterator[tuple[Tensor, Array, tuple[Any, ...]]]

_LEAST = 1 << 15  # features: fewer are done before another thread has begun


def grain(features: int) -> int:
    """How many pieces of work of so many features a thread should have at least."""
    return -(-_LEAST // max(features, 1))


def levels(features: Tensor, reads: Reads) -> Levels:
    """Of each map: the map, the boxes on it, and the arguments that all kernels begin with, after the map. `features`
    [R, C, K] or [R, K, C] are there for their shape."""
    maps, image, level, arguments, groups = reads
    if groups:
        channel_offset = np.array(groups, np.int64) * reads.channels
    else:
        channel_offset = np.zeros(max(features.shape[1:]), np.int64)  # at least one a part
    index, on, *where = layout.plain(image, level, *arguments)
    boxes_of_each = layout.boxes_of_each_level(index, on, maps[0].shape[0], len(maps))
    for x, boxes in zip(maps, boxes_of_each, strict=True):
        shape = (x.shape[1:-2].numel(), *x.shape[-2:])
        yield x, boxes, (shape, index, boxes, channel_offset, *where)


def features(kernel: Kernel, out: Tensor, reads: Reads) -> Tensor:
    """Fill `out`, the boxes shared between the threads; returns it in the dtype of the maps."""
    result = out.numpy()
    for x, boxes, fixed in levels(out, reads):
        if len(boxes):
            run = partial(kernel, layout.cells(x, out.dtype), *fixed, result)
            threads.share(run, len(boxes), grain=grain(result.shape[1] * result.shape[2]), shares=4)
    return out.to(reads.maps[0].dtype)


def map_gradients(kernel: Kernel, grad: Tensor, reads: Reads, *, reads_map: bool = False) -> list[Tensor]:
    """A gradient of each map, in its dtype and memory format. A thread has its own channels of every group, whatever
    the boxes, so the order of the sums does not depend on the number of threads.

    The kernel adds to cells that hold nothing but the thread's channels: where threads write different channels of the
    same cells, the processor's prefetching takes the lines of each away from the other, and both can take twice as
    long. So it is called with the shape and the channel offsets of such cells, begin and end being those in the
    gradient.

    reads_map: the kernel is called as ``kernel(<map>, C, channel_offset, <cells of the thread>, ...)``.
    """
    dtype, channels, count = reads.dtype, reads.channels, by_group(reads.maps[0]).shape[1]
    (g,) = layout.plain(grad.to(dtype))
    block, per_channel = (16 if channels >= 64 else 4), g.size // max(channels, 1)

    def gradient(x: Tensor, boxes: Array, shape: tuple[int, int, int], *fixed: Any) -> Tensor:
        result = layout.empty_like_map(x, dtype)
        if not len(boxes):
            return result.zero_()
        (c, h, w), (image, box_index, channel_offset, *where) = shape, fixed
        read = (layout.cells(x, dtype), c, channel_offset) if reads_map else ()
        group = channel_offset // channels

        def work(begin: int, end: int) -> None:
            size = end - begin
            own = buffer_pool.empty((len(x) * h * w * count * size,), dtype).numpy()
            own[:] = 0
            kernel(*read, own, (count * size, h, w), image, box_index, group * size - begin, *where, g, begin, end)
            layout.put_channels(own, result, begin, end)

        threads.share(work, channels, grain=block * grain(block * per_channel))
        return result

    return [gradient(x, boxes, *fixed).to(x.dtype) for x, boxes, fixed in levels(grad, reads)]


def argument_gradients(kernel: Kernel, grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each argument, the boxes shared between the threads; the kernel adds to zeros."""
    (g,) = layout.plain(grad.to(reads.dtype))
    grads = [torch.zeros(a.shape, dtype=reads.dtype) for a in reads.arguments]
    results = [a.numpy() for a in grads]
    for x, boxes, fixed in levels(grad, reads):
        if len(boxes):
            run = partial(kernel, layout.cells(x, reads.dtype), *fixed, g, *results)
            threads.share(run, len(boxes), grain=grain(g.shape[1] * g.shape[2]), shares=4)
    return grads
