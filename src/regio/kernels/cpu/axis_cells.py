"""The cells that the samples of bins read along one axis.

The samples of a bin fall on few distinct cells (3 for two samples a cell apart), so their bilinear weights are merged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled

__all__ = ["axis_buffers", "axis_cells", "offsets"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def axis_buffers(bins: int, cells: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Room for the cells [K, L] of each bin along one axis, their weights [K, L] and their number [K]."""
    return np.empty((bins, cells), np.int64), np.empty((bins, cells), dtype), np.empty(bins, np.int64)


@compiled
def axis_cells(
    positions: Array, weight: Array, size: int, keep_zeros: bool, cells: Array, cell_weights: Array, n: Array
) -> None:
    """Merge samples [K, S] into the distinct cells [K, L] of each bin, their weights, and their number [K].

    Cells of zero weight are left out unless `keep_zeros`: a derivative needs them.
    """
    for k in range(positions.shape[0]):
        found = 0
        for s in range(positions.shape[1]):
            p = positions[k, s]
            if not (p >= -1 and p < size) or (weight[k, s] == 0 and not keep_zeros):
                continue
            low = int(np.floor(p))
            for cell in range(max(low, 0), min(low + 2, size)):
                w = weight[k, s] * (1 - abs(p - cell))
                if w == 0 and not keep_zeros:
                    continue
                m = 0
                while m < found and cells[k, m] != cell:
                    m += 1
                if m == found:
                    cells[k, m] = cell
                    cell_weights[k, m] = w
                    found += 1
                else:
                    cell_weights[k, m] += w
        n[k] = found


@compiled
def offsets(cells: Array, n: Array, step: int, offsets: Array) -> None:
    """``offsets[k * L + m] = cells[k, m] * step`` for cells [K, L]."""
    for k in range(cells.shape[0]):
        for m in range(n[k]):
            offsets[k * cells.shape[1] + m] = U(cells[k, m] * step)
