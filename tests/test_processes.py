"""Several processes that train one model, under torchrun on a CPU."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from regio.data import DetectionDataset, HorizontalFlip, Shapes
from regio.evaluate import BoxEvaluator
from regio.optimisation import SGD
from regio.processes import launch
from regio.progress import SilentProgress
from regio.train import Interrupted, TrainConfig, train
from regio.types import Detections, Targets

ROOT = Path(__file__).parents[1]
CONFIG = TrainConfig(
    steps=4, batch_size=1, accumulate=2, optimizer=SGD(0.1), clip_norm=None, seed=3, workers=0, device="cpu",
    log_every=1, evaluate_every=100, ema=0.9,
)  # fmt: skip


class Tiny(nn.Module):
    """Predicts one box from the mean colour; its loss draws random numbers. `spare` has a gradient in some batches."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.spare = nn.Linear(3, 4), nn.Linear(3, 1)

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """One detection an image, around the middle."""
        found = []
        for image in images:
            box = torch.tensor([20.0, 20.0, 120.0, 120.0]) + self.box(image.float().mean((1, 2)) / 255)
            found.append(Detections(box[None], torch.ones(1, dtype=torch.int64), torch.sigmoid(box[:1] / 100)))
        return found

    def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
        """Mean over the images."""
        colours = torch.stack([image.float().mean((1, 2)) / 255 for image in images])
        noisy = colours + 0.1 * torch.rand_like(colours)
        loss = (self.box(noisy) - torch.tensor([float(len(t)) for t in targets])[:, None]).square().mean()
        spare = self.spare(colours).square().mean() if len(targets[0]) % 2 else colours.sum() * 0
        return {"box": loss, "spare": spare}


class Stop(SilentProgress):
    """Sends this process a signal after step 2."""

    def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
        """Send it."""
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


class Damaged(Shapes):
    """Image 0 cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 0:
            raise ValueError("photo.jpg: image file is truncated")
        return super().__getitem__(index)


def run(
    folder: str,
    *,
    stop_in: int | None = None,
    data: DetectionDataset | None = None,
    resume: bool = False,
    **change: Any,
) -> None:
    """Train in all processes; the one of rank `stop_in` gets a signal."""
    config = replace(CONFIG, **change)
    fabric = launch(config.device, precision=config.precision)
    torch.manual_seed(0)
    progress = Stop() if fabric.global_rank == stop_in else None
    boxes = BoxEvaluator(Shapes(5, seed=1))
    train(
        Tiny(), data or Shapes(7), boxes, config, Path(folder),
        transform=HorizontalFlip(), resume=resume, progress=progress, fabric=fabric,
    )  # fmt: skip


def in_two(call: str) -> subprocess.CompletedProcess[str]:
    """`call` in two processes under torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = f"from tests.test_processes import *\n{call}"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "--no-python", sys.executable, "-c", script]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=900)


def difference(a: Path, b: Path, name: str = "resume") -> float:
    """The largest difference between the tensors of two runs."""
    first, second = (load_file(folder / "weights" / f"{name}.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


@pytest.mark.slow
def test_two_processes_train_in_bfloat16_as_one(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    ended = in_two(f"run({str(two)!r}, precision='bf16-mixed')")
    assert ended.returncode == 0, ended.stderr
    run(str(one), precision="bf16-mixed", accumulate=4)
    run(str(tmp_path / "full"), accumulate=4)
    assert difference(two, one) < 1e-6
    assert difference(one, tmp_path / "full") > 1e-6


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates_twice_as_much(tmp_path: Path) -> None:
    """Weights, optimizer, moving average, and what is measured; also a run that goes on in another number of them."""
    torch.manual_seed(0)
    initial = Tiny().box.weight.detach()
    for accumulate in (1, 2):
        two, one = tmp_path / f"two-{accumulate}", tmp_path / f"one-{accumulate}"
        ended = in_two(f"run({str(two)!r}, accumulate={accumulate})")
        assert ended.returncode == 0, ended.stderr
        run(str(one), accumulate=2 * accumulate)
        assert difference(two, one) < 1e-6
        assert float((load_file(one / "weights" / "last.safetensors")["box.weight"] - initial).abs().max()) > 0.01
        assert (two / "predictions.json").read_text().count("image_id") == 5
        rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (two, one)]
        assert len(rows[0]) == len(rows[1]) == 1 + 4 + 1
    other = tmp_path / "other"  # begun by one process, ended by two
    with pytest.raises(Interrupted):
        run(str(other), accumulate=4, stop_in=0)
    ended = in_two(f"run({str(other)!r}, accumulate=2, resume=True)")
    assert ended.returncode == 0, ended.stderr
    assert difference(other, tmp_path / "two-2") < 1e-6


@pytest.mark.slow
def test_a_request_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    call = f"""
try:
    run({str(tmp_path / "a")!r}, stop_in=1)
except Interrupted as stop:
    print(stop)
"""
    ended = in_two(call)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("stopped at step 2 of 4") == 2
    ended = in_two(f"run({str(tmp_path / 'a')!r}, resume=True); run({str(tmp_path / 'b')!r})")
    assert ended.returncode == 0, ended.stderr
    assert difference(tmp_path / "a", tmp_path / "b") == 0
    ended = in_two(f"run({str(tmp_path / 'a')!r}, resume=True, accumulate=1)")
    assert ended.returncode != 0 and "batch 1 x 4, got 1 x 2" in ended.stderr


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other_and_the_state_is_saved(tmp_path: Path) -> None:
    call = f"""
try:
    run({str(tmp_path)!r}, data=Damaged(7), accumulate=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    ended = in_two(call)
    assert ended.returncode == 0, ended.stderr
    lines = sorted(ended.stdout.strip().splitlines())
    assert [line.split()[0] for line in lines] == ["ProcessFailed", "ValueError"]
    assert "photo.jpg: image file is truncated" in lines[1]
    assert (tmp_path / "weights" / "resume.safetensors").exists()


@pytest.mark.slow
def test_processes_wait_for_what_the_first_does_alone() -> None:
    """Longer than the half hour after which PyTorch gives up."""
    call = """
launch("cpu")
group = torch.distributed.distributed_c10d._get_default_group()
print(group._get_backend(torch.device("cpu")).options._timeout.days)
"""
    ended = in_two(call)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["30", "30"]


SMALL = ["channels=16", "hidden=32", "short_side=64", "long_side=96", "regions_per_image=16", "workers=0", "device=cpu"]
COMMAND = ["train", "shapes", "--steps", "1", "--batch-size", "2", *SMALL, "images=8", "validation_images=4"]


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [True, False])
def test_the_command_trains_one_model_in_one_folder(tmp_path: Path, torchrun: bool) -> None:
    script = tmp_path / "regio"
    script.write_text("from regio.cli import main\nmain()\n")
    prefix = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    words = [sys.executable, *prefix, str(script), *COMMAND, *([] if torchrun else ["--devices", "2"])]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ended = subprocess.run(
        words, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    assert "1 steps of 4 images; into runs/train" in ended.stdout
    assert ended.stdout.count("Results are in") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]
    words += ["--name", "train"]
    again = subprocess.run(
        words, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=900
    )
    assert again.returncode != 0
    assert again.stderr.count("there is a run of this name") == 1
