"""Training: exact resume, and what it says when something is wrong."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from regio.checkpoints import kept_checkpoints, read_card
from regio.config import Precision
from regio.config.extractors import RoIPool
from regio.config.systems import FasterRCNNOnFPN, System
from regio.data import DetectionDataset, HorizontalFlip, Sample, Shapes, Transform
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator
from regio.optimisation import AdamW, Step
from regio.progress import SilentProgress
from regio.train import Interrupted, NonFiniteLoss, TrainConfig, stop_requests, train
from regio.training_log import TrainingLog
from regio.types import Detections, Targets

MODEL = FasterRCNNOnFPN(channels=16, hidden=32, short_side=64, long_side=96, regions_per_image=16)
CONFIG = TrainConfig(
    steps=6, batch_size=2, evaluate_every=100, save_every=2, log_every=1, workers=0, device="cpu", seed=3
)

TRUNK = "roi_heads.0.trunk.fc7.weight"


class StopAt(SilentProgress):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.at, self.number = step, number

    def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
        """Send the signal."""
        if step == self.at:
            os.kill(os.getpid(), self.number)


def run(
    folder: Path,
    config: TrainConfig = CONFIG,
    *,
    model: System = MODEL,
    data: DetectionDataset | None = None,
    validation: DetectionDataset | None = None,
    transform: Transform | None = HorizontalFlip(),  # noqa: B008 (frozen)
    resume: bool = False,
    progress: SilentProgress | None = None,
) -> TwoStageDetector:
    """Train a small detector from the same start."""
    torch.manual_seed(0)
    detector = model.build(6)
    data, validation = data or Shapes(10), validation or Shapes(3, seed=1)
    train(
        detector, data, BoxEvaluator(validation), config, folder, transform=transform, resume=resume, progress=progress
    )
    return detector


def assert_same_weights(a: Path, b: Path) -> None:
    """The two runs ended with the same tensors, bit for bit."""
    for name in ("last", "resume"):
        first, second = (load_file(folder / "weights" / f"{name}.safetensors") for folder in (a, b))
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    return folder


@pytest.mark.slow
def test_what_a_run_leaves(straight: Path) -> None:
    files = [path.relative_to(straight) for path in straight.rglob("*") if path.is_file()]
    names = {str(file) for file in files if not file.name.startswith("events.")}  # those of TensorBoard, if installed
    weights = {f"weights/{name}.safetensors" for name in ("best", "last", "resume")}
    assert names == {"metrics.csv", "predictions.json"} | weights
    card = read_card(straight / "weights" / "best.safetensors")
    assert card.class_names == Shapes(1).class_names
    assert card.step == 6
    assert card.normalisation["mean"] == [127 / 255] * 3
    rows = TrainingLog(straight / "metrics.csv", []).rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert all(row["loss"] > 0 for row in rows[:6])
    assert "val_ap" in rows[6]
    seconds = [row["seconds"] for row in rows[:6]]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert "seconds" not in rows[6]


@pytest.mark.slow
def test_checkpoints_are_kept_at_intervals(straight: Path, tmp_path: Path) -> None:
    """The initial weights and those of each fourth step, also over an interruption; a run that keeps none ends with
    the same weights."""
    with pytest.raises(ValueError, match=r"weights: no checkpoint of a step; train with keep_every=N"):
        kept_checkpoints(straight)
    (tmp_path / "of stages" / "stages").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a training in stages has them in .*of stages/stages/\*/weights$"):
        kept_checkpoints(tmp_path / "of stages")
    torch.manual_seed(0)
    initial = MODEL.build(6).state_dict()
    config = replace(CONFIG, keep_every=4)
    with pytest.raises(Interrupted):
        run(tmp_path, config, progress=StopAt(3, signal.SIGINT))
    run(tmp_path, config, resume=True)
    kept = kept_checkpoints(tmp_path)
    names = [(step, path.name) for step, path in kept.items()]
    assert names == [(0, "step-00000.safetensors"), (4, "step-00004.safetensors"), (6, "last.safetensors")]
    assert [read_card(path).step for path in kept.values()] == [0, 4, 6]
    first = load_file(kept[0])
    assert first.keys() == initial.keys() and all(torch.equal(first[name], initial[name]) for name in first)
    assert not torch.equal(first[TRUNK], load_file(kept[4])[TRUNK])
    assert_same_weights(straight, tmp_path)


@pytest.mark.slow
def test_a_run_that_keeps_its_initial_weights_can_go_on_from_there(tmp_path: Path) -> None:
    """Killed before its first step: what is in the folder is a run, that of step 0."""
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, replace(CONFIG, keep_every=2), progress=Failing())
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {
        "step-00000.safetensors", "resume.safetensors"
    }  # fmt: skip
    run(tmp_path, replace(CONFIG, keep_every=2), resume=True)
    kept = kept_checkpoints(tmp_path)
    assert list(kept) == [0, 2, 4, 6] and kept[6].name == "step-00006.safetensors"


@pytest.mark.slow
def test_kept_checkpoints_are_of_the_moving_average(tmp_path: Path) -> None:
    run(tmp_path, replace(CONFIG, ema=0.9, keep_every=6))
    kept, last, state = (
        load_file(tmp_path / "weights" / f"{name}.safetensors") for name in ("step-00006", "last", "resume")
    )
    assert torch.equal(kept[TRUNK], last[TRUNK]) and not torch.equal(kept[TRUNK], state[f"model.{TRUNK}"])


@pytest.mark.slow
def test_the_time_of_a_resumed_run_goes_on(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, progress=StopAt(3, signal.SIGINT))
    with safe_open(tmp_path / "weights" / "resume.safetensors", "pt") as file:
        before = json.loads(file.metadata()["regio"])["resume"]["seconds"]
    run(tmp_path, resume=True)
    rows = TrainingLog(tmp_path / "metrics.csv", []).rows()
    assert rows[2]["seconds"] == pytest.approx(before)
    assert rows[3]["seconds"] > before


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_whatever_the_workers(straight: Path, tmp_path: Path) -> None:
    run(tmp_path, replace(CONFIG, workers=2))
    assert_same_weights(straight, tmp_path)


@pytest.mark.slow
def test_batches_hold_images_of_one_orientation(tmp_path: Path) -> None:
    """Less is lost to padding."""
    portrait: list[bool] = []

    def note(sample: Sample, generator: torch.Generator) -> Sample:
        portrait.append(sample.image.shape[1] > sample.image.shape[2])
        return sample

    torch.manual_seed(0)
    train(MODEL.build(6), Shapes(20), BoxEvaluator(Shapes(2, seed=1)), CONFIG, tmp_path, transform=note)
    batches = [set(portrait[i : i + 2]) for i in range(0, 12, 2)]
    assert sum(len(kinds) == 2 for kinds in batches) <= 1  # the step of what is left over
    assert set.union(*batches) == {False, True}


@pytest.mark.slow
def test_another_seed_is_another_run(straight: Path, tmp_path: Path) -> None:
    run(tmp_path, replace(CONFIG, seed=4))
    first, second = (
        load_file(f / "weights" / "last.safetensors")["roi_heads.0.trunk.fc7.weight"] for f in (straight, tmp_path)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupted_run_goes_on_exactly(straight: Path, tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=r"stopped at step 3 of 6; the state is in .*resume\.safetensors"):
        run(tmp_path, progress=StopAt(3, number))
    run(tmp_path, resume=True)
    assert_same_weights(straight, tmp_path)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_the_workers_too(straight: Path, tmp_path: Path) -> None:
    """As of `timeout`, or a scheduler."""

    class StopAll(StopAt):
        def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
            if step == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    with pytest.raises(Interrupted, match=r"stopped at step 3 of 6; the state is in .*resume\.safetensors"):
        run(tmp_path, progress=StopAll(3, signal.SIGTERM))
    run(tmp_path, resume=True)
    assert_same_weights(straight, tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path / "other", progress=Failing())


def test_a_request_within_another_is_one_of_both() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with stop_requests() as outer:
        with stop_requests() as inner:
            assert not outer() and not inner()
            os.kill(os.getpid(), signal.SIGTERM)
            assert outer() and inner()
        with stop_requests() as later:
            assert outer() and not later()
    with stop_requests() as alone:
        assert not alone()
    assert signal.getsignal(signal.SIGTERM) == handler


class Failing(SilentProgress):
    """Fails at the first step, and nobody has asked to stop."""

    def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
        raise RuntimeError("out of memory")


@pytest.mark.slow
def test_a_run_that_meets_a_damaged_photo_goes_on_exactly(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the photo is repaired: the state before it is in the resume file."""
    read, reads = Shapes.__getitem__, []

    def damaged(shapes: Shapes, index: int) -> object:
        reads.append(index)
        if len(reads) > 3 * CONFIG.batch_size + 1:  # in the fourth step
            raise ValueError("photo.jpg: image file is truncated")
        return read(shapes, index)

    with monkeypatch.context() as patch:
        patch.setattr(Shapes, "__getitem__", damaged)
        with pytest.raises(ValueError, match=r"photo\.jpg: image file is truncated"):
            run(tmp_path)
    with safe_open(tmp_path / "weights" / "resume.safetensors", "pt") as file:
        assert '"step": 3' in str(file.metadata())  # the last regular save was at step 2
    run(tmp_path, resume=True)
    assert_same_weights(straight, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["an image", "the disk"])
