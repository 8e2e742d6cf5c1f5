"""The inner loops that the CPU kernels call: those of `simd`, or the plain ones where `simd` cannot be built.

`simd` is written against parts of numba's and llvmlite's interfaces that may change with any version. If they have, the
kernels are slower and compute the same.
"""

from __future__ import annotations

import warnings

from regio.kernels.cpu.simd_plain import NARROW, SIDE, WIDE, WINDOW

__all__ = [
    "NARROW",
    "SIDE",
    "WIDE",
    "WINDOW",
    "add_grid",
    "add_list",
    "add_logits_of_row",
    "add_to_maximum",
    "add_window",
    "dot_map",
    "keep_weights_of_row",
    "largest",
    "maximum",
    "span_not_below",
    "sum_grid",
    "sum_list",
    "sum_window",
    "transpose_block",
    "weigh_map",
]

try:
    from regio.kernels.cpu.simd import (
        add_grid,
        add_list,
        add_logits_of_row,
        add_to_maximum,
        add_window,
        call_each,
        dot_map,
        keep_weights_of_row,
        largest,
        maximum,
        span_not_below,
        sum_grid,
        sum_list,
        sum_window,
        transpose_block,
        weigh_map,
    )

    call_each()
except Exception as error:  # of any kind: an import, an attribute, LLVM's parser
    reason = str(error).strip().splitlines() or [""]
    warnings.warn(
        "The vector instructions of regio's CPU kernels cannot be built with this version of numba and llvmlite; "
        f"plain loops take their place, which are slower ({type(error).__name__}: {reason[0]})",
        RuntimeWarning,
        stacklevel=2,
    )
    from regio.kernels.cpu.simd_plain import (
        add_grid,
        add_list,
        add_logits_of_row,
        add_to_maximum,
        add_window,
        dot_map,
        keep_weights_of_row,
        largest,
        maximum,
        span_not_below,
        sum_grid,
        sum_list,
        sum_window,
        transpose_block,
        weigh_map,
    )
