"""The report of a run in a real browser."""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from regio.types import Detections, Targets
from regio.visualize import comparison_sheet, confusion_figure, training_figure, write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
    *(
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--window-size=1400,900",
        "--hide-scrollbars",
        "--dump-dom",
    ),
]

# The page, loaded, measures itself.
MEASURE = """<script>
const errors = [];
addEventListener("error", event => errors.push(event.message || event.target.tagName), true);
function light(colour) {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
}
function paper(element) {
  const colour = getComputedStyle(element).backgroundColor;
  return colour == "rgba(0, 0, 0, 0)" && element != document.body ? paper(element.parentElement) : colour;
}
function contrast(a, b) { return Math.max(light(a), light(b)) / Math.min(light(a), light(b)); }
function measured() {
  const all = selector => [...document.querySelectorAll(selector)];
  const bar = document.createElement("i");
  bar.style.color = "var(--bar)";
  document.body.append(bar);
  return {
    errors: errors, mode: document.compatMode, window: innerWidth, page: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    images: [...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width]),
    outside: all("body > *, dl > div, figure, figcaption").filter(
      e => e.getBoundingClientRect().right > innerWidth).map(e => e.tagName),
    cut: all("h1, h2, p, dt, dd, figcaption").filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent),
    contrast: Math.min(...all("h1, h2, p, dt, dd, td, th, pre, figcaption").map(
      e => contrast(getComputedStyle(e).color, paper(e)))),
    bars: contrast(getComputedStyle(bar).color, getComputedStyle(document.body).color),
  };
}
</script>"""

# A window has a least width, a frame in it has none.
FRAME = """<!doctype html><title>frame</title><script>
addEventListener("load", () => {
  const found = document.createElement("pre");
  found.id = "measured";
  found.textContent = JSON.stringify(frames[0].measured());
  document.body.append(found);
});
</script><iframe src="measured.html" width="WIDTH" height="800"></iframe>"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report with all there is in one, and names of every length."""
    names = ["cat", "a class with a very long name that goes on and on", "x" * 60]
    rows: list[dict[str, float]] = [
        {"step": s, "epoch": s / 9, "lr": 0.1 / s, "loss": 3.0 / s, "box": 1 / s} for s in range(1, 41)
    ]
    rows.append({"step": 40, "val_ap": 0.3, "val_ap50": 0.5, "val_ap_small": math.nan})
    image = torch.full((3, 480, 640), 90, dtype=torch.uint8)
    box, label = torch.tensor([[100.0, 100.0, 300.0, 400.0]]), torch.tensor([2])
    found = Detections(box, label, torch.tensor([0.9]))
    path = tmp_path / "report.html"
    write_report(
        path,
        "a_run_of_a_long_name_" + "without_a_space_" * 8,
        subtitle="12 images, 34 objects, 3 classes",
        summary={f"AP number {i}": i / 12 for i in range(8)} | {"none": None},
        illustrations=[
            ("pictures", comparison_sheet([image] * 2, [Targets(box, label)] * 2, [found] * 2, names, ["a", "b"])),
            ("a caption of many words, " * 12, training_figure(rows)),
            ("confusion", confusion_figure(torch.eye(4, dtype=torch.int64).numpy(), names)),
        ],
        classes=[
            {"class": name, "objects": 12} | {f"AP{i}": 0.1 * i for i in range(50, 60)} for name in names
        ],
        configuration="data: " + "/a/long/path" * 30,
    )  # fmt: skip
    return path


def opened(report: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the page measures in a window of `width` pixels, and "console": the messages of the browser's console."""
    page = report.read_text(encoding="utf-8").replace("<body>", "<body>" + MEASURE)
    report.with_name("measured.html").write_text(page, encoding="utf-8")
    frame = report.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={report.parent / 'profile'}", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    match = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, f"the page did not measure itself:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


@pytest.mark.parametrize("width", [400, 1280])
def test_a_report_fits_its_window(report: Path, width: int) -> None:
    found = opened(report, width)
    assert found["errors"] == found["console"] == found["outside"] == found["cut"] == []
    assert found["mode"] == "CSS1Compat"  # no quirks
    assert found["page"] == found["window"] == width
    (_, natural, sheet), *plots = found["images"]
    assert all(complete and wide > 0 for complete, wide, _ in found["images"])
    assert sheet == min(natural, width - 32, 1184)
    assert [shown for _, _, shown in plots] == ([640, 484] if width == 400 else [1056, 484])  # plots scroll in a phone


@pytest.mark.parametrize("dark", [False, True])
def test_text_contrasts_with_what_is_under_it(report: Path, dark: bool) -> None:
    found = opened(report, 800, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    assert found["dark"] == dark
    assert found["contrast"] >= 4.5  # WCAG AA
    assert found["bars"] >= 4.5


def test_what_is_wrong_with_a_page_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(
        "<html><style>body { margin: 0; background: #fff } p { color: #999 }</style><body><script>console.log('heard');"
        'nothing()</script><p style="width: 700px">wide</p><img src="data:image/png;base64,AAAA"></body></html>'
    )
    found = opened(page, 400)
    assert found["page"] > 400
    assert found["outside"] == ["P"]
    assert found["mode"] == "BackCompat"
    assert 1 < found["contrast"] < 4.5
    assert found["images"][0][1] == 0
    assert "Uncaught ReferenceError: nothing is not defined" in found["errors"] and "IMG" in found["errors"]
    assert any("heard" in line for line in found["console"])
