"""Masks from polygons and run lengths, held to the COCO API and to hand-made cases."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as reference

from regio.data import open_dataset
from regio.data.masks import decode_masks, encode_mask, mask_area, mask_bounds

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools


@settings(deadline=None, max_examples=50)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_encode_then_decode_is_identity(mask: np.ndarray) -> None:
    runs = encode_mask(mask)
    assert (decode_masks([runs], mask.shape)[0].numpy() == mask).all()
    assert mask_area(runs, mask.shape) == mask.sum()
    assert (reference.decode({"size": runs["size"], "counts": runs["counts"].encode()}) == mask).all()


@settings(deadline=None, max_examples=100)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_bounds_are_those_of_the_pixels(mask: np.ndarray) -> None:
    """Law: without unrolling an encoding, its bounds are those of what it unrolls to."""
    ys, xs = mask.nonzero()
    expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if mask.any() else None
    assert mask_bounds(encode_mask(mask), mask.shape) == expected
    counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=not mask[0, 0], append=not mask[-1, -1])))
    runs = [int(count) for count in counts] if not mask[0, 0] else [0, *map(int, counts)]
    assert mask_bounds({"size": list(mask.shape), "counts": runs}, mask.shape) == expected


def test_bounds_of_polygons_are_those_of_their_points() -> None:
    assert mask_bounds([[3, 2, 9, 2.5, 9, 5], [-1, 4, 2, 4, 2, 20.5]], (10, 14)) == (-1, 2, 9, 20.5)


def test_a_mask_is_decoded_in_a_byte_a_pixel() -> None:
    tracemalloc.start()
    decode_masks([{"size": [1000, 1000], "counts": [500_000, 500_000]}], (1000, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # the mask, and what it was unrolled to


def test_rectangle_polygon_covers_its_half_open_pixels() -> None:
    mask = decode_masks([[[3, 2, 9, 2, 9, 5, 3, 5]]], (10, 14))[0]
    assert mask.sum() == 18
    assert mask[2:5, 3:9].all()


def test_polygons_of_one_object_are_united() -> None:
    overlapping = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]
    assert mask_area(overlapping, (8, 8)) == 16 + 16 - 4


def test_uncompressed_counts_run_down_the_columns() -> None:
    mask = decode_masks([{"size": [2, 3], "counts": [1, 2, 3]}], (2, 3))[0]
    assert mask.tolist() == [[False, True, False], [True, False, False]]


def test_no_segmentations() -> None:
    assert decode_masks([], (4, 5)).shape == (0, 4, 5)


def test_real_polygons_as_in_the_coco_api(shared_data: Path) -> None:
    record = open_dataset(shared_data / "nuts", "train").records[0]
    masks = decode_masks(record.segmentations, record.size)
    for mask, polygons in zip(masks, record.segmentations, strict=True):
        expected = reference.decode(reference.merge(reference.frPyObjects(polygons, *record.size)))
        assert (mask.numpy() == expected).all()


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[1, 2, 3, 4]], "at least three"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three"),
        ("abc", "expected polygons or a run-length"),
        ({"counts": [1, 2, 3]}, "expected polygons or a run-length"),
        ({"size": [9, 9], "counts": [81]}, r"expected size \[4, 5\]"),
        ({"size": [4, 5], "counts": [3, 4]}, "sum to 7"),
        ({"size": [4, 5], "counts": [-1, 21]}, "counts of at least 0, got -1"),
        ({"size": [4, 5], "counts": [1.5, 18.5]}, "expected counts as text or a list of integers"),
        ({"size": [4, 5], "counts": None}, "expected counts as text or a list of integers"),
        ({"size": [4, 5], "counts": "99999"}, "sum to 63"),
        ({"size": [4, 5], "counts": "4!"}, "'!' is no character"),
        ({"size": [4, 5], "counts": "4d"}, "ends within a number"),
        ([[1, 2, float("nan"), 4, 5, 6]], "at least three x, y pairs"),
        ([[1, 2, "x", 4, 5, 6]], "at least three x, y pairs"),
    ],
)
def test_bad_segmentation(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_masks([segmentation], (4, 5))
