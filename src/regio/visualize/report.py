"""The page that reports a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from regio.visualize.page import (
    Cell,
    Illustration,
    figures,
    heading,
    headline,
    paragraph,
    preformatted,
    table,
    write_page,
)
from regio.visualize.page import title as page_title

__all__ = ["write_report"]


def write_report(
    path: str | Path,
    title: str,
    *,
    summary: Mapping[str, Cell],
    classes: Sequence[Mapping[str, Cell]] = (),
    illustrations: Sequence[Illustration] = (),
    configuration: str = "",
    subtitle: str = "",
) -> None:
    """Write the report of a run to `path`, as valid HTML with every picture inside.

    summary: the headline numbers by name. classes: one row a class, all with the same columns, the first of which
    names it. A float is written with three decimals (and in `classes`, one in [0, 1] with a bar), None and NaN as a
    dash. configuration: shown as it is. All text is escaped, whatever it holds.

    Raises ValueError when rows of `classes` differ in their columns, and for an image file of another kind.
    """
    parts = [page_title(title)]
    if subtitle:
        parts.append(paragraph(subtitle))
    if summary:
        parts.append(headline(summary))
    if illustrations:
        parts += [heading("Plots and pictures"), figures(illustrations)]
    if classes:
        parts += [heading("Classes"), table(classes, "classes")]
    if configuration:
        parts += [heading("Configuration"), preformatted(configuration)]
    write_page(path, title, parts)
