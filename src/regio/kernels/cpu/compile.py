"""How the CPU kernels are compiled, and where the result is kept."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

__all__ = ["compiled", "strict"]

# Sums may be reordered and multiply-adds fused, which is what lets the compiler use vector instructions. NaN and
# infinity keep their meaning.
_FAST = {"contract", "nsz", "arcp", "reassoc"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a serial kernel that releases the interpreter's lock.

    Compiled at the first call for each combination of dtypes (a second or two) and kept on disk, in a folder named by
    a hash of the sources of all kernels: in `NUMBA_CACHE_DIR` where that is set, beside the sources, or in the user's
    cache directory. Where none of them can be written it is compiled once in every process.
    """
    return _compile(function, fastmath=_FAST)


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled`, with every rounding as it is written."""
    return _compile(function, fastmath=False)


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    kernel = numba.njit(nogil=True, error_model="numpy", boundscheck=False, **options)(function)
    folder = _folder()
    if folder is not None:
        kernel._cache = _Kept(function, folder)
    return kernel


class _Kept(NullCache):
    """The compiled forms of one function on disk, a file for each combination of argument types.

    numba's own cache compares only the file that the function is in, although helpers from other files are compiled
    into it, and its index can be torn between two processes that compile at once. Here the folder changes with any
    source, a file's name determines its content, and files appear complete. A file that cannot be read or written
    costs only time.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._folder = folder

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        try:
            payload = pickle.loads(self._path(signature, target_context.codegen()).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        return CompileResult._rebuild(target_context, *payload)

    def save_overload(self, signature: Any, result: Any) -> None:
        if result.library.has_dynamic_globals:
            return  # addresses of this process
        path = self._path(signature, result.codegen)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(dumps(result._reduce()))
            unfinished.replace(path)
        except OSError:  # a full disk, or another process has removed the folder
            with suppress(OSError):
                unfinished.unlink()
            return
        _remove_older(self._folder)

    def _path(self, signature: Any, codegen: Any) -> Path:
        versions = sys.version_info[:2], numba.__version__, llvmlite.__version__
        key = repr((self._name, signature, codegen.magic_tuple(), versions))  # the processor, too
        return self._folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.bin"


@cache
def _folder() -> Path | None:
    """Where compiled kernels are kept; None where nothing can be written."""
    here = Path(__file__).parent
    sources = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        sources.update(f"{source.name} {source.stat().st_size}\n".encode() + source.read_bytes())
    name = f"kernels-{sources.hexdigest()[:16]}"
    for parent in _parents(here):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=parent).close()
        except OSError:
            continue
        return parent / name
    return None


def _parents(here: Path) -> Iterator[Path]:
    """The folders that may hold ours, the best first. Those that other installations use too have one for each."""
    installation = f"regio-{hashlib.sha256(str(here).encode()).hexdigest()[:16]}"
    users: str = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if users:
        yield Path(users) / installation
    yield here / "__pycache__"
    for variable, below in (("XDG_CACHE_HOME", "."), ("LOCALAPPDATA", "."), ("HOME", ".cache")):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / below / "regio" / installation


@cache
def _remove_older(folder: Path) -> None:
    """Remove the folders of sources as they were before; once in a process."""
    for other in folder.parent.glob("kernels-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
