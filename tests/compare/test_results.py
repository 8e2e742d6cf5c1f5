"""Means and spreads, and the tables of papers."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from regio.compare.figures import time_figure
from regio.compare.papers import published
from regio.compare.results import Measured, spread, write_results
from regio.config import SYSTEMS

RUN = Measured(
    "a",
    "faster-rcnn",
    0,
    0.1,
    0.3,
    0.05,
    0.1,
    0.2,
    0.3,
    0.25,
    0.3,
    0.15,
    40,
    12.5,
    0.3,
    20.0,
    0.02,
    None,
    1000,
    "2026-01-01 10:00 UTC",
)


def test_the_spread_of_hand_worked_numbers() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert (found.low, found.high, found.count) == (0.1, 0.6, 3)
    assert found.mean == pytest.approx(0.3)
    assert found.deviation == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert str(found) == "0.300 (0.100 to 0.600)"


def test_one_number_has_no_spread_and_nan_is_none() -> None:
    one = spread([math.nan, 0.25])
    assert (one.mean, one.low, one.high, one.count, str(one)) == (0.25, 0.25, 0.25, 1, "0.250")
    assert math.isnan(one.deviation)
    none = spread([math.nan])
    assert none.count == 0 and math.isnan(none.mean) and str(none) == "\N{EN DASH}"


def test_files_of_results(tmp_path: Path) -> None:
    runs = [RUN, replace(RUN, seed=1, ap=0.2, voc_map=math.nan), replace(RUN, label="b", system="faster-rcnn-fpn")]
    write_results(tmp_path, runs, {"c, seed 0": "disk full"}, {"command": "regio compare"})
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["command"] == "regio compare" and values["failed"] == {"c, seed 0": "disk full"}
    assert values["arms"]["a"]["ap"] == {
        "mean": pytest.approx(0.15),
        "low": 0.1,
        "high": 0.2,
        "deviation": pytest.approx(math.sqrt(0.005)),
        "count": 2,
    }
    assert values["arms"]["a"]["voc_map"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "deviation": None, "count": 1}
    assert [run["voc_map"] for run in values["runs"]] == [0.25, None, 0.25]
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["seed"], row["ap"], row["voc_map"]) for row in rows] == [
        ("a", "0", "0.1", "0.25"),
        ("a", "1", "0.2", ""),
        ("b", "0", "0.1", "0.25"),
    ]


def test_every_arm_is_in_the_legend_whatever_its_name_and_what_is_known_of_it(tmp_path: Path) -> None:
    """Dollar signs are no mathematics, names may begin with an underscore, and one arm could not be timed."""
    names = ["p$1_$2", "_x", "plain"]
    measured = [replace(RUN, label=name, seed=seed) for name in names for seed in range(2)]
    measured += [replace(RUN, label="untimed", seconds_an_image=None)]
    figure = time_figure(measured, "ap", "AP")
    figure.savefig(tmp_path / "a.png")
    (legend,) = (axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)
    assert [text.get_text() for text in legend.get_texts()] == [r"p\$1_\$2", " _x", "plain", "untimed"]
    nothing = time_figure([replace(RUN, seconds_an_image=None)], "ap", "AP")
    nothing.savefig(tmp_path / "b.png")
    assert [text.get_text() for text in nothing.axes[1].get_legend().get_texts()] == ["a"]


def test_every_milestone_that_is_here_has_its_paper() -> None:
    names = {name for each in published() for name in each.systems}
    milestones = {"rcnn", "sppnet", "fast-rcnn", "faster-rcnn", "faster-rcnn-fpn", "mask-rcnn"}
    assert milestones & SYSTEMS.keys() <= names
    for each in published():
        assert each.paper and each.network and each.data and each.source
        assert (each.measure, each.data.split()[0]) in (("mAP", "VOC"), ("AP", "COCO"))


def test_figures_of_fast_rcnn_table_4() -> None:
    """Test rate and mAP of the model L, as ratios: 1 : 20 : 146."""
    found = {(each.systems[0], each.value): each.seconds for each in published() if each.seconds}
    rcnn, sppnet, fast = found["rcnn", 66.0], found["sppnet", 63.1], found["fast-rcnn", 66.9]
    assert fast == 1.83  # with its proposals, table 5 of Faster R-CNN
    fast = next(each.seconds for each in published() if each.systems == ("fast-rcnn",) and "VGG16, one" in each.network)
    assert rcnn and sppnet and fast
    assert (round(rcnn / sppnet), round(rcnn / fast, -1)) == (20, 150)
