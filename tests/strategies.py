"""Random boxes for property tests."""

import torch
from hypothesis import strategies as st
from torch import Tensor

_coordinate = st.floats(-500, 500, width=32)
_side = st.floats(0.5, 500, width=32)


@st.composite
def boxes(draw: st.DrawFn, minimum: int = 1, maximum: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """[R, 4], sides of at least half a pixel, anywhere within a few image sizes."""
    rows = draw(st.lists(st.tuples(_coordinate, _coordinate, _side, _side), min_size=minimum, max_size=maximum))
    corner = torch.tensor(rows, dtype=dtype).reshape(-1, 4)
    corner[:, 2:] += corner[:, :2]
    return corner
