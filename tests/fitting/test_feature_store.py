"""Features on disk: size, kills, full disks, identity."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from regio.fitting import FeatureStore, feature_store

COUNTS, WIDTHS = [3, 0, 2], {"pool5": 4, "fc7": 2}


def features(image: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(image)
    return {name: torch.randn(COUNTS[image], width, generator=generator) for name, width in WIDTHS.items()}


def store(folder: Path, **changes: Any) -> FeatureStore:
    return FeatureStore(folder, {"weights": "a"}, COUNTS, WIDTHS, **changes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read(tmp_path: Path, dtype: type) -> None:
    made = store(tmp_path, dtype=dtype)
    for image in (2, 0, 1):
        made.write(image, features(image))
    assert made.missing == []
    for name, width in WIDTHS.items():
        layer = made.layer(name)
        assert layer.width == width
        for image in range(3):
            expected = features(image)[name].numpy().astype(dtype)
            np.testing.assert_array_equal(layer.of_image(image), expected.astype(np.float32))
            assert layer.of_image(image).dtype == np.float32
        every = np.concatenate([features(image)[name].numpy().astype(dtype) for image in range(3)])
        assert layer.mean_norm() == pytest.approx(np.linalg.norm(every.astype(np.float64), axis=1).mean(), rel=1e-5)


def test_its_size_is_known_beforehand(tmp_path: Path) -> None:
    made = store(tmp_path)
    assert (made.rows, made.nbytes, made.missing_bytes) == (5, 5 * 6 * 2, 60)
    assert str(made) == "0.0 MB of features on disk (3 images, 5 regions, pool5 4, fc7 2, float16)"
    for image in range(3):
        made.write(image, features(image))
    assert made.missing_bytes == 0
    assert sum(path.stat().st_size for path in made.folder.glob("*.bin")) == made.nbytes + len(COUNTS)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """An image that was written by half is missing."""
    store(tmp_path).write(1, features(1))
    half = store(tmp_path)
    with (half.folder / "pool5.bin").open("wb") as file:
        file.write(b"1234567")
    again = store(tmp_path)
    assert again.missing == [0, 2]
    with pytest.raises(ValueError, match="the features of 2 images are missing"):
        again.layer("fc7")
    again.write(0, features(0))
    again.write(2, features(2))
    np.testing.assert_array_equal(again.layer("pool5").of_image(0), features(0)["pool5"].numpy().astype(np.float16))


def test_another_identity_is_another_store(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.write(0, features(0))
    assert FeatureStore(tmp_path, {"weights": "b"}, COUNTS, WIDTHS).missing == [0, 1, 2]
    assert store(tmp_path, dtype=np.float32).missing == [0, 1, 2]
    assert store(tmp_path).missing == [1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    made.free()
    assert len(list(tmp_path.iterdir())) == 2
    assert store(tmp_path).missing == [0, 1, 2]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_without_room_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 941, 59))
    with pytest.raises(OSError, match=r"features need 0.0 MB more, and the disk has 0.0 MB free; make room") as error:
        store(tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert "\n" not in str(error.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 940, 60))
    store(tmp_path).write(0, features(0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000, 976, 24))
    assert store(tmp_path).missing_bytes == 24  # what is there needs no more room


def test_a_disk_that_becomes_full_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path)
    made.write(0, features(0))

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(feature_store.os, "fsync", full)
        with pytest.raises(
            OSError, match=r"pool5.bin: could not be written \(No space left on device\); the features of 1 of 3 images"
        ) as error:
            made.write(2, features(2))
    assert "\n" not in str(error.value)
    again = store(tmp_path)
    assert again.missing == [1, 2]
    for image in again.missing:
        again.write(image, features(image))
    for image in range(3):
        expected = features(image)["fc7"].numpy().astype(np.float16)
        np.testing.assert_array_equal(again.layer("fc7").of_image(image), expected)


def test_a_limit_on_files_loses_nothing(tmp_path: Path) -> None:
    """The system refuses to write: no process ends by it."""
    resource = pytest.importorskip("resource")
    made = store(tmp_path)
    made.write(0, features(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
    try:
        with pytest.raises(OSError, match=r"pool5.bin: could not be written \(File too large\)"):
            made.write(2, features(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store(tmp_path).missing == [1, 2]


@pytest.mark.parametrize("value", [1e5, float("nan"), float("inf")])
def test_values_that_do_not_fit_raise(tmp_path: Path, value: float) -> None:
    made = store(tmp_path)
    wrong = features(0)
    wrong["fc7"][1, 0] = value
    with pytest.raises(ValueError, match="features: fc7 of image 0 has values beyond 65504 or NaN: not for float16"):
        made.write(0, wrong)
    assert 0 in made.missing


def test_bad_arguments_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype: expected float16 or float32, got float64"):
        store(tmp_path, dtype=np.float64)
    with pytest.raises(ValueError, match=r"features: expected pool5 of shape \[2, 4\], got \[3, 4\]"):
        store(tmp_path).write(2, features(0))
    with pytest.raises(ValueError, match="layer: expected one of pool5, fc7, got fc6"):
        store(tmp_path).layer("fc6")


def test_a_data_set_without_regions(tmp_path: Path) -> None:
    made = FeatureStore(tmp_path, {}, [0, 0], {"fc7": 3})
    for image in (0, 1):
        made.write(image, {"fc7": torch.zeros(0, 3)})
    assert made.layer("fc7").of_image(1).shape == (0, 3)
    assert made.layer("fc7").mean_norm() == 0