def test_what_ends_an_evaluation_does_not_end_the_run(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo that cannot be read, a disk that is full: the run goes on with the evaluation that is due."""
    config = replace(CONFIG, evaluate_every=0.6, save_every=100)  # after steps 3 and 6
    run(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        if where == "an image":
            patch.setattr(BoxEvaluator, "record", Broken(ValueError("val.jpg: image file is truncated")))
        else:
            patch.setattr("regio.train.save", Broken(OSError("No space left on device")))
        with pytest.raises((ValueError, OSError), match="truncated|No space"):
            run(tmp_path / "broken", config)
    assert {path.name for path in (tmp_path / "broken" / "weights").iterdir()} == {"resume.safetensors"}
    run(tmp_path / "broken", config, resume=True)
    best = [read_card(tmp_path / name / "weights" / "best.safetensors") for name in ("whole", "broken")]
    assert best[0].step == best[1].step and best[0].metrics == pytest.approx(best[1].metrics, nan_ok=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    rows, expected = (
        [
            (row["step"], row.get("val_ap"), row.get("loss"))
            for row in TrainingLog(tmp_path / name / "metrics.csv", []).rows()
        ]
        for name in ("broken", "whole")
    )
    assert rows == expected and [row[0] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]


class Broken:
    """A function that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *arguments: Any) -> Any:
        raise self.error


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(straight: Path, tmp_path: Path) -> None:
    script = (
        "import signal; from pathlib import Path; from tests.test_train import StopAt, run; "
        f"run(Path({str(tmp_path)!r}), progress=StopAt(5, signal.SIGKILL))"
    )
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "weights" / "last.safetensors").exists()
    run(tmp_path, resume=True)  # from the save at step 4
    assert_same_weights(straight, tmp_path)
    steps = [row["step"] for row in TrainingLog(tmp_path / "metrics.csv", []).rows()]
    assert steps == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.slow
