"""What `regio analyse` prints of offsets."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Column, Table

from regio.analysis import FILTER_CLASSES, PUBLISHED_DILATION, OffsetStatistics, Statistic

__all__ = ["dilation_table", "length_table", "without_offsets_table"]


def dilation_table(series: Mapping[str, Mapping[int, OffsetStatistics]]) -> Table:
    """Effective dilation after the last step of each run, the last layer first, above that of the paper."""
    classes = (Column(name, min_width=len(name)) for name in FILTER_CLASSES)
    columns: list[Column | str] = ["run", Column("layer", no_wrap=True), *classes]
    table = Table(*columns, title="Effective dilation in cells, mean ± deviation of filters on")
    for run, steps in series.items():
        for layer, found in reversed(steps[max(steps)].dilation.items()):
            table.add_row(escape(run), layer, *(_text(found[name]) for name in FILTER_CLASSES))
    table.add_section()
    for layer, published in PUBLISHED_DILATION.items():
        table.add_row("Dai et al. 2017", layer, *("{} ± {}".format(*published[name]) for name in FILTER_CLASSES))
    return table


def length_table(series: Mapping[str, Mapping[int, OffsetStatistics]]) -> Table:
    """The lengths of offsets after the last step of each run, the last layer first."""
    table = Table("run", Column("layer", no_wrap=True), "mean ± deviation", title="Length of offsets in cells")
    for run, steps in series.items():
        for layer, found in reversed(steps[max(steps)].length.items()):
            table.add_row(escape(run), layer, _text(found))
    return table


def without_offsets_table(results: Mapping[str, Mapping[str, Mapping[str, float]]], images: int) -> Table:
    """What is measured with and without offsets, by run and variant: the first three numbers, for boxes AP, AP50 and
    AP75."""
    names = list(dict.fromkeys(name for each in results.values() for own in each.values() for name in own))[:3]
    table = Table(
        "run",
        Column("offsets", no_wrap=True),
        *names,
        title=f"With and without offsets, on {images} photos with objects",
    )
    for run, variants in results.items():
        for variant, numbers in variants.items():
            table.add_row(escape(run), variant, *(f"{numbers[name]:.3f}" if name in numbers else "" for name in names))
    return table


def _text(each: Statistic) -> str:
    return f"{each.mean:.2f} ± {each.deviation:.2f}" if each.count else "none"
