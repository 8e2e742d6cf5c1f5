"""A comparison as a whole, on a few generated scenes."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from regio.compare import Plan, compare, make_arm
from regio.compare.comparison import run as original
from regio.config import RunConfig
from regio.errors import Interrupted
from regio.train import _Run
from tests.data.small_datasets import coco_source, write_coco
from tests.test_cli import regio
from tests.test_report_browser import CHROMIUM, opened

SHARED = RunConfig("shapes", images=12, validation_images=6)
WORDS = [
    *("channels=16", "hidden=32", "short_side=64", "long_side=96", "regions_per_image=16", "workers=0", "device=cpu"),
    *("steps=3", "batch_size=2", "evaluate_every=1e9", "score_threshold=0"),
]
ARMS = ["faster-rcnn", "pooled=faster-rcnn-fpn:extractor=roi-pool"]
QUIET = Console(quiet=True)


def plan(arms: list[str] = ARMS, seeds: int = 2) -> Plan:
    return Plan(tuple(make_arm(each, SHARED, (), WORDS) for each in arms), seeds, 60.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two systems with two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "c"
    assert compare(plan(), folder, QUIET, "regio compare") == {}
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "c"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(run / "weights" / "last.safetensors")
    return tensors


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are made or gone on with from now on, by their folders."""
    made: list[str] = []

    def counting(config: Any, folder: Any, *given: Any, resume: bool = False, **named: Any) -> Any:
        with folder as place:
            made.append(f"{place.parent.name}/{place.name}{' resumed' if resume else ''}")
        from regio.run_folders import emptied, locked

        return original(config, (locked if resume else emptied)(place), *given, resume=resume, **named)

    monkeypatch.setattr("regio.compare.comparison.run", counting)
    return made


@pytest.mark.slow
def test_each_run_is_one_of_regio_train(finished: Path) -> None:
    found = rows(finished)
    assert [(row["label"], row["seed"], row["steps"]) for row in found] == [
        (label, seed, "3") for label in ("faster-rcnn", "pooled") for seed in "01"
    ]
    for row in found:
        folder = finished / row["label"] / f"seed-{row['seed']}"
        own = json.loads((folder / "results.json").read_text())
        assert float(row["ap"]) == own["ap"] and float(row["voc_map"]) == own["voc"]["map_area"]
        assert (folder / "report.html").is_file()
        assert float(row["training_seconds"]) > 0 and float(row["seconds_an_image"]) > 0
        parameters = sum(t.numel() for name, t in weights(folder).items() if "running" not in name)
        assert 0.9 * parameters < int(row["parameters"]) <= parameters  # but for buffers
    assert not same(finished / "pooled" / "seed-0", finished / "pooled" / "seed-1")


