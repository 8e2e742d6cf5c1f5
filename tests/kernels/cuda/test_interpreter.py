"""Without a GPU the tests of this folder run in Triton's interpreter, and the kernels are compiled all the same."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on the GPU")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter")
def test_kernels_in_the_interpreter() -> None:
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", f"--ignore={__file__}", str(folder)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(80, "float32"), (90, "bfloat16"), (90, "float64")])
def test_kernels_compile(capability: int, dtype: str) -> None:
    """For GPUs that need not be here, and within the shared memory that a program has on all of them since 2020."""
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("compile_all.py")), str(capability), dtype]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    names, shared = zip(*map(str.split, run.stdout.splitlines()), strict=True)
    assert len(set(names)) == 17
    assert max(map(int, shared)) <= 99 * 1024, run.stdout
