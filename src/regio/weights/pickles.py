"""Arrays out of pickles, without executing what a pickle asks for.

A pickle is a program that may call any function it names. Here it finds eight names, none of which is what it says:
arrays, their dtypes and scalars are put together by the few lines below, and any other name is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["read_pickle"]


def read_pickle(file: Path) -> Any:
    """What the pickle `file` holds: plain values, lists, tuples and dictionaries, with a tensor for each numpy array.

    Arrays are of numbers or truth values. Pickles of every protocol are read, of Python 2 too, and of numpy before and
    after its version 2. Raises ValueError naming the file: where it asks for any other global, which is named and not
    called; where it is damaged, or no pickle.
    """
    with file.open("rb") as stream:
        reader = _Reader(stream, encoding="latin1")
        try:
            return _plain(reader.load())
        except _Refused as error:
            raise ValueError(f"{file}: {error}") from None
        except Exception as error:  # whatever a stream of bytes makes of the unpickler
            raise ValueError(f"{file}: not a pickle, or damaged ({type(error).__name__})") from error


class _Refused(Exception):
    """Names what the pickle asked for."""


class _Reader(pickle.Unpickler):
    """Finds the methods below under the names of numpy's functions, and nothing else. (A pickle can set attributes of
    what it finds; bound methods and `dict` have none that can be set.)"""

    def find_class(self, module: str, name: str) -> Any:
        old = module.replace("numpy._core.", "numpy.core.")
        known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): self.array,
            ("numpy.core.multiarray", "scalar"): self.scalar,
            ("numpy.core.numeric", "_frombuffer"): self.from_buffer,
            ("numpy", "ndarray"): "ndarray",  # the first argument of `_reconstruct`
            ("numpy", "dtype"): self.dtype,
            ("_codecs", "encode"): self.encoded,
            ("__builtin__", "bytes"): self.no_bytes,
            ("collections", "OrderedDict"): dict,
        }
        if (old, name) not in known:
            asked = f"{module}.{name}".encode("unicode_escape").decode()  # on one line, whatever is in it
            raise _Refused(f"expected a pickle of arrays alone, got one that calls {asked}; nothing was called")
        return known[old, name]

    def array(self, *_: object) -> _Array:
        return _Array()

    def dtype(self, code: str, *_: object) -> _DType:
        return _DType(code)

    def scalar(self, dtype: _DType, content: bytes) -> Any:
        return dtype.of(content).reshape(()).item()

    def from_buffer(self, content: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
        made = _Array()
        made.values = dtype.of(content).reshape(shape, order="F" if order == "F" else "C")
        return made

    def no_bytes(self) -> bytes:
        """The empty ones, which the same protocols write as a call without arguments."""
        return b""

    def encoded(self, text: str, _: object) -> bytes:
        """Bytes, as protocols before the third have them."""
        return text.encode("latin1")


class _DType:
    """A dtype of numbers or truth values, whose byte order comes with its state."""

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
            raise _Refused(f"expected arrays of numbers, got one of dtype {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def of(self, content: bytes | str) -> NDArray[Any]:
        """The values in `content`, in one row."""
        raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
        return np.frombuffer(raw, np.dtype(self.order + self.code)).astype(self.code)


class _Array:
    """An array to be; its state is (version, shape, dtype, whether columns come first, content)."""

    values: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, columns_first, content = state
        self.values = dtype.of(content).reshape(shape, order="F" if columns_first else "C")


def _plain(value: Any) -> Any:
    """`value` with tensors for arrays."""
    convert: Callable[[Any], Any] = _plain
    if isinstance(value, _Array):
        return torch.from_numpy(np.ascontiguousarray(value.values).reshape(value.values.shape))
    if isinstance(value, Mapping):
        return {convert(key): convert(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(convert(each) for each in value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    raise _Refused(f"expected plain values and arrays, got a {type(value).__name__}")