@pytest.mark.slow
def test_what_the_report_says(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for text in (
        "Comparison: faster-rcnn, pooled",
        "trained on 12 images, measured on 6 others",
        "the same backbone, efficientnet_lite0",
        "as asked for",
        "Beside the papers",
        "Faster R-CNN (Ren et al. 2015)",
        "69.9 %",
        "model.extractor.name: roi-pool",
        "regio compare",
    ):
        assert text in page, text
    assert "What failed" not in page and "Times are not comparable" not in page
    assert sorted(path.name for path in (finished / "plots").iterdir()) == ["accuracy.png", "time.png"]
    assert "http" not in page.replace("http-equiv", "")  # needs nothing else


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_report_in_a_browser(copied: Path, width: int) -> None:
    found = opened(copied / "report.html", width)
    assert found["errors"] == found["console"] == found["outside"] == found["cut"] == []
    assert found["page"] == found["window"] == width
    assert all(complete and wide > 0 for complete, wide, _ in found["images"])
    assert len(found["images"]) == 3
    assert found["contrast"] >= 4.5


@pytest.mark.slow
def test_the_same_again_makes_no_run(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    before = rows(copied)
    assert compare(plan(), copied, QUIET) == {}
    assert made == []
    timed = ("seconds_an_image",)
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(copied)] == [
        {k: v for k, v in row.items() if k not in timed} for row in before
    ]


@pytest.mark.slow
def test_a_run_that_is_lost_is_made_again_alone(finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied / "pooled" / "seed-1")
    made = counted(monkeypatch)
    assert compare(plan(), copied, QUIET) == {}
    assert made == ["pooled/seed-1"]
    assert same(finished / "pooled" / "seed-1", copied / "pooled" / "seed-1")


@pytest.mark.slow
def test_a_failure_ends_no_other_run_and_the_run_goes_on_later(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Callable[..., None] = _Run.optimizer_step

    def fails(run: _Run, batches: Any) -> None:
        if run.step == 2 and "pooled" in str(run.folder):
            raise OSError("a photo: damaged")
        step(run, batches)

    monkeypatch.setattr(_Run, "optimizer_step", fails)
    folder = tmp_path / "c"
    assert compare(plan(seeds=1), folder, QUIET) == {"pooled, seed 0": "a photo: damaged"}
    assert [row["label"] for row in rows(folder)] == ["faster-rcnn"]
    assert [path.parts[-4] for path in folder.rglob("resume.safetensors")] == ["pooled"]
    assert json.loads((folder / "results.json").read_text())["failed"] == {"pooled, seed 0": "a photo: damaged"}
    page = (folder / "report.html").read_text()
    assert "What failed" in page and "a photo: damaged" in page
    monkeypatch.setattr(_Run, "optimizer_step", step)
    made = counted(monkeypatch)
    assert compare(plan(seeds=1), folder, QUIET) == {}
    assert made == ["pooled/seed-0 resumed"]
    assert not [*folder.rglob("resume.safetensors")]  # of runs that have ended
    for arm in ("faster-rcnn", "pooled"):
        assert same(folder / arm / "seed-0", finished / arm / "seed-0")
    assert "What failed" not in (folder / "report.html").read_text()


@pytest.mark.slow
def test_boxes_are_found_once_for_all_systems_that_need_them(tmp_path: Path) -> None:
    words = [*WORDS, "proposals=grid", "proposals_per_image=50"]
    arms = ["fast-rcnn", "faster-rcnn", "other=fast-rcnn:extractor=roi-align"]
    chosen = Plan(tuple(make_arm(each, SHARED, (), words) for each in arms), 1, 60.0)
    assert compare(chosen, tmp_path / "c", QUIET) == {}
    found = {row["label"]: row for row in rows(tmp_path / "c")}
    assert sorted(found) == ["fast-rcnn", "faster-rcnn", "other"]
    assert {label: row["proposal_seconds"] != "" for label, row in found.items()} == {
        "fast-rcnn": True,
        "faster-rcnn": False,
        "other": True,
    }
    files = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "c" / "proposals").glob("*.safetensors"))
    assert files == ["shapes-train", "shapes-val"]
    page = (tmp_path / "c" / "report.html").read_text()
    assert "its proposals" in page and "left out for faster-rcnn" in page


@pytest.mark.slow
def test_boxes_of_a_list_that_does_not_say_what_found_them(tmp_path: Path) -> None:
    """They are given to the detectors that are timed, too."""
    data, boxes = write_coco(tmp_path, coco_source()), tmp_path / "boxes.json"
    given = [{"image_id": i, "category_id": 3, "bbox": [1, 2, 20, 30], "score": 0.5} for i in (11, 12)]
    boxes.write_text(json.dumps(given))
    arm = make_arm("fast-rcnn", RunConfig(str(data)), (), [*WORDS, "batch_size=1", f"proposals={boxes}"])
    assert compare(Plan((arm,), 1, 60.0), tmp_path / "c", QUIET) == {}
    (row,) = rows(tmp_path / "c")
    assert float(row["seconds_an_image"]) > 0 and row["proposal_seconds"] == ""


@pytest.mark.slow
def test_a_system_that_cannot_be_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    words = [word for word in WORDS if not word.startswith("steps")]
    arms = "faster-rcnn:steps=2,bad=faster-rcnn-fpn:anchor_sizes=[8,16]"
    code = regio("compare", *words, "--systems", arms, "--images", "8", "--validation-images", "4", "--budget", "1")
    assert code == 1
    values = json.loads((tmp_path / "runs" / "compare" / "results.json").read_text())
    assert [run["label"] for run in values["runs"]] == ["faster-rcnn steps=2"]
    assert values["failed"]["bad"].startswith("anchor_sizes: expected 4")
    assert regio("compare", "--resume") == 1  # as it was planned: it fails as it did


