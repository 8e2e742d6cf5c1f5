"""Devices by name, and that every accepted name trains."""

import pytest
import torch

from regio.devices import pick_device
from regio.processes import launch


@pytest.mark.parametrize("name", ["auto", "cpu", "cpu:0"])
def test_every_accepted_name_starts_a_training(name: str) -> None:
    device = pick_device(name)
    fabric = launch(name)
    assert fabric.device.type == device.type
    assert fabric.to_device(torch.ones(2)).sum() == 2
    assert fabric.world_size == 1


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device")
@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_a_cuda_device_by_its_number(index: int) -> None:
    assert launch(f"cuda:{index}").device == torch.device("cuda", index) == pick_device(f"cuda:{index}")


@pytest.mark.parametrize("name", ["gpu", "meta", "tpu", "cuda:x", ""])
def test_other_names(name: str) -> None:
    for function in (pick_device, launch):
        with pytest.raises(ValueError, match=f"device: expected cpu, cuda, cuda:1, mps or auto, got '{name}'"):
            function(name)


def test_devices_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="device: cuda:99 cannot be used here: "):
        launch("cuda:99")
    with pytest.raises(ValueError, match="devices: expected at least 1, got 0"):
        launch("cpu", 0)


def test_numbers_that_contradict_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="devices: expected 2, the processes that torchrun started here, got 3"):
        launch("cpu", 3)
