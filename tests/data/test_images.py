"""Every kind of image file comes out as 8-bit RGB, or with an error that names it."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regio.data import examine, read_coco
from regio.data.doctor import BAD_IMAGE
from regio.data.images import image_size, read_image
from tests.data.small_datasets import coco_source, write_coco, write_png_header

_LEFT_TURN = 6  # EXIF: stored lying on its side, to be turned by 90 degrees clockwise
_HALF_TURN = 3


def _gradient(height: int = 6, width: int = 9) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def _with_orientation(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_rgb_pixels_are_as_stored(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (6, 9))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 6, 9)
    assert (image.permute(1, 2, 0).numpy() == _gradient()).all()


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = _gradient()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png").numpy() == grey).all()


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False, True]])
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_the_range_of_the_type(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535, 128, 129]], dtype=np.uint16)  # 257 is one step of 8 bits
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}")[1].tolist() == [[0, 1, 128, 255, 0, 1]]


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_palette_with_transparency_is_put_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[200, 100, 50], [255, 255, 255]]]


@pytest.mark.parametrize("mode, clear, solid", [("RGBA", (9, 9, 9, 0), (1, 2, 3, 255)), ("LA", (9, 0), (7, 255))])
def test_alpha_is_put_on_white(tmp_path: Path, mode: str, clear: tuple[int, ...], solid: tuple[int, ...]) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), clear)
    image.putpixel((1, 0), solid)
    image.save(tmp_path / "a.png")
    expected = [1, 2, 3] if mode == "RGBA" else [7, 7, 7]
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[255, 255, 255], expected]]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")  # magenta and yellow ink make red
    red, green, blue = read_image(tmp_path / "a.jpg").float().mean((1, 2)).tolist()
    assert red > 250
    assert max(green, blue) < 5


def test_exif_rotation_without_annotation_is_always_applied(tmp_path: Path) -> None:
    path = _with_orientation(tmp_path / "a.png", _gradient(), _LEFT_TURN)
    turned = np.rot90(_gradient(), -1)
    assert image_size(path) == (9, 6)
    assert (read_image(path).permute(1, 2, 0).numpy() == turned).all()


def test_exif_rotation_follows_the_annotated_size(tmp_path: Path) -> None:
    path = _with_orientation(tmp_path / "a.png", _gradient(), _LEFT_TURN)
    assert (read_image(path, (9, 6)).permute(1, 2, 0).numpy() == np.rot90(_gradient(), -1)).all()
    assert (read_image(path, (6, 9)).permute(1, 2, 0).numpy() == _gradient()).all()


def test_exif_half_turn_fits_both_sizes_and_is_applied(tmp_path: Path) -> None:
    path = _with_orientation(tmp_path / "a.png", _gradient(), _HALF_TURN)
    assert (read_image(path, (6, 9)).permute(1, 2, 0).numpy() == _gradient()[::-1, ::-1]).all()


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_damaged_exif_block_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0")
    for read in (image_size, read_image):
        with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image: unpack requires a buffer"):
            read(tmp_path / "a.png")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jpg: no such image file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match=r"gone\.jpg: no such image file"):
        image_size(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}: cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.jpg: cannot be read as an image"):
        read_image(path)


def test_other_size_than_annotated_names_both(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the image is 9 x 6 pixels.*annotation says 10 x 6 pixels"):
        read_image(tmp_path / "a.png", (6, 10))


@pytest.mark.parametrize("values", [np.array([[0.5]], np.float32), np.array([[70000]], np.int32)])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: cannot be read as an image: (floating point|expected integers)"):
        read_image(tmp_path / "a.tif")


def test_a_header_of_too_many_pixels_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    file = write_png_header(tmp_path / "huge.png", 30_000, 30_000)
    for read in (read_image, image_size):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"huge\.png: too large to be read: .*900000000 .* 178956970") as error:
            read(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6
        assert "\n" not in str(error.value)


def test_of_a_size_that_no_image_has_no_mask_is_decoded(tmp_path: Path) -> None:
    """The annotated size is 30,000 x 30,000: a byte a pixel would be 900 MB for each object."""
    source = coco_source()
    source["images"][0] |= {"width": 30_000, "height": 30_000}
    source["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 22, 1, 22]]
    del source["annotations"][0]["area"]
    file = write_coco(tmp_path, source)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.png: the image is 40 x 60 pixels .* says 30000 x 30000 pixels"):
        read_coco(file, [tmp_path]).with_known_masks()[0]
    assert [str(each) for each in examine(file).of(BAD_IMAGE)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e7
