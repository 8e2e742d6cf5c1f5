"""Tables of a study, from results that are made up."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from regio.compare.results import Measured, seconds_a_step
from regio.compare.study import COCO_METRICS, Row, Table, read_study, study_names
from regio.compare.tables import pooled_deviation, table_figure, table_result, write_table
from tests.compare.test_results import RUN

PAPER = (30.0, 50.0, 29.0, 10.0, 32.0, 47.0)
TABLE = Table(
    "Table 9",
    "",
    "align",
    (
        Row("align", "aligned", "box", PAPER, {"cells": 4.0}),
        Row("ours", "learned", "box", (31.5, *PAPER[1:]), {"cells": 7.0}),
        Row("new", "no line in the paper"),
    ),
)


def runs(label: str, *aps: float) -> list[Measured]:
    return [replace(RUN, label=label, seed=i, ap=ap, ap_small=math.nan) for i, ap in enumerate(aps)]


MEASURED = runs("align", 0.20, 0.22) + runs("ours", 0.25, 0.29) + runs("other", 0.9)


def test_other_metrics_by_hand() -> None:
    """A table of VOC: lines are compared by its first metric, not by COCO's AP."""
    rows = (Row("align", "aligned", paper=(60.0, 40.0)), Row("ours", "learned", paper=(64.0, 41.0)))
    measured = [
        replace(RUN, label=label, seed=seed, ap=0.9, voc_map=voc_map, voc_map_70=0.1)
        for label, seed, voc_map in (("align", 0, 0.2), ("align", 1, 0.4), ("ours", 0, 0.5), ("ours", 1, 0.5))
    ]
    result = table_result("1", replace(TABLE, metrics=("voc_map", "voc_map_70")), rows, measured)
    ours = result.lines[1]
    assert (ours.difference, ours.paper_difference) == pytest.approx((20, 4))
    assert result.deviation == pytest.approx(10)  # of 20 and 40, and of 50 twice
    shown = result.accuracy()[1]
    assert (shown["mAP@0.5"], shown["mAP@0.5, paper"]) == ("50.0 (50.0 to 50.0)", "64.0")
    assert result.other_metrics()[0] == {"": "aligned", "mAP@0.7": "10.0", "mAP@0.7, paper": "40.0"}
    assert table_figure(result).axes[0].get_title("left").startswith("mAP@0.5 in percent")


def test_the_pooled_deviation_by_hand() -> None:
    """Squared distances 1 + 1 and 4 + 4 over two degrees of freedom; one number adds none."""
    assert pooled_deviation([[20.0, 22.0], [25.0, 29.0], [7.0], []]) == pytest.approx(math.sqrt(10 / 2))
    assert pooled_deviation([[1.0, 2.0, 6.0]]) == pytest.approx(math.sqrt(14 / 2))
    assert pooled_deviation([[1.0, 3.0, math.nan]]) == pytest.approx(math.sqrt(2))
    assert math.isnan(pooled_deviation([[1.0], [2.0]]))


def test_lines_by_hand() -> None:
    result = table_result("9", TABLE, TABLE.rows, MEASURED, {"ours": {"cells": 6.5}})
    align, ours, new = result.lines
    assert result.deviation == pytest.approx(math.sqrt(5))
    assert (align.here["ap"].mean, align.here["ap"].low, align.here["ap"].high) == pytest.approx((21, 20, 22))
    assert math.isnan(align.difference) and math.isnan(align.paper_difference)
    assert (ours.difference, ours.paper_difference) == pytest.approx((6, 1.5))
    assert ours.deviations == pytest.approx(6 / math.sqrt(5))
    assert ours.here["ap50"].mean == pytest.approx(30) and math.isnan(ours.here["ap_small"].mean)
    assert (ours.step_seconds, ours.seconds_an_image) == (pytest.approx(0.3), 0.02)
    assert new.here["ap"].count == 0 and math.isnan(new.difference) and math.isnan(new.paper["ap"])
    assert [line.name for line in result.lines] == ["box: aligned", "box: learned", "no line in the paper"]


