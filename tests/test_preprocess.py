"""Scaling and batching, held to torchvision's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from regio.boxes import resize_boxes
from regio.preprocess import Preprocess
from regio.types import Targets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(20, 90), st.integers(20, 90)), min_size=1, max_size=3), st.integers(16, 70))
def test_equals_torchvision(sizes: list[tuple[int, int]], short_side: int) -> None:
    images = [torch.rand(3, *size) for size in sizes]
    boxes = [torch.tensor([[1.0, 2.0, 11.0, 17.0]]) for _ in sizes]
    theirs = GeneralizedRCNNTransform(short_side, 80, list(MEAN), list(STD)).eval()
    expected, moved = theirs(images, [{"boxes": b} for b in boxes])
    preprocess = Preprocess(short_side, 80, MEAN, STD)
    batch = preprocess(images)
    ours = preprocess.targets([Targets(b, torch.tensor([1])) for b in boxes], batch)
    torch.testing.assert_close(batch.data, expected.tensors)
    assert batch.sizes == expected.image_sizes
    assert batch.original == sizes
    assert moved is not None
    for target, other in zip(ours, moved, strict=True):
        torch.testing.assert_close(target.boxes, other["boxes"])


def test_bytes_and_fractions_are_the_same_image() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    preprocess = Preprocess(64, 100, MEAN, STD)
    torch.testing.assert_close(preprocess([image]).data, preprocess([image / 255]).data)


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    image = torch.rand(3, 32, 64)
    batch = Preprocess(32, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))([image])
    assert torch.equal(batch.data[0], image)
    assert batch.data.is_contiguous(memory_format=torch.channels_last)


def test_the_longer_side_is_capped() -> None:
    preprocess = Preprocess(600, 1000, MEAN, STD)
    assert preprocess.size_of((480, 640)) == (600, 800)
    assert preprocess.size_of((300, 1200)) == (250, 1000)
    assert preprocess.size_of((1, 5000)) == (1, 1000)


def test_boxes_are_scaled_and_masks_stay_as_annotated() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 4:10, 2:8] = True
    target = Targets(torch.tensor([[2.0, 4, 8, 10]]), torch.tensor([1]), masks=mask)
    preprocess = Preprocess(40, 40, MEAN, STD)
    scaled = preprocess.targets([target], preprocess([torch.rand(3, 20, 20)]))[0]
    assert scaled.boxes.tolist() == [[4, 8, 16, 20]]
    assert scaled.masks is mask


@settings(deadline=None, max_examples=30)
@given(*[st.integers(1, 2000)] * 4)
def test_boxes_come_back(h: int, w: int, height: int, width: int) -> None:
    boxes = torch.tensor([[0.0, 0.0, w, h], [0.25 * w, 0.5 * h, 0.75 * w, h]])
    there = resize_boxes(boxes, (h, w), (height, width))
    torch.testing.assert_close(there[0], torch.tensor([0.0, 0.0, width, height]))
    torch.testing.assert_close(resize_boxes(there, (height, width), (h, w)), boxes)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "at least one image"),
        (
            [torch.zeros(3, 4, 4), torch.zeros(4, 4)],
            ValueError,
            r"images\[1\]: expected shape \[3, H, W\], got \[4, 4\]",
        ),
        ([torch.zeros(3, 0, 4)], ValueError, r"got \[3, 0, 4\]"),
        ([torch.zeros(3, 4, 4, dtype=torch.int64)], TypeError, "uint8 in 0..255 or floating point"),
        (["photo.jpg"], TypeError, "got str"),
    ],
)
def test_bad_images_are_named(images: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocess(32, 64, MEAN, STD)(images)


def test_bad_settings_and_counts_are_named() -> None:
    with pytest.raises(ValueError, match="short_side"):
        Preprocess(100, 64, MEAN, STD)
    preprocess = Preprocess(32, 64, MEAN, STD)
    with pytest.raises(ValueError, match="targets: expected 1"):
        preprocess.targets([], preprocess([torch.rand(3, 9, 9)]))
