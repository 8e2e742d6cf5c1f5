"""The table of a training."""

from pathlib import Path

import pytest

from regio.training_log import TrainingLog


def test_rows_of_two_kinds(tmp_path: Path) -> None:
    table = TrainingLog(tmp_path / "metrics.csv", ["val_ap"])
    table.start(0)
    table.append({"step": 1, "loss": 0.5})
    table.append({"step": 2, "val_ap": 0.25})
    assert table.rows() == [{"step": 1, "loss": 0.5}, {"step": 2, "val_ap": 0.25}]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,loss,val_ap", "1,0.5,", "2,,0.25"]
    with pytest.raises(ValueError, match="other"):
        table.append({"step": 3, "other": 1.0})
    table.close()


def test_resuming_drops_later_rows(tmp_path: Path) -> None:
    first = TrainingLog(tmp_path / "metrics.csv", ["val_ap"])
    first.start(0)
    for step in range(1, 5):
        first.append({"step": step, "loss": step / 3})
    again = TrainingLog(tmp_path / "metrics.csv", ["val_ap"])
    again.start(2)
    again.append({"step": 3, "val_ap": 1.0})
    assert [row["step"] for row in again.rows()] == [1, 2, 3]
    assert again.rows()[-1] == {"step": 3, "val_ap": 1.0}
    first.close()
    again.close()


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no TensorBoard")
    table = TrainingLog(tmp_path / "metrics.csv", ["val_ap"])
    table.start(0)
    table.append({"step": 1, "loss": 0.5})
    table.append({"step": 2, "val_ap": 0.25})
    table.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("val_ap")] == [(2, 0.25)]


def test_a_table_of_an_earlier_version_gets_the_columns_it_lacks(tmp_path: Path) -> None:
    first = TrainingLog(tmp_path / "metrics.csv", ["val_ap"])
    first.start(0)
    first.append({"step": 1, "loss": 1.0})
    assert first.seconds() == 0
    again = TrainingLog(tmp_path / "metrics.csv", ["seconds", "val_ap"])
    again.start(1)
    again.append({"step": 2, "loss": 0.5, "seconds": 12.0})
    again.append({"step": 2, "val_ap": 1.0})
    assert [row.get("seconds") for row in again.rows()] == [None, 12.0, None]
    assert again.seconds() == 12
    first.close()
    again.close()
