"""Class maps on pictures, and as files with a palette."""

import numpy as np
import pytest
import torch
from PIL import Image

from regio.types import IGNORED
from regio.visualize import class_colour, class_map_image, draw_class_map, legend, with_legend


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (8, 8), (11, 40)])
def test_narrow_pictures_have_a_legend_too(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (size[1], size[0]))
    assert with_legend(picture, [0, 1, 2], ("cat", "dog")).width == size[1]


def test_a_palette_image_has_the_labels_and_the_colours() -> None:
    labels = torch.tensor([[0, 1, 2], [80, 254, IGNORED]], dtype=torch.uint8)
    image = class_map_image(labels)
    assert image.mode == "P" and np.array_equal(np.asarray(image), labels)
    colours = np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()
    expected = [(0, 0, 0), *(class_colour(label) for label in (1, 2, 80, 254)), (255, 255, 255)]
    assert [tuple(each) for each in colours] == expected


def test_classes_are_tinted_with_a_rim_and_the_background_is_left() -> None:
    photo = torch.full((3, 12, 16), 100, dtype=torch.uint8)
    labels = torch.zeros((12, 16), dtype=torch.uint8)
    labels[2:9, 3:10] = 2
    labels[:, 14:] = IGNORED
    pixels = np.asarray(draw_class_map(photo, labels)).astype(int)
    assert (pixels[labels == 0] == 100).all()
    assert (pixels[2, 3:10] == class_colour(2)).all() and (pixels[2:9, 9] == class_colour(2)).all()
    inside = np.round(100 + 0.4 * (np.array(class_colour(2)) - 100))
    assert (pixels[3:8, 4:9] == inside).all()
    assert (pixels[:, 14:] == 162).all()
    with pytest.raises(ValueError, match=r"labels: expected shape \[12, 16\], got \[16, 12\]"):
        draw_class_map(photo, labels.T)


def test_a_legend_has_rows_and_is_put_beside_a_picture() -> None:
    names = [f"class {i}" for i in range(30)]
    narrow, wide = (legend([0, 3, 30, IGNORED], names, width) for width in (90, 900))
    assert narrow.width == 90 and wide.width == 900 and narrow.height > 3 * wide.height // 2
    assert {class_colour(3), class_colour(30)} <= {each for _, each in wide.getcolors(99999) or ()}
    picture = Image.new("RGB", (900, 50), (1, 2, 3))
    above, below = (with_legend(picture, [3], names, below=each) for each in (False, True))
    assert above.size == below.size and above.height > 50
    assert below.getpixel((0, 0)) == above.getpixel((0, above.height - 1)) == (1, 2, 3)