def test_a_line_may_have_a_reference_of_its_own() -> None:
    rows = (TABLE.rows[0], Row("ours", "learned", paper=(31.0, *PAPER[1:]), reference="other"))
    _, ours = table_result("9", TABLE, rows, MEASURED).lines
    assert ours.difference == pytest.approx(27 - 90)
    assert math.isnan(ours.paper_difference)  # that arm has no line in the table


def test_what_the_page_shows() -> None:
    result = table_result("9", TABLE, TABLE.rows, MEASURED, {"ours": {"cells": 6.5}})
    assert result.accuracy()[1] == {
        "": "box: learned",
        "AP": "27.0 (25.0 to 29.0)",
        "difference": "+6.0 (+2.7 sd)",
        "AP, paper": "31.5",
        "difference, paper": "+1.5",
        "seeds": 2,
        "a step": "300 ms",
        "an image": "20 ms",
        "cells": "6.5",
        "cells, paper": "7",
    }
    dash = "\N{EN DASH}"
    assert [result.accuracy()[2][name] for name in ("AP", "difference", "AP, paper", "cells, paper")] == [dash] * 4
    shown = result.other_metrics()[1]
    assert [shown[name] for name in ("AP50", "AP50, paper", "small", "small, paper")] == [
        "30.0",
        "50.0",
        dash,
        "10.0",
    ]
    worse = table_result("9", TABLE, TABLE.rows, runs("align", 0.3) + runs("ours", 0.25)).lines[1]
    assert math.isnan(worse.deviations)
    assert table_result("9", TABLE, TABLE.rows, runs("align", 0.3) + runs("ours", 0.25)).accuracy()[1][
        "difference"
    ] == ("\N{MINUS SIGN}5.0")


def test_the_file_of_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", table_result("9", TABLE, TABLE.rows, MEASURED, {"ours": {"cells": 6.5}}))
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["arm"]) for row in rows] == [("box", "align"), ("box", "ours"), ("", "new")]
    assert float(rows[1]["ap"]) == pytest.approx(27) and float(rows[1]["difference"]) == pytest.approx(6)
    assert {f"{metric}_paper" for metric in COCO_METRICS} <= rows[0].keys()
    assert (rows[1]["cells"], rows[1]["cells paper"], rows[0]["cells"], rows[0]["cells paper"]) == (
        "6.5",
        "7.0",
        "",
        "4.0",
    )
    assert (rows[2]["ap"], rows[2]["ap_paper"], rows[2]["difference"], rows[2]["seeds"]) == ("", "", "", "0")


def test_the_plot_shows_every_line() -> None:
    figure = table_figure(table_result("9", TABLE, TABLE.rows, MEASURED))
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == [
        "box: aligned",
        "box: learned",
        "no line in the paper",
    ]
    assert sorted(round(bar.get_width(), 3) for bar in left.patches) == [21.0, 27.0]
    widths = sorted(round(bar.get_width(), 3) for bar in right.patches)
    assert widths == [1.5, round(2 * math.sqrt(5), 3), 6.0]  # the paper's, a deviation to both sides, ours
    empty = table_figure(table_result("9", TABLE, TABLE.rows, []))
    assert len(empty.axes[0].patches) == 0


def test_titles_of_the_studies_tables_do_not_run_into_each_other() -> None:
    for study in map(read_study, study_names()):
        for name, table in study.tables.items():
            measured = [replace(RUN, label=row.arm, seed=seed) for row in table.rows for seed in range(2)]
            figure = table_figure(table_result(name, table, table.rows, measured))
            figure.draw_without_rendering()
            left, right = (axes.title if axes.get_title() else axes._left_title for axes in figure.axes)  # type: ignore[attr-defined]
            assert left.get_window_extent().x1 < right.get_window_extent().x0, (study.title, name)


def test_seconds_of_a_step() -> None:
    rows = [{"step": 20.0, "seconds": 9.0}, {"step": 40.0, "seconds": 13.0}, {"step": 40.0, "val_ap": 0.1}]
    rows += [{"step": 50.0, "seconds": 14.0}, {"step": 60.0, "seconds": 16.0}]
    assert seconds_a_step(rows) == pytest.approx(0.2)  # 0.2, 0.1, 0.2
    assert math.isnan(seconds_a_step(rows[:1]))
