"""The outline of a mask is the mask, rasterised again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regio.data.masks import decode_masks
from regio.data.outlines import mask_outline


@settings(deadline=None, max_examples=200)
@given(arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))).filter(np.any))
def test_outline_rasterised_is_the_mask(mask: np.ndarray) -> None:
    outline = mask_outline(mask)
    assert (decode_masks([[outline]], mask.shape)[0].numpy() == mask).all()


def test_outline_by_hand() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    outline = np.array(mask_outline(mask)).reshape(-1, 2)
    assert {tuple(point) for point in outline.tolist()} == {(2, 1), (5, 1), (5, 3), (2, 3)}
    assert len(outline) == 4


def test_nothing_has_no_outline() -> None:
    assert mask_outline(np.zeros((3, 4), dtype=bool)) == []


@pytest.mark.parametrize("side", [40, 300])
def test_ring_and_island(side: int) -> None:
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(y - side / 2, x - side / 2) / side
    mask = (distance < 0.1) | ((distance > 0.2) & (distance < 0.4)) | ((x < 3) & (y < 2))
    assert (decode_masks([[mask_outline(mask)]], mask.shape)[0].numpy() == mask).all()
