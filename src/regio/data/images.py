"""Reading an image file as 8-bit RGB.

What becomes of the less common kinds of file:

====================================  ==================================================================================
stored as                             read as
====================================  ==================================================================================
grey, bilevel, palette, YCbCr, CMYK   converted to RGB
16-bit grey                           scaled from the range of the type, 0..65535, to 0..255: the same for all images
transparency (RGBA, LA, palette, key) composited on white, as a viewer shows it
animation, several pages              the first frame
32-bit integers over 65535, floats    refused: their range is unknown
====================================  ==================================================================================

Orientation. A camera may store an image rotated, with a note in its EXIF block. Annotations refer to what the
annotation tool showed, and tools differ, so the annotated size decides: the image is turned upright if and only if
its upright size is the annotated one. Where both fit (a square image, a half turn), and where there is no annotated
size, it is turned upright.

Pillow decodes: torchvision's decoder took 20 to 30 % less time on JPEGs of 320 to 500 pixels, which is 0.1 to 0.25 ms
an image, and does not read most of the table above.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["IMAGE_SUFFIXES", "image_size", "read_image", "rgb_pixels"]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".ppm", ".pgm", ".jp2", ".mpo",
)  # fmt: skip
"""Those of the files that are taken for images in a folder."""

_ORIENTATION = 0x0112  # the EXIF tag
_QUARTER_TURNS = frozenset({5, 6, 7, 8})


def read_image(path: str | Path, expected_size: tuple[int, int] | None = None) -> Tensor:
    """The image at `path` as uint8 RGB [3, H, W], in channels-last memory order.

    expected_size: the (height, width) that annotations give, or None for a photo without annotations.

    Raises ValueError, naming the path, when there is no such file, when it is no image, is truncated or otherwise
    damaged, when its pixels have no known range, when its size is not `expected_size`, and, by its header alone, when
    it has more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels; from half of these on Pillow warns.
    """
    with opened(path) as image:
        upright = _turned(image, expected_size)
        image.load()
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        pixels = rgb_pixels(image)
    if expected_size is not None and pixels.shape[:2] != expected_size:
        raise ValueError(
            f"{path}: the image is {_words(pixels.shape[:2])}, but its annotation says {_words(expected_size)}"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the image at `path` as displayed, reading only its header. Raises as `read_image`."""
    with opened(path) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION) in _QUARTER_TURNS else (height, width)


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """The open image; whatever goes wrong inside the block becomes a ValueError that names `path`."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image file") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large to be read: {str(error).partition(', could')[0]}") from error
    except (OSError, SyntaxError, EOFError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _turned(image: Image.Image, expected_size: tuple[int, int] | None) -> bool:
    """Whether to apply the EXIF orientation: see the head of this file."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return False
    width, height = image.size
    upright = (width, height) if orientation in _QUARTER_TURNS else (height, width)
    return expected_size is None or upright == expected_size


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of `image` as uint8 [H, W, 3]: those of 16 bits scaled, what is transparent on white.

    Raises ValueError for pixels whose range is not known.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not (values.min() >= 0 and values.max() <= 65535):
            raise ValueError(f"expected integers in 0..65535, got {values.min()}..{values.max()}")
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _words(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]} pixels (width x height)"
