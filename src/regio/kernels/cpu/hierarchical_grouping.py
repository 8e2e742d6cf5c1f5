"""Greedy merging of the most similar neighbours.

Uijlings et al.: Selective search for object recognition, IJCV 2013, algorithm 1.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled, strict

__all__ = ["colour_counts", "group", "measure", "neighbours", "similarity", "texture_counts"]

Array = np.ndarray[Any, Any]


@strict
def measure(labels: Array, size: Array, box: Array) -> None:
    """Of the R regions of labels [H, W]: pixels [>= R], which come as 0, and boxes (x1, y1, x2, y2) [>= R, 4]."""
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            region = labels[y, x]
            if size[region] == 0:
                box[region, 0], box[region, 1], box[region, 2], box[region, 3] = x, y, x + 1, y + 1
            else:
                box[region, 0] = min(box[region, 0], x)
                box[region, 2] = max(box[region, 2], x + 1)
                box[region, 3] = y + 1
            size[region] += 1


@strict
def neighbours(labels: Array, pairs: Array) -> int:
    """The pairs of regions that touch, as a R + b with a < b, most of them several times, in pairs [4 H W]; returns how
    many there are. Pixels touch their eight neighbours."""
    height, width = labels.shape
    regions = np.int64(labels.max()) + 1
    count = 0
    for y in range(height):
        for x in range(width):
            here = np.int64(labels[y, x])
            for direction in range(4):
                dy, dx = (
                    (0, 1) if direction == 0 else (1, 0) if direction == 1 else (1, 1) if direction == 2 else (1, -1)
                )
                if y + dy < height and 0 <= x + dx < width:
                    there = np.int64(labels[y + dy, x + dx])
                    if here != there:
                        pair = min(here, there) * regions + max(here, there)
                        if count == 0 or pairs[count - 1] != pair:
                            pairs[count] = pair
                            count += 1
    return count


@strict
def colour_counts(image: Array, labels: Array, bins: int, counts: Array) -> None:
    """Adds to counts [>= R, C bins] the pixels of each region in each of `bins` parts of 0..255 of each channel."""
    height, width, channels = image.shape
    scale = np.float32(bins / 256.0)
    for y in range(height):
        for x in range(width):
            region = labels[y, x]
            for c in range(channels):
                place = min(max(int(image[y, x, c] * scale), 0), bins - 1)
                counts[region, c * bins + place] += 1


@strict
def texture_counts(right: Array, down: Array, largest: Array, labels: Array, bins: int, counts: Array) -> None:
    """Adds to counts [>= R, C 8 bins] the pixels of each region in each part of the derivatives of each channel in
    eight directions, 45 degrees apart, of which those below zero count as zero.

    right, down: the derivatives [H, W, C]. largest: [C], what the last bin ends with.
    """
    height, width, channels = right.shape
    diagonal = np.float32(np.sqrt(0.5))
    along = np.empty(4, np.float32)
    for y in range(height):
        for x in range(width):
            region = labels[y, x]
            for c in range(channels):
                scale = np.float32(bins) / largest[c] if largest[c] > 0 else np.float32(0)
                dx, dy = right[y, x, c], down[y, x, c]
                along[0], along[1] = dx * scale, dy * scale
                along[2], along[3] = (dx + dy) * diagonal * scale, (dx - dy) * diagonal * scale
                for i in range(4):
                    first = (c * 8 + 2 * i) * bins
                    place = min(int(abs(along[i])), bins - 1)
                    if along[i] > 0:
                        counts[region, first + place] += 1
                        counts[region, first + bins] += 1
                    else:
                        counts[region, first] += 1
                        counts[region, first + bins + place] += 1


@compiled
def _intersection(counts: Array, a: int, b: int, of_a: float, of_b: float) -> float:
    """The sum over bins of the smaller of the two shares."""
    total = np.float32(0)
    left, right = counts[a], counts[b]
    fa, fb = np.float32(of_a), np.float32(of_b)
    for i in range(left.shape[0]):
        total += min(left[i] * fa, right[i] * fb)
    return float(total)


@strict
def similarity(
    a: int, b: int, size: Array, box: Array, colour: Array, texture: Array, channels: int, use: Array, area: int
) -> float:
    """The sum of the similarities that `use` [4] switches on, each in 0..1: of colour and of texture, the intersection
    of histograms; of size, 1 - (|a| + |b|) / area; of fill, 1 - (|box around both| - |a| - |b|) / area.

    A pixel counts once for each of the `channels` in the histogram of colour, and eight times in that of texture.
    """
    total = 0.0
    if use[0]:
        total += _intersection(colour, a, b, 1.0 / (channels * size[a]), 1.0 / (channels * size[b]))
    if use[1]:
        total += _intersection(texture, a, b, 0.125 / (channels * size[a]), 0.125 / (channels * size[b]))
    pixels = size[a] + size[b]
    if use[2]:
        total += 1.0 - pixels / area
    if use[3]:
        width = max(box[a, 2], box[b, 2]) - min(box[a, 0], box[b, 0])
        height = max(box[a, 3], box[b, 3]) - min(box[a, 1], box[b, 1])
        total += 1.0 - (width * height - pixels) / area
    return total


@strict
def group(
    regions: int,
    pairs: Array,
    size: Array,
    box: Array,
    colour: Array,
    texture: Array,
    channels: int,
    use: Array,
    merged: Array,
) -> int:
    """Merge the two most similar neighbours until none are left; returns the number of merges M.

    Rows 0 .. R - 1 of size [2R - 1], box [2R - 1, 4], colour and texture [2R - 1, bins] are the regions; row R + i
    becomes that of merge i, of the regions merged[i]. pairs: those that touch, as a R + b with a < b, each once.
    Histograms are counts of pixels: of a merged region their sum. Of equal similarities that of the lower numbers goes
    first.
    """
    area = 0
    for region in range(regions):
        area += size[region]
    # Neighbours are kept as they were when a region was made, in one array; what became of them is found by `parent`.
    degree = np.zeros(regions, np.int64)
    for i in range(pairs.shape[0]):
        degree[pairs[i] // regions] += 1
        degree[pairs[i] % regions] += 1
    start, stop = np.zeros(2 * regions, np.int64), np.zeros(2 * regions, np.int64)
    for region in range(1, regions):
        start[region] = stop[region] = start[region - 1] + degree[region - 1]
    pool = np.empty(max(4 * pairs.shape[0], 16), np.int32)
    queue: list[tuple[float, Any, Any]] = [(0.0, 0, 0)]
    queue.clear()
    for i in range(pairs.shape[0]):
        a, b = pairs[i] // regions, pairs[i] % regions
        pool[stop[a]], pool[stop[b]] = b, a
        stop[a] += 1
        stop[b] += 1
        queue.append((-similarity(a, b, size, box, colour, texture, channels, use, area), a, b))
    heapq.heapify(queue)
    used = 2 * pairs.shape[0]
    parent = np.arange(2 * regions)
    seen = np.full(2 * regions, -1, np.int64)
    merges = 0
    while len(queue) > 0:
        _, a, b = heapq.heappop(queue)
        if parent[a] != a or parent[b] != b:
            continue
        new = regions + merges
        merged[merges, 0], merged[merges, 1] = a, b
        merges += 1
        parent[a] = parent[b] = new
        size[new] = size[a] + size[b]
        for i in range(2):
            box[new, i] = min(box[a, i], box[b, i])
            box[new, 2 + i] = max(box[a, 2 + i], box[b, 2 + i])
        if use[0]:
            colour[new] = colour[a] + colour[b]
        if use[1]:
            texture[new] = texture[a] + texture[b]
        room = used + stop[a] - start[a] + stop[b] - start[b]
        if room > pool.shape[0]:
            larger = np.empty(2 * room, np.int32)
            larger[:used] = pool[:used]
            pool = larger
        start[new] = stop[new] = used
        for old in (a, b):
            for i in range(start[old], stop[old]):
                other = np.int64(pool[i])
                while parent[other] != other:
                    parent[other] = parent[parent[other]]
                    other = parent[other]
                if other != new and seen[other] != new:
                    seen[other] = new
                    pool[stop[new]] = other
                    stop[new] += 1
                    heapq.heappush(
                        queue, (-similarity(other, new, size, box, colour, texture, channels, use, area), other, new)
                    )
        used = stop[new]
    return merges
