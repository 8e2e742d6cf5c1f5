"""How far the weights of a region's parts are from each other, and from the object's mask (Gu et al. 2018, section 5).

The weights of a part, divided by their sum, are a distribution over the cells of the map; distances are
Kullback-Leibler divergences ``KL(p || q) = sum p log(p / q)`` in nats.

`floor`: in the logarithms a probability below it counts as `floor`, which bounds each divergence by -log(floor), 27.6
nats for the default. Without it (0) parts that share no cell, such as the bins of RoIAlign, are infinitely far apart,
and so are learned parts where float32 has rounded a weight down to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regio.types import FeatureMap

__all__ = ["divergence", "kl_between_parts", "kl_of_mask", "masks_to_cells"]


def divergence(p: Tensor, q: Tensor, *, floor: float = 1e-12) -> Tensor:
    """``KL(p || q)`` [...] of distributions p and q [..., cells], which broadcast. ``0 log 0`` is 0."""
    return torch.where(p > 0, p * (p.clamp(min=floor).log() - q.clamp(min=floor).log()), 0).sum(-1)


def kl_between_parts(weights: Tensor, *, diagonal: bool = True, floor: float = 1e-12) -> Tensor:
    """The mean [R] of KL(part i || part j) over all pairs of the K parts of a box ("mean KL between parts").

    weights: [R, 1 or C, K, H, W] as an extractor's `weights` gives them, averaged over channels. diagonal: whether the
    K pairs of a part with itself, which add 0, count among the K * K. The paper lets both indices run from 1 to 49
    without exception, so they do by default; without them the mean is K / (K - 1) as large.

    Raises ValueError for another shape, for a single part without diagonal, and for a part without weights, which is no
    distribution (its bin lies outside the map or its mask).
    """
    p = _distributions(_parts(weights))
    parts = p.shape[1]
    if parts == 1 and not diagonal:
        raise ValueError("weights: expected at least two parts without the diagonal, got 1")
    # sum over j of p_i (log p_i - log p_j) is K p_i (log p_i - the mean logarithm of all parts): K maps, not K x K.
    log = p.clamp(min=floor).log()
    of_all = torch.where(p > 0, p * (log - log.mean(1, keepdim=True)), 0).sum((1, 2)) / parts
    return of_all if diagonal else of_all * parts / (parts - 1)


def kl_of_mask(weights: Tensor, masks: Tensor, *, floor: float = 1e-12) -> Tensor:
    """KL(mask || largest weight) [R]: the mask against the maximum over parts at each cell, both divided by their sum
    ("KL of mask").

    weights: [R, 1 or C, K, H, W], averaged over channels; the maximum is of the weights as they are. masks: [R, H, W],
    not negative, see `masks_to_cells`. The paper does not say which of the two comes first; KL(weights || mask) would
    be infinite for every box, since softmax weights are positive outside of the mask as well.

    Raises ValueError for other shapes, and for a box without weights or an empty mask.
    """
    largest = _parts(weights).amax(1)
    if masks.shape != largest.shape:
        raise ValueError(f"masks: expected shape {list(largest.shape)}, as the weights, got {list(masks.shape)}")
    if len(masks) and not bool((masks.flatten(1).sum(1) > 0).all()):
        empty = int((masks.flatten(1).sum(1) <= 0).nonzero()[0])
        raise ValueError(f"masks: expected at least one cell in each, got an empty mask at row {empty}")
    target = masks.flatten(1).to(torch.float64)
    return divergence(target / target.sum(1, keepdim=True), _distributions(largest[:, None])[:, 0], floor=floor)


def masks_to_cells(masks: Tensor, x: FeatureMap, size: tuple[int, int] | None = None) -> Tensor:
    """The share of each cell of `x` that masks [R, h, w] of its image cover, in [0, 1]: [R, H, W] float64.

    size: the (height, width) in pixels that the image was scaled to, where it was and the masks were not: mask pixel j
    covers [j, j + 1) of h, or of w, equal parts of it. The total area is kept but for what lies beside the map.
    """
    lengths = masks.shape[1:] if size is None else size
    rows, columns = (
        _overlap(cells, pixels, length / pixels, x.stride).to(masks.device)
        for cells, pixels, length in zip(x.size, masks.shape[1:], lengths, strict=True)
    )
    covered = masks.new_zeros((len(masks), *x.size), dtype=torch.float64)
    for own, mask in zip(covered, masks, strict=True):  # one by one: a mask of a large photo takes 100 MB in float64
        own.copy_(rows @ mask.to(torch.float64) @ columns.T)
    return covered / x.stride**2


def _overlap(cells: int, pixels: int, pixel: float, stride: float) -> Tensor:
    """How much of pixel j, `pixel` long, is in cell i, `stride` long: [cells, pixels]."""
    i, j = torch.arange(cells, dtype=torch.float64)[:, None], torch.arange(pixels, dtype=torch.float64)
    end, start = torch.minimum((i + 1) * stride, (j + 1) * pixel), torch.maximum(i * stride, j * pixel)
    return (end - start).clamp(min=0)


def _parts(weights: Tensor) -> Tensor:
    """[R, K, H, W] float64 from [R, 1 or C, K, H, W]: the mean over channels."""
    if weights.ndim != 5 or 0 in weights.shape[1:]:
        raise ValueError(f"weights: expected shape [R, 1 or C, K, H, W], got {list(weights.shape)}")
    return weights.detach().mean(1, dtype=torch.float64)


def _distributions(maps: Tensor) -> Tensor:
    """[R, K, H * W] that sum to one, from [R, K, H, W]."""
    sums = maps.sum((2, 3))
    if bool((sums <= 0).any()):
        box, part = (sums <= 0).nonzero()[0].tolist()
        raise ValueError(
            f"weights: expected a positive sum over the cells, got {sums[box, part]} at box {box}, part {part}"
        )
    return (maps / sums[:, :, None, None]).flatten(2)
