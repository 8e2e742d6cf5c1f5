"""Pickles are read, and nothing that they ask for is called."""

import builtins
import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regio.weights.pickles import read_pickle

ARRAYS: dict[str, Any] = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big-endian": np.arange(4, dtype=">i4"),
    "none": np.zeros((0, 3), dtype=np.float16),
    "number": np.array(3.5),
    "truth": np.array([True, False]),
}


def written(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "a.pkl"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_arrays_come_back(protocol: int, module: str, tmp_path: Path) -> None:
    value = {"model": OrderedDict(ARRAYS), "author": "a person", "scalar": np.float32(0.25), "more": [(1, None), 2.5]}
    content = pickle.dumps(value, protocol)
    if protocol < 4:  # names are followed by a line's end, before which there may be anything
        content = content.replace(b"numpy._core.", f"{module}.".encode())
    found = read_pickle(written(tmp_path, content))
    assert found["author"] == "a person" and found["scalar"] == 0.25 and found["more"] == [(1, None), 2.5]
    for name, array in ARRAYS.items():
        assert isinstance(found["model"][name], torch.Tensor)
        assert found["model"][name].shape == array.shape
        assert np.array_equal(found["model"][name].numpy(), array)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch executed",), "system"),
        (builtins.eval, ("open('executed', 'w')",), "eval"),
        (builtins.getattr, ({}, "keys"), "getattr"),
        (np.load, ("a.npy",), "load"),
        (np.memmap, ("executed", "uint8", "w+", 0, (1,)), "memmap"),
        (np.ndarray.tofile, (np.zeros(1), "executed"), "(getattr|tofile)"),
        (np.fromfile, ("a",), "fromfile"),
        (Path.touch, (Path("executed"),), "(getattr|touch)"),
        (pickle.loads, (b"",), "loads"),
        (torch.load, ("a.pth",), "load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_any_other_global_is_named_and_not_called(
    function: Any, arguments: Any, name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        content = pickle.dumps({"model": {"a": Calls(function, *arguments)}}, protocol)
    except (pickle.PicklingError, AttributeError):
        pytest.skip("this protocol cannot name it")
    file = written(tmp_path, content)
    with pytest.raises(ValueError, match=rf"a\.pkl: expected a pickle of arrays alone, .* calls \S+{name}; nothing"):
        read_pickle(file)
    assert not (tmp_path / "executed").exists()


def test_arrays_of_objects_and_other_kinds_are_refused(tmp_path: Path) -> None:
    for array, code in ((np.array([{}], dtype=object), "O8"), (np.array(["a"]), "U1"), (np.zeros(1, "i4,f4"), "V8")):
        with pytest.raises(ValueError, match=rf"a\.pkl: expected arrays of numbers, got one of dtype '{code}'"):
            read_pickle(written(tmp_path, pickle.dumps(array)))


def test_a_known_name_does_not_lead_to_its_attributes(tmp_path: Path) -> None:
    """A pickle may set attributes of what it finds, and from the fourth protocol on name an attribute of a global."""
    changes = pickletools.optimize(b"\x80\x02cnumpy\ndtype\n}(X\x0a\x00\x00\x00__module__X\x01\x00\x00\x00ausb.")
    with pytest.raises(ValueError, match=r"a\.pkl: (not a pickle, or damaged|expected plain values)"):
        read_pickle(written(tmp_path, changes))
    nested = b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93."
    with pytest.raises(ValueError, match=r"calls numpy\.ndarray\.dump"):
        read_pickle(written(tmp_path, nested))
    assert read_pickle(written(tmp_path, pickle.dumps(ARRAYS["number"]))) == 3.5  # nothing has stayed behind


def test_damaged_files(tmp_path: Path) -> None:
    whole = pickle.dumps({"model": ARRAYS})
    for content in (whole[:-20], whole[: len(whole) // 2], b"", b"no pickle", b"\x80\x04", bytes(range(256))):
        with pytest.raises(ValueError, match=r"a\.pkl: (not a pickle, or damaged|expected )"):
            read_pickle(written(tmp_path, content))
    for i in range(0, len(whole), 7):  # whatever a changed byte makes of it, it is a value or this error
        changed = whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :]
        try:
            read_pickle(written(tmp_path, changed))
        except ValueError as error:
            assert str(error).startswith(str(tmp_path / "a.pkl")) and len(str(error).splitlines()) == 1