def test_an_interrupt_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any, **named: Any) -> None:
        raise Interrupted("stopped at step 2 of 3")

    monkeypatch.setattr("regio.compare.comparison.run", stopped)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        compare(plan(), tmp_path / "c", QUIET)
    assert Plan.read(tmp_path / "c").paces.keys() == {"faster-rcnn", "pooled"}


def test_a_signal_during_the_report_of_a_run_ends_the_comparison_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def stopped(config: Any, folder: Any, *given: Any, **named: Any) -> None:
        with folder as place:
            made.append(place.parent.name)
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("too late")

    monkeypatch.setattr("regio.compare.comparison.run", stopped)
    with pytest.raises(Interrupted, match="stopped between two runs; go on with --resume"):
        compare(plan(), tmp_path / "c", QUIET)
    assert made == ["faster-rcnn"]


@pytest.mark.slow
def test_an_interrupt_while_steps_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> None:
        raise Interrupted("the state is in a folder that is gone")

    monkeypatch.setattr("regio.compare.comparison.measured_pace", stopped)
    timed = Plan((make_arm("faster-rcnn", SHARED, (), [word for word in WORDS if word != "steps=3"]),), 1, 60.0)
    with pytest.raises(Interrupted, match="stopped while steps of faster-rcnn were timed"):
        compare(timed, tmp_path / "c", QUIET)


def test_one_process_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected one process, got 2"):
        compare(plan(), tmp_path / "c", QUIET)


@pytest.mark.slow
def test_other_data_under_the_same_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regio.compare.comparison.run", lambda *given, **named: None)
    monkeypatch.setattr("regio.compare.comparison.load_trained", lambda path: 1 / 0)
    folder = tmp_path / "c"
    failures = compare(plan(["faster-rcnn"], 1), folder, QUIET)
    assert failures == {"faster-rcnn, seed 0": "ZeroDivisionError: division by zero"}
    values = json.loads((folder / "plan.json").read_text())
    assert values["data"]["data.images"] == "12"
    values["data"]["data.annotations"] = "others"
    (folder / "plan.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"holds another comparison: data.annotations others, got"):
        compare(plan(["faster-rcnn"], 1), folder, QUIET)


@pytest.mark.parametrize("name", ["weights", "results.json"])
def test_another_run_of_the_name_is_kept(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "c"
    (folder / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"c: there is a run of this name that is no comparison; give another --name"):
        compare(plan(), folder, QUIET)
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "maps", "proposals"])
def test_what_need_not_be_made_again_may_lie_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any, **named: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("regio.compare.comparison.run", stopped)
    (tmp_path / "c" / name / "kept").mkdir(parents=True)
    with pytest.raises(Interrupted):
        compare(plan(), tmp_path / "c", QUIET)
    assert (tmp_path / "c" / name / "kept").is_dir()


def test_settings_of_what_is_measured_are_given_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Plan] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regio.compare.compare", lambda plan, *rest: given.append(plan) or {})
    words = ["difficult=true", "images=7", "classes=[star]", *WORDS]
    assert regio("compare", "shapes", *words, "--systems", "faster-rcnn,fast-rcnn:hidden=8") == 0
    for arm in given[0].arms:
        config = arm.config
        assert (config.data, config.difficult, config.images, config.classes) == ("shapes", True, 7, ("star",))
        assert config.training.steps == 3 and config.validation_images == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["difficult=perhaps"], "difficult: expected true or false, got 'perhaps'"),
        (["--budget", "5", "--steps", "5"], "--budget: expected either seconds or --steps, got both"),
        (["--resume", "--seeds", "2"], "--resume: expected --name and --project alone"),
        (["--resume"], "plan.json: no such file: there is no comparison to go on with"),
        (["chanels=3"], "chanels: no such setting in any of the systems"),
        (["--systems", "rpn"], "rpn: finds objects of no class"),
        (["--systems", "faster-rcnn,"], "systems: expected names with commas between them"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    assert regio("compare", *words) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
