import base64
import io
import math
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from regio.evaluate import CocoMetrics, coco_metrics
from regio.visualize import class_colour, confusion_figure, precision_recall_figure, training_figure, write_report

VOID = {"meta", "img"}


def metrics(classes: int, without_objects: Iterable[int] = ()) -> CocoMetrics:
    """Class i has 10 objects, of which the first i + 1 are found, best first, and then a false one."""
    truth: dict[str, Any] = {
        "images": [{"id": i} for i in range(10)],
        "categories": [{"id": c, "name": f"class ${c}"} for c in range(classes)],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": [0, 0, 50, 50]}
            for i in range(10) for c in range(classes) if c not in without_objects
        ],
    }  # fmt: skip
    found = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 50, 50 if i <= c else 5], "score": 1 - i / 10}
        for i in range(10) for c in range(classes)
    ]  # fmt: skip
    return coco_metrics(truth, found)


def rows() -> list[dict[str, float]]:
    training = [
        {
            "step": s,
            "epoch": s / 9,
            "lr": 0.1 / s,
            "loss": 3.0 / s,
            "box": 1 / s,
            "class": 2 / s,
            "images_per_second": 4,
            "seconds": 2.0 * s,
        }
        for s in range(1, 41)
    ]
    return [
        *training,
        {"step": 20, "epoch": 2, "val_ap": 0.2},
        {"step": 40, "epoch": 4, "val_ap": 0.3, "val_ap50": 0.5},
    ]


def png(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return Image.open(buffer)


def test_training_figure_plots_each_column_in_its_panel() -> None:
    figure = training_figure(rows())
    loss, rate, validation = figure.axes
    raw, smooth = loss.lines[0], loss.lines[1]
    np.testing.assert_allclose(raw.get_ydata(), 3 / np.arange(1, 41))
    np.testing.assert_allclose(np.asarray(smooth.get_ydata())[:2], [3, (1.5 + 0.5 * 3) / 1.5])  # half-life: span 2
    assert [text.get_text().split("  ")[0] for text in loss.get_legend().get_texts()] == ["loss", "box", "class"]
    np.testing.assert_allclose(rate.lines[0].get_ydata(), 0.1 / np.arange(1, 41))
    assert [text.get_text() for text in validation.get_legend().get_texts()] == ["AP  0.300", "AP50  0.500"]
    np.testing.assert_allclose(validation.lines[0].get_xdata(), [20, 40])
    assert rate.get_xlim() == validation.get_xlim() == loss.get_xlim()
    assert png(figure).size == (660, 276)


def test_training_figure_of_little() -> None:
    assert png(training_figure(rows()[:1])).width == 660
    assert png(training_figure([{"step": 1, "val_ap": math.nan}])).width == 660
    validation = training_figure([{"step": 1, "val_ap": 0.5, "val_ap_small": math.nan}]).axes[2]
    assert [text.get_text() for text in validation.get_legend().get_texts()] == ["AP  0.500"]
    with_nan = [{"step": step, "loss": value} for step, value in ((1, 2.0), (2, math.nan), (3, 1.0))]
    np.testing.assert_allclose(training_figure(with_nan).axes[0].lines[0].get_xdata(), [1, 3])
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        training_figure([])


def test_precision_recall_of_few_classes_names_all() -> None:
    figure = precision_recall_figure(metrics(3, without_objects=[1]))
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[0].startswith("mean of 2 classes")
    assert texts[1:] == [r"class \$2  0.307", r"class \$0  0.109"]  # 31 and 11 of the 101 recalls
    assert png(figure).width == 420


def test_precision_recall_of_many_classes_names_the_best_and_the_worst() -> None:
    result = metrics(30)
    axes = precision_recall_figure(result).axes[0]
    assert len(axes.lines) == 31
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(texts) == 11 and texts[0] == f"mean of 30 classes  {result.ap50:.3f}"
    assert r"class \$0  0.109" in texts[-5:]
    empty = precision_recall_figure(metrics(2, without_objects=[0, 1]))
    assert png(empty).width == 420 and empty.axes[0].get_legend() is None


def test_confusion_figure_shows_shares_of_rows_and_counts() -> None:
    matrix = np.array([[0, 1, 0], [2, 6, 0], [0, 0, 0]])
    figure = confusion_figure(matrix, ["cat", "dog"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0, 1, 0], [0.25, 0.75, 0], [0, 0, 0]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "6"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["background", "cat", "dog"]
    assert png(figure).height > 100
    in_thousands = confusion_figure(np.array([[1600, 400], [0, 300]]), ["cat"], unit=1000).axes[0]
    np.testing.assert_allclose(in_thousands.images[0].get_array(), [[0.8, 0.2], [0, 1]])
    assert [text.get_text() for text in in_thousands.texts] == ["2"]
    assert not confusion_figure(np.ones((81, 81), dtype=np.int64), [str(i) for i in range(80)]).axes[0].texts
    with pytest.raises(ValueError, match=r"matrix: expected shape \[2, 2\], got \[3, 3\]"):
        confusion_figure(matrix, ["cat"])


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps tags, texts and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_report_is_one_page_with_everything_inside(tmp_path: Path) -> None:
    evil = "<script>alert(\"x\")</script> & 'y'"
    red = Image.new("RGB", (64, 48), class_colour(1))
    red.save(tmp_path / "red.png")
    write_report(
        tmp_path / "report.html",
        evil,
        subtitle=evil,
        summary={"AP": 0.12345, evil: evil, "images": 706, "none": None, "nan": math.nan},
        classes=[{"class": evil, "ap": 0.5, "objects": 3}, {"class": "dog", "ap": math.nan, "objects": 0}],
        illustrations=[(evil, training_figure(rows())), ("picture", red), ("file", tmp_path / "red.png")],
        configuration="seed: 0\n" + evil,
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>\n") and "<script" not in text and "http" not in text
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "dl", "div", "dt", "dd", "figure",
        "figcaption", "img", "table", "tr", "th", "td", "pre",
    }  # fmt: skip
    assert page.texts.count(evil) == 7  # title twice, subtitle, a name, a number, a caption, a class
    assert {"0.123", "706", "\N{EN DASH}", "0.500", "dog"} <= set(page.texts)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [evil, "picture", "file"]
    assert [(image["width"], image["height"]) for image in images] == [("1056", "442"), ("64", "48"), ("64", "48")]
    for image, kind in zip(images, ("png", "jpeg", "png"), strict=True):
        head, data = (image["src"] or "").split(",")
        assert head == f"data:image/{kind};base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size in {(1650, 690), (64, 48)}


def test_report_of_nothing_and_of_nonsense(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "empty", summary={})
    assert Page((tmp_path / "report.html").read_text()).texts.count("empty") == 2
    with pytest.raises(ValueError, match=r"classes: expected the columns \['class', 'ap'\] in every row, got \['ap'\]"):
        write_report(tmp_path / "r.html", "x", summary={}, classes=[{"class": "a", "ap": 0.1}, {"ap": 0.1}])
    with pytest.raises(ValueError, match=r"a\.txt: expected an image file"):
        write_report(tmp_path / "r.html", "x", summary={}, illustrations=[("a", Path("a.txt"))])
    assert not (tmp_path / "r.html").exists()
