"""Comparison of a function of `regio.ops` with torchvision's: results, and gradients of every input that has them."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

# In pixels of a map of 9 x 11 cells at stride 4: inside, whole, thin, across the border, a point, outside, far outside,
# inverted on both axes, on one, on the other, less than a bin, and on whole cells.
BOXES = [
    [5.3, 4.1, 30.9, 29.9],
    [0.0, 0.0, 44.0, 36.0],
    [10.2, 3.3, 11.1, 31.7],
    [-13.7, 17.2, 12.9, 51.3],
    [20.6, 14.9, 20.6, 14.9],
    [47.1, 39.3, 58.2, 45.8],
    [-900.0, -800.0, -500.0, -700.0],
    [30.9, 29.9, 5.3, 4.1],
    [30.9, 4.1, 5.3, 29.9],
    [5.3, 29.9, 30.9, 4.1],
    [20.6, 14.9, 20.1, 14.3],
    [8.0, 4.0, 24.0, 20.0],
]


def tensor(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, spread: float = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).to(dtype)


def rois(dtype: torch.dtype = torch.float64, random: int = 0, seed: int = 0, images: int = 2) -> Tensor:
    """`BOXES`, dealt out to the images, and some random ones, a quarter of them inverted on one axis or both."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(random, 4, generator=generator, dtype=torch.float64) * 60 - 10
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    ordered = torch.cat([low, high], 1)
    ordered[: random // 4] = corners[: random // 4]
    boxes = torch.cat([torch.tensor(BOXES, dtype=torch.float64), ordered])
    image = torch.arange(len(boxes), dtype=torch.float64) % images
    return torch.cat([image[:, None], boxes], 1).to(dtype)


def same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, tolerance: float) -> None:
    """Results agree, and so do the gradients of the inputs that require them; both relative to the largest number."""
    results = []
    for function in (ours, theirs):
        leaves = [i.detach().clone().requires_grad_(i.requires_grad) for i in inputs]
        y = function(*leaves)
        if y.requires_grad:
            y.backward(tensor(*y.shape, dtype=y.dtype, seed=7))
        results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)
