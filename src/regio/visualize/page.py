"""A page of one HTML file that needs nothing else, and the parts it is put together of.

Each part is valid HTML in which all text is escaped, whatever it holds.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "Cell",
    "Illustration",
    "facts",
    "figures",
    "heading",
    "headline",
    "paragraph",
    "preformatted",
    "table",
    "title",
    "write_page",
]

Cell = str | int | float | None
Illustration = tuple[str, Figure | Image.Image | Path]
"""A caption, and a plot, a picture, or an image file (.png, .jpg, .webp)."""

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1f23; --soft: #63676f; --line: #e3e5e9; --card: #f6f7f9;
  --bar: #cfe3ff }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e8eaed; --soft: #9aa0a8; --line: #2c3036;
  --card: #1d2024; --bar: #1f3d63 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem }
p { margin: .25rem 0; color: var(--soft) }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0 }
dl div { padding: .6rem .8rem; border-radius: .5rem; background: var(--card) }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { width: 100%; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child, th.text, td.text { text-align: left }
td.text { min-width: 8rem; white-space: normal; overflow-wrap: anywhere }
.facts th { vertical-align: top; width: 11rem }
td.share { background: linear-gradient(90deg, var(--bar) var(--share), transparent var(--share)) }
.figures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1.5rem }
figure { max-width: 100%; margin: 0; overflow-x: auto }
figure img { display: block; max-width: 100%; height: auto; border-radius: .5rem; background: #fff }
figure img.plot { min-width: min(var(--width), 40rem) }
figcaption { position: sticky; left: 0; width: 0; min-width: 100%; margin-bottom: .4rem; color: var(--soft);
  font-size: .92rem; overflow-wrap: anywhere }
pre { margin: 0; padding: .8rem; border-radius: .5rem; background: var(--card); font-size: .85rem; overflow-x: auto }
"""


def write_page(path: str | Path, name: str, parts: Iterable[str]) -> None:
    """Write `parts` as a page of the title `name` to `path`."""
    page = [
        "<!doctype html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>",
        "<body>",
        *parts,
        "</body>",
        "</html>",
    ]
    Path(path).write_text("\n".join(page) + "\n", encoding="utf-8")


def title(text: str) -> str:
    """The title of the page."""
    return f"<h1>{escape(text)}</h1>"


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Text as it is, in lines."""
    return f"<pre>{escape(text)}</pre>"


def headline(numbers: Mapping[str, Cell]) -> str:
    """Large numbers with their names; a float has three decimals, None and NaN are a dash."""
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(_written(v))}</dd></div>" for k, v in numbers.items())
    return "\n".join(["<dl>", *items, "</dl>"])


def table(rows: Sequence[Mapping[str, Cell]], name: str = "rows") -> str:
    """Rows with the same columns, the first of which names the row. A float has three decimals, and one in [0, 1] a
    bar; None and NaN are a dash; columns of words are set to the left, and their lines are broken. name: of `rows`, in
    messages.

    Raises ValueError when rows differ in their columns.
    """
    columns = [*rows[0]]
    for row in rows:
        if [*row] != columns:
            raise ValueError(f"{name}: expected the columns {columns} in every row, got {[*row]}")
    text = {column: i > 0 and _is_text(row[column] for row in rows) for i, column in enumerate(columns)}
    names = (f'<th scope="col"{_text_class(text[column])}>{escape(column)}</th>' for column in columns)
    lines = ["<tr>" + "".join(names) + "</tr>"]
    lines += ["<tr>" + "".join(_cell(row[column], text[column]) for column in columns) + "</tr>" for row in rows]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def facts(values: Mapping[str, str]) -> str:
    """Sentences by what they are about, in two columns."""
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(text)}</td></tr>'
        for name, text in values.items()
    )
    return '<div class="scroll"><table class="facts">\n' + "\n".join(rows) + "\n</table></div>"


def figures(illustrations: Sequence[Illustration]) -> str:
    """Pictures with captions, all inside the page. Raises ValueError for an image file of another kind."""
    drawn = (_figure(caption, content) for caption, content in illustrations)
    return "\n".join(['<div class="figures">', *drawn, "</div>"])


def _is_text(values: Iterable[Cell]) -> bool:
    """Whether a column is of words, which begin with no digit, nor with a sign before one."""
    words = [value for value in values if value not in (None, "", "\N{EN DASH}")]
    return bool(words) and all(
        isinstance(value, str) and not value.lstrip("+-\N{MINUS SIGN}")[:1].isdigit() for value in words
    )


def _cell(value: Cell, text: bool) -> str:
    if isinstance(value, float) and 0 <= value <= 1:
        return f'<td class="share" style="--share: {value:.1%}">{_written(value)}</td>'
    return f"<td{_text_class(text)}>{escape(_written(value))}</td>"


def _text_class(text: bool) -> str:
    return ' class="text"' if text else ""


def _written(value: Cell) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _figure(caption: str, content: Figure | Image.Image | Path) -> str:
    kind, data, (width, height) = _encoded(content)
    source = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    text = escape(caption)
    size = f'width="{width}" height="{height}"'
    plot = f' class="plot" style="--width: {width}px"' if isinstance(content, Figure) else ""
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" {size}{plot} src="{source}"></figure>'


def _encoded(content: Figure | Image.Image | Path) -> tuple[str, bytes, tuple[int, int]]:
    """Media type, bytes, and (width, height) in CSS pixels, of which 96 are an inch of a plot: its text is then of the
    size of the page's. Plots are PNG, which is sharp, photos JPEG, which is small."""
    buffer = io.BytesIO()
    if isinstance(content, Path):
        if content.suffix.lower() not in _TYPES:
            raise ValueError(f"{content}: expected an image file, one of {', '.join(_TYPES)}")
        with Image.open(content) as image:
            return _TYPES[content.suffix.lower()], content.read_bytes(), image.size
    if isinstance(content, Figure):
        content.savefig(buffer, format="png", dpi=150)
        inches = content.get_size_inches()
        return "image/png", buffer.getvalue(), (round(96 * inches[0]), round(96 * inches[1]))
    content.convert("RGB").save(buffer, format="JPEG", quality=88)
    return "image/jpeg", buffer.getvalue(), content.size