def test_resuming_with_a_moving_average_and_accumulation(tmp_path: Path) -> None:
    config = replace(CONFIG, ema=0.9, accumulate=2)
    run(tmp_path / "a", config)
    with pytest.raises(Interrupted):
        run(tmp_path / "b", config, progress=StopAt(3, signal.SIGINT))
    run(tmp_path / "b", config, resume=True)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    last, state = (load_file(tmp_path / "a" / "weights" / f"{n}.safetensors") for n in ("last", "resume"))
    key = "roi_heads.0.trunk.fc7.weight"
    assert torch.equal(last[key], state[f"average.module.{key}"])
    assert not torch.equal(last[key], state[f"model.{key}"])


def test_a_run_is_resumed_as_it_was(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="resume.safetensors: no such checkpoint"):
        run(tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"a run can only be resumed as it was: steps 6, got 7$"):
        run(straight, replace(CONFIG, steps=7), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(CONFIG, batch_size=1)}, "batch 2 x 1, got 1 x 1"),
        ({"config": replace(CONFIG, evaluate_every=1)}, "evaluate_every 100, got 1"),
        ({"config": replace(CONFIG, optimizer=AdamW(1e-3))}, r"optimizer\.lr 0\.0004, got 0\.001"),
        ({"config": replace(CONFIG, schedule=Step())}, "schedule Cosine, got Step"),
        ({"transform": HorizontalFlip(0.25)}, r"transform\.p 0\.5, got 0\.25"),
        ({"transform": None}, "transform HorizontalFlip, got None"),
        ({"model": replace(MODEL, extractor=RoIPool())}, r"roi_heads\.0\.extractor.* RoIAlign, got RoIPool"),
        ({"model": replace(MODEL, short_side=80)}, r"model\.preprocess\.short_side 64, got 80"),
        ({"model": replace(MODEL, anchor_sizes=(16.0, 32.0, 64.0, 128.0))}, r"sizes\.0 \[32\.0\], got \[16\.0\]"),
        ({"model": replace(MODEL, score_threshold=0.1)}, r"roi_heads\.0\.postprocess\.score_threshold 0\.05, got 0\.1"),
        ({"model": replace(MODEL, frozen=3)}, r"optimizer: model\.backbone\..* is trained no more"),
        ({"data": Shapes(10, seed=5)}, "data.annotations .*, got .*; data.files"),
        ({"data": Shapes(11)}, "data.images 10, got 11"),
        ({"validation": Shapes(3, seed=2)}, "validation.annotations"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_another_run_is_not_resumed(straight: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(straight, resume=True, **change)


@pytest.mark.slow
def test_what_a_resumed_run_may_change(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, progress=StopAt(3, signal.SIGINT))
    run(tmp_path, replace(CONFIG, workers=1, save_every=1, keep_every=3, log_every=3, device="auto"), resume=True)
    assert_same_weights(straight, tmp_path)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_precision_of_a_training(tmp_path: Path, precision: Precision, dtype: torch.dtype) -> None:
    """Of what layers give, of one with many outputs and one with few; losses and weights are float32."""
    seen: list[tuple[torch.dtype, torch.dtype, set[torch.dtype]]] = []

    class Noting(TwoStageDetector):
        def losses(self, *given: Any) -> dict[str, Tensor]:
            losses = super().losses(*given)
            seen.append((made["fc6"], made["rpn"], {each.dtype for each in losses.values()}))
            return losses

    torch.manual_seed(0)
    detector, made = MODEL.build(6), dict[str, torch.dtype]()
    detector.__class__ = Noting
    for name, layer in (("fc6", detector.roi_heads[0].trunk.fc6), ("rpn", detector.proposals.conv)):
        layer.register_forward_hook(lambda _, __, out, name=name: made.update({name: out.dtype}))
    config = replace(CONFIG, steps=2, precision=precision)
    train(detector, Shapes(10), BoxEvaluator(Shapes(3, seed=1)), config, tmp_path)
    assert seen == [(dtype, dtype, {torch.float32})] * 2
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}


class Steep(nn.Module):
    """Has gradients that float16 cannot hold with the first scales of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 64)

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """None."""
        return [Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)) for _ in images]

    def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
        """From the mean colours."""
        colours = torch.stack([image.float().mean((1, 2)) / 255 for image in images])
        return {"loss": 30 * self.layer(colours).float().square().sum()}


def test_steps_whose_gradients_overflow_are_left_out_and_resumed_as_they_were(tmp_path: Path) -> None:
    """With float16 losses are scaled until gradients overflow; the scale is part of the state."""
    weights: list[Tensor] = []

    class Note(StopAt):
        def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
            weights.append(model.layer.weight.detach().clone())
            super().step(step, losses, images_per_second)

    config = replace(CONFIG, steps=12, precision="16-mixed", optimizer=AdamW(1e-3))
    for name, stop in (("straight", 99), ("stopped", 7)):
        torch.manual_seed(0)
        model = Steep()
        given = Shapes(10), BoxEvaluator(Shapes(3, seed=1)), config, tmp_path / name
        try:
            train(model, *given, progress=Note(stop, signal.SIGINT))
        except Interrupted:
            train(model, *given, resume=True)
    same = [torch.equal(a, b) for a, b in pairwise(weights[:12])]
    assert same[0]
    assert not same[-1]
    assert_same_weights(tmp_path / "straight", tmp_path / "stopped")


def test_a_loss_that_is_not_finite_names_the_images(tmp_path: Path) -> None:
    class Broken(TwoStageDetector):
        """Its second batch has a NaN loss."""

        calls = 0

        def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
            """As the parent's."""
            Broken.calls += 1
            found = super().losses(images, targets)
            return found | ({"box": found["box"] * torch.nan} if Broken.calls == 2 else {})

    detector = MODEL.build(6)
    detector.__class__ = Broken
    data = Shapes(10)
    with pytest.raises(NonFiniteLoss, match=r"loss 'box' is nan at step 1, on the images \S+, \S+") as error:
        train(detector, data, BoxEvaluator(data), CONFIG, tmp_path)
    named = str(error.value).split("images ")[1].split(", ")
    assert set(named) <= {record.name for record in data.records}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_gradient_that_is_not_finite_names_the_images(tmp_path: Path, precision: Precision) -> None:
    """Of a loss that is: the gradient of a square root at 0. The state before that step stays as it was saved."""

    class Broken(TwoStageDetector):
        """Its second batch has such a loss."""

        calls = 0

        def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
            """As the parent's."""
            Broken.calls += 1
            found = super().losses(images, targets)
            weight = next(parameter for parameter in self.parameters() if parameter.requires_grad)
            bad = (weight - weight.detach()).abs().sqrt().sum()
            return found | ({"box": found["box"] + bad} if Broken.calls == 2 else {})

    detector = MODEL.build(6)
    detector.__class__ = Broken
    data, config = Shapes(10), replace(CONFIG, precision=precision, save_every=1)
    with pytest.raises(NonFiniteLoss, match=r"^the gradient is nan at step 1, on the images \S+, \S+$"):
        train(detector, data, BoxEvaluator(data), config, tmp_path)
    with safe_open(tmp_path / "weights" / "resume.safetensors", "pt") as file:
        assert '"step": 1' in str(file.metadata())


def test_an_error_within_a_step_leaves_the_state_before_it(tmp_path: Path) -> None:
    """Once the forward pass has begun, running statistics have changed: nothing is saved in the middle of a step."""

    class Broken(TwoStageDetector):
        """Its fourth batch raises."""

        calls = 0

        def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
            """As the parent's."""
            Broken.calls += 1
            if Broken.calls == 4:
                raise ValueError("a class map of another size")
            return super().losses(images, targets)

    detector = MODEL.build(6)
    detector.__class__ = Broken
    with pytest.raises(ValueError, match="a class map of another size"):
        train(detector, Shapes(10), BoxEvaluator(Shapes(2)), CONFIG, tmp_path)
    with safe_open(tmp_path / "weights" / "resume.safetensors", "pt") as file:
        assert '"step": 2' in str(file.metadata())  # that of the regular save


def test_a_signal_within_a_step_leaves_the_state_before_it(tmp_path: Path) -> None:
    """A process that reads images ends in the middle of a step, whose state is that of no step."""

    class Broken(TwoStageDetector):
        """Its fourth batch is the last one of that process."""

        calls = 0

        def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
            """As the parent's."""
            Broken.calls += 1
            if Broken.calls == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
            return super().losses(images, targets)

    detector, data = MODEL.build(6), Shapes(10)
    detector.__class__ = Broken
    with pytest.raises(Interrupted, match=r"stopped after step 3 of 6; the state that was last saved is in .*resume"):
        train(detector, data, BoxEvaluator(Shapes(2)), CONFIG, tmp_path)
    with safe_open(tmp_path / "weights" / "resume.safetensors", "pt") as file:
        assert '"step": 2' in str(file.metadata())


def test_epochs_come_to_whole_steps() -> None:
    """Rounded up, but not because of the rounding of a quotient."""
    assert TrainConfig(epochs=27).steps_over(7, 3) == 63
    assert TrainConfig(epochs=1).steps_over(7, 3) == 3
    assert TrainConfig(epochs=0.5, steps=5).steps_over(7, 3) == 5


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    detector = MODEL.build(6)
    few = Shapes(10).keep_classes(["circle", "star"])
    with pytest.raises(ValueError, match=r"evaluator: expected images with the classes \('circle', 'star'\), got"):
        train(detector, few, BoxEvaluator(Shapes(3)), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="batch_size: expected at most the 1 images of the data, got 2"):
        train(detector, Shapes(1), BoxEvaluator(Shapes(1)), CONFIG, tmp_path)
