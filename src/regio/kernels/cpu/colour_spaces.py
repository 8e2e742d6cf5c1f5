"""Colour spaces of selective search, each channel in 0..255."""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import strict

__all__ = ["grey", "hsv", "lab", "normalised_rg_grey"]

Array = np.ndarray[Any, Any]


@strict
def hsv(image: Array, out: Array) -> None:
    """Hue, saturation and value of uint8 RGB [H, W, 3]. Grey pixels have hue 0."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            r, g, b = float(image[y, x, 0]), float(image[y, x, 1]), float(image[y, x, 2])
            high, low = max(r, g, b), min(r, g, b)
            chroma = high - low
            hue = 0.0
            if chroma > 0:
                if high == r:
                    hue = (g - b) / chroma
                elif high == g:
                    hue = 2.0 + (b - r) / chroma
                else:
                    hue = 4.0 + (r - g) / chroma
                if hue < 0:
                    hue += 6.0
            out[y, x, 0] = hue * (255.0 / 6.0)
            out[y, x, 1] = 255.0 * chroma / high if high > 0 else 0.0
            out[y, x, 2] = high


@strict
def lab(image: Array, linear: Array, out: Array) -> None:
    """CIE L*a*b* (D65) of uint8 sRGB [H, W, 3]: L * 2.55, a + 128, b + 128. linear: [256], the intensity in 0..1 of
    each value of sRGB."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            r, g, b = linear[image[y, x, 0]], linear[image[y, x, 1]], linear[image[y, x, 2]]
            fx = _root((0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.95047)
            fy = _root(0.212671 * r + 0.715160 * g + 0.072169 * b)
            fz = _root((0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.08883)
            out[y, x, 0] = 2.55 * (116.0 * fy - 16.0)
            out[y, x, 1] = 500.0 * (fx - fy) + 128.0
            out[y, x, 2] = 200.0 * (fy - fz) + 128.0


@strict
def _root(value: float) -> float:
    if value > 0.008856451679035631:
        return float(np.cbrt(value))
    return 7.787037037037037 * value + 16.0 / 116.0


@strict
def normalised_rg_grey(image: Array, out: Array) -> None:
    """R / (R + G + B) and G / (R + G + B) times 255, and the intensity, of uint8 RGB [H, W, 3]; a third for black."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            r, g, b = float(image[y, x, 0]), float(image[y, x, 1]), float(image[y, x, 2])
            total = r + g + b
            out[y, x, 0] = 255.0 * r / total if total > 0 else 85.0
            out[y, x, 1] = 255.0 * g / total if total > 0 else 85.0
            out[y, x, 2] = 0.299 * r + 0.587 * g + 0.114 * b


@strict
def grey(image: Array, out: Array) -> None:
    """The intensity of uint8 RGB [H, W, 3], as [H, W, 1]."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            out[y, x, 0] = 0.299 * image[y, x, 0] + 0.587 * image[y, x, 1] + 0.114 * image[y, x, 2]
