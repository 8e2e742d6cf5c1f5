"""Embeddings of coordinates as sines and cosines (Gu et al. 2018, section 3), and the few dimensions that those of an
interval span."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["embed", "span_of_embeddings"]


def embed(z: Tensor, channels: int) -> Tensor:
    """Sines and cosines [..., channels] of coordinates z [...]: channel 2i is sin(z / 1000^(2i / channels)), 2i + 1 its
    cosine (section 3; the base is 1000)."""
    angle = z[..., None] * 1000.0 ** -(torch.arange(0, channels, 2, dtype=z.dtype, device=z.device) / channels)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


@lru_cache(maxsize=64)
def span_of_embeddings(channels: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """An orthonormal basis B [channels, D] with ``embed(z) = embed(z) B B^T``, to rounding, for all z of [low, high].

    The wavelengths are 2 pi and more, so an interval of length L leaves about L / pi degrees of freedom and some for
    its ends, whatever the number of channels: 34 for a length of 64 in float32.
    """
    with torch.inference_mode(False), torch.no_grad():
        z = torch.arange(2 * low - 2, 2 * high + 3, dtype=torch.float64) / 2  # a little more, for what lies between
        _, size, basis = torch.linalg.svd(embed(z, channels), full_matrices=False)
        kept = size > size[0] * max(torch.finfo(dtype).eps / 8, 2e-15)  # float64: what the decomposition can tell
        return basis[kept].t().to(dtype).contiguous()
