"""A study as a whole, on a few generated scenes: trained, stopped, gone on with, and its page."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regio.compare import Plan
from regio.errors import Interrupted
from regio.train import _Run
from tests.test_cli import regio
from tests.test_report_browser import CHROMIUM, opened

STUDY = """
title: A study
source: Somebody, 2026
paper_data: other data
about: What it is about.
settings: [proposals=<net>, proposals_per_image=20, nms_threshold=0.5]
short:
  about: The short form.
  seeds: 2
  steps: 3
  images: 8
  validation_images: 4
  settings: [frozen=5, keep_maps=true, channels=16, hidden=16, short_side=64, long_side=96, regions_per_image=8]
full: {about: The long form., epochs: 1}
first:
  net: {system: rpn}
arms:
  aligned: {system: fast-rcnn, settings: [extractor=roi-align]}
  sampled:
    system: fast-rcnn
    settings: [extractor=learned, mode=sampled, inside=4, outside=4, "bins=[3,3]", keep_every=2]
pictures: [sampled]
learnt: {title: What it has learned, about: Its weights., arms: [sampled]}
tables:
  "1":
    title: "Table 1: the first"
    about: All that there is.
    reference: aligned
    analysis: sampled-cells
    rows:
      - {arm: aligned, name: aligned, paper: [30, 50, 31, 10, 30, 40]}
      - {arm: sampled, name: sampled, group: few, paper: [32, 52, 33, 12, 32, 42], also: {cells inside: 9}}
  "2":
    title: "Table 2: the same again"
    about: ""
    reference: aligned
    rows: [{arm: aligned, name: aligned}]
"""
WORDS = ["workers=0", "device=cpu", "batch_size=2", "log_every=1", "score_threshold=0"]


def study(folder: Path, *more: str, file: Path | None = None) -> int:
    return regio("compare", "--study", str(file), "--project", str(folder), *WORDS, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The file of the study, and the folder that it leaves after a stop in an arm."""
    place = tmp_path_factory.mktemp("study")
    file = place / "mine.yaml"
    file.write_text(STUDY)
    step = _Run.optimizer_step

    def stops(run: _Run, batches: Any) -> None:
        if run.step == 1 and "sampled" in str(run.folder):
            raise Interrupted("stopped at step 1 of 3")
        step(run, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "optimizer_step", stops)
        assert study(place, file=file) == 130
    folder = place / "mine"
    network = folder / "first" / "net" / "weights" / "last.safetensors"
    assert network.is_file() and not (folder / "report.html").exists()
    made = network.stat().st_mtime_ns
    assert regio("compare", "--resume", "--name", "mine", "--project", str(place)) == 0
    assert network.stat().st_mtime_ns == made  # trained once
    return file, folder


@pytest.mark.slow
def test_arms_are_trained_once_on_the_proposals_of_the_network(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    with (folder / "results.csv").open(newline="") as file:
        rows = [(row["label"], row["seed"], row["steps"]) for row in csv.DictReader(file)]
    assert rows == [(label, seed, "3") for label in ("aligned", "sampled") for seed in "01"]
    assert len(list((folder / "proposals").glob("*.safetensors"))) == 2  # of training and validation images
    network = str(folder / "first" / "net" / "weights" / "last.safetensors")
    for label in ("aligned", "sampled"):
        assert f"proposals: {network}" in (folder / label / "seed-1" / "config.yaml").read_text()
    first, second = (load_file(folder / "aligned" / f"seed-{seed}" / "weights" / "last.safetensors") for seed in (0, 1))
    assert not all(torch.equal(first[key], second[key]) for key in first)
    plan = Plan.read(folder)
    assert (plan.tables, plan.full, [arm.config.proposals for arm in plan.arms]) == (("1", "2"), False, ["<net>"] * 2)


@pytest.mark.slow
def test_what_it_leaves(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    assert sorted(each.name for each in (folder / "tables").iterdir()) == [
        "divergence.csv",
        "table-1.csv",
        "table-2.csv",
    ]
    assert sorted(each.name for each in (folder / "plots").iterdir()) == [
        *("divergence.png", "table-1.png", "table-2.png", "weights-sampled.png"),
    ]
    with (folder / "tables" / "table-1.csv").open(newline="") as file:
        aligned, sampled = csv.DictReader(file)
    with (folder / "tables" / "divergence.csv").open(newline="") as file:
        assert {(row["run"], row["step"]) for row in csv.DictReader(file)} == {("sampled", s) for s in "023"}
    runs = [run for run in json.loads((folder / "results.json").read_text())["runs"] if run["label"] == "sampled"]
    assert float(sampled["ap"]) == pytest.approx(50 * sum(run["ap"] for run in runs))
    assert float(sampled["difference"]) == pytest.approx(float(sampled["ap"]) - float(aligned["ap"]))
    assert 0 < float(sampled["cells inside"]) <= 9 and 0 <= float(sampled["cells outside"]) <= 9
    assert float(sampled["GFLOP"]) > 0 and aligned["GFLOP"] == "" and float(sampled["cells inside paper"]) == 9
    page = (folder / "report.html").read_text()
    for text in (
        "A study (Somebody, 2026)",
        "Table 1: the first",
        "The short form.",
        "few: sampled",
        "What it has learned",
        "ar_100",
        "+2.0",
    ):
        assert text in page, text
    assert "Beside the papers" not in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_in_a_browser(finished: tuple[Path, Path], tmp_path: Path, width: int) -> None:
    page = Path(shutil.copy(finished[1] / "report.html", tmp_path))
    found = opened(page, width)
    assert found["errors"] == found["console"] == found["outside"] == found["cut"] == []
    assert found["page"] == found["window"] == width
    assert all(complete and wide > 0 for complete, wide, _ in found["images"])
    assert len(found["images"]) == 5  # two tables, two of weights, and photos
    assert found["contrast"] >= 4.5


@pytest.mark.slow
def test_another_study_under_the_same_name_is_refused(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = finished
    monkeypatch.setenv("COLUMNS", "250")
    assert study(folder.parent, "channels=8", file=file) == 2
    assert "holds another comparison: net: model.channels 16, got 8" in capsys.readouterr().err
    assert study(folder.parent, "--tables", "2", file=file) == 2
    assert "holds another comparison: without sampled" in capsys.readouterr().err


def test_a_network_that_fails_ends_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr("regio.compare.comparison.run", fails)
    (tmp_path / "mine.yaml").write_text(STUDY)
    assert study(tmp_path, file=tmp_path / "mine.yaml") == 2
    assert "net, which is trained before the arms: disk full" in capsys.readouterr().err


def test_arms_that_all_fail_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("regio.compare.comparison.run", fails)
    (tmp_path / "mine.yaml").write_text(STUDY)
    assert study(tmp_path, "proposals=grid", file=tmp_path / "mine.yaml") == 1
    failed = {f"{label}, seed {seed}": "disk full" for label in ("aligned", "sampled") for seed in (0, 1)}
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["failed"] == failed
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "What failed" in page and "disk full" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--study", "region-features", "--budget", "5"], "--study: expected without --budget"),
        (["--study", "region-features", "--systems", "rcnn"], "--study: expected without --systems"),
        (["--tables", "2"], "--tables: expected with --study alone"),
        (["--study", "region-features", "--tables", "9"], "--tables: expected one of 2, 3, 4, 5, start"),
        (["--study", "features"], "--study: expected deformable-convnets, region-features, or a file, got 'features'"),
        (["--study", "region-features", "chanels=3"], "chanels: no such setting in any of the systems"),
        (["--resume", "--study", "region-features"], "--resume: expected --name and --project alone"),
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
