"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

# A process of tests for each core: threads of PyTorch besides would wait for each other. Read when PyTorch is loaded,
# here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights; tests that need it skip where it is missing."""
    folder = Path(os.environ.get("REGIO_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found: expected the folder {folder}, or another that REGIO_TEST_DATA names")
    return folder
