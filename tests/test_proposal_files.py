"""Boxes of a data set, found once: the file, its parts after a kill, and files of something else."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from regio.data import DetectionDataset, Shapes, open_dataset, read_proposals
from regio.data.proposals import read_origin, read_scored_proposals
from regio.proposals import Grid, files, method_settings, propose
from tests.data.small_datasets import write_yolo_folder


def photos(folder: Path, images: int = 4) -> DetectionDataset:
    return open_dataset(write_yolo_folder(folder, {f"image-{i}": "0 0.5 0.5 0.6 0.6" for i in range(images)}))


@dataclass(frozen=True)
class Corner:
    """The box from the corner to the darkness of the first pixel, of most images; none where that is over `most`. Fails
    at image number `fails`."""

    most: int = 255
    fails: int = -1

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.fails >= 0:
            seen = Path("seen.txt")
            count = int(seen.read_text()) if seen.exists() else 0
            seen.write_text(str(count + 1))
            if count == self.fails:
                raise KeyboardInterrupt
        value = int(image[0, 0, 0])
        boxes = torch.tensor([[0.0, 0.0, value + 1.0, 5.0]])[: int(value <= self.most)]
        return boxes, torch.ones(len(boxes))


def test_every_image_has_its_boxes_and_none_is_ordinary(tmp_path: Path) -> None:
    dataset, file = photos(tmp_path / "d"), tmp_path / "new" / "p.safetensors"
    values = [int(dataset[i].image[0, 0, 0]) for i in range(4)]
    method, steps = Corner(most=sorted(values)[2]), list[tuple[int, int]]()
    assert propose(dataset, method, file, progress=lambda done, images: steps.append((done, images))) == 4
    assert steps == [(i, 4) for i in range(5)]
    found = read_proposals(file)
    for record, value in zip(dataset.records, values, strict=True):
        assert found[record.id].tolist() == ([[0, 0, value + 1, 5]] if value <= method.most else [])
    assert sum(len(boxes) == 0 for boxes in found.values()) == 1
    origin = read_origin(file)
    assert origin is not None and origin.method == {"name": "Corner", "most": method.most, "fails": -1}
    assert [origin.images[r.id].name for r in dataset.records] == [f"image-{i}.png" for i in range(4)]
    assert [p.name for p in file.parent.iterdir() if not p.name.startswith(".")] == ["p.safetensors"]
    before = file.read_bytes()
    assert propose(dataset, method, file) == 0 and file.read_bytes() == before
    assert propose(dataset.subset([2, 1]), method, file) == 0  # has more than it needs


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_find_the_same(tmp_path: Path, processes: int) -> None:
    dataset = photos(tmp_path / "d", 7)
    propose(dataset, Grid(), tmp_path / "a.safetensors")
    assert propose(dataset, Grid(), tmp_path / "b.safetensors", processes=processes) == 7
    one, other = (read_scored_proposals(tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    assert all((a == b).all() for id in one for a, b in zip(one[id], other[id], strict=True))


def test_generated_images_have_no_files(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    assert propose(Shapes(3), Grid(), file) == 3
    assert propose(Shapes(3), Grid(), file) == 0
    assert propose(Shapes(2), Grid(), file) == 0
    with pytest.raises(
        ValueError, match=r"p\.safetensors: boxes of another data set: image 1 is 000_000000.png, got 001_"
    ):
        propose(Shapes(3, seed=1), Grid(), file)


def change_pixels(path: Path) -> None:
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    dataset, file = photos(tmp_path / "d"), tmp_path / "p.safetensors"
    propose(dataset.subset([0, 1, 2]), Grid(), file)
    with pytest.raises(ValueError, match=r"p\.safetensors: has no boxes of 1 of 4 images, the first is image-3\.png$"):
        propose(dataset, Grid(), file)
    file.unlink()
    propose(dataset, Grid(), file)
    with pytest.raises(ValueError, match=r"p\.safetensors: found by other settings: step 0\.5, got 0\.4; give another"):
        propose(dataset, Grid(step=0.4), file)
    with pytest.raises(ValueError, match=r"p\.safetensors: found by other settings: name Grid, got Corner; "):
        propose(dataset, Corner(), file)
    other = open_dataset(write_yolo_folder(tmp_path / "o", {"photo": ""}))
    with pytest.raises(ValueError, match=r"p\.safetensors: boxes of another data set: image 1 is image-0\.png, got ph"):
        propose(other, Grid(), file)
    far = open_dataset(write_yolo_folder(tmp_path / "f", {f"photo-{i}": "" for i in range(9)})).subset([7, 8])
    with pytest.raises(ValueError, match=r"p\.safetensors: boxes of another data set: it has none of the 2 images$"):
        propose(far, Grid(), file)
    path = dataset.records[2].path
    before, content = path.stat(), path.read_bytes()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 5))
    assert propose(dataset, Grid(), file) == 0  # copied, but the same bytes
    change_pixels(path)
    with pytest.raises(ValueError, match=r"p\.safetensors: image-2\.png has changed since its boxes were found; "):
        propose(dataset, Grid(), file)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same length
    with pytest.raises(ValueError, match=r"p\.safetensors: image-2\.png has changed since its boxes were found; "):
        propose(dataset, Grid(), file)


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is kept; another method does not go on from it, and a changed image is looked at again."""
    monkeypatch.chdir(tmp_path)
    dataset, file = photos(tmp_path / "d", 5), tmp_path / "p.safetensors"
    with pytest.raises(KeyboardInterrupt):
        propose(dataset, Corner(fails=3), file)
    assert not file.exists() and len(list((tmp_path / "p.safetensors.parts").iterdir())) == 1
    with pytest.raises(ValueError, match=r"p\.safetensors\.parts: begun with other settings: fails 3, got -1; remove"):
        propose(dataset, Corner(), file)
    change_pixels(dataset.records[1].path)
    steps = list[tuple[int, int]]()
    assert propose(dataset, Corner(fails=3), file, progress=lambda done, images: steps.append((done, images))) == 3
    assert steps[0] == (2, 5) and int(Path("seen.txt").read_text()) == 4 + 3
    found = read_proposals(file)
    assert [found[r.id][0, 2] for r in dataset.records] == [int(dataset[i].image[0, 0, 0]) + 1 for i in range(5)]
    assert not (tmp_path / "p.safetensors.parts").exists()
    assert propose(dataset, Corner(fails=3), file) == 0


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_read_keeps_what_is_done(tmp_path: Path, processes: int) -> None:
    dataset, file = photos(tmp_path / "d", 5), tmp_path / "p.safetensors"
    content = dataset.records[3].path.read_bytes()
    dataset.records[3].path.write_bytes(content[:200])
    with pytest.raises(ValueError, match=r"^[^\n]*image-3\.png: cannot be read as an image[^\n]*$"):
        propose(dataset, Grid(), file, processes=processes)
    assert len(list((tmp_path / "p.safetensors.parts").iterdir())) == 1
    dataset.records[3].path.write_bytes(content)
    assert propose(dataset, Grid(), file) == 2 and len(read_proposals(file)) == 5


@pytest.mark.parametrize(("seconds", "written"), [(math.inf, "p"), (0.0, r"p\.safetensors\.parts/000000")])
def test_a_full_disk_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, written: str
) -> None:
    """Whether it fills when the file is written, or when a part of it is."""
    dataset, file = photos(tmp_path / "d"), tmp_path / "p.safetensors"

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("regio.proposals.files.PART_SECONDS", seconds)
    with pytest.raises(OSError, match=rf"{written}\.safetensors: could not be written .*No space left on device"):
        propose(dataset, Grid(), file)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors"] == []
    assert propose(dataset, Grid(), file) == 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda image: (torch.zeros(2, 3), torch.zeros(2)), r"boxes \[P, 4\] and scores \[P\], got \[2, 3\] and \[2\]"),
        (lambda image: (torch.zeros(2, 4), torch.zeros(3)), r"boxes \[P, 4\] and scores \[P\], got \[2, 4\] and \[3\]"),
    ],
)
def test_a_method_that_gives_no_boxes(
    tmp_path: Path, method: Callable[[Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        propose(photos(tmp_path / "d"), method, tmp_path / "p.safetensors")


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from regio.data import open_dataset
from regio.proposals import Grid, files, propose

@dataclass(frozen=True)
class SlowGrid(Grid):
    def __call__(self, image):
        time.sleep(float(sys.argv[3]))
        return super().__call__(image)

files.PART_SECONDS = 0.2
print(propose(open_dataset(sys.argv[1]), SlowGrid(), Path(sys.argv[2]), processes=int(sys.argv[4])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_loses_no_part(tmp_path: Path, processes: int) -> None:
    """SIGKILL in the middle; the next start does the rest, and no process is left behind."""
    dataset, file = photos(tmp_path / "d", 30), tmp_path / "p.safetensors"
    data, parts = str(tmp_path / "d" / "data.yaml"), tmp_path / "p.safetensors.parts"
    command = [sys.executable, "-c", SLOW, data, str(file)]
    process = subprocess.Popen([*command, "0.1", str(processes)], start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(parts.glob("0*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = sum(len(read_proposals(part)) for part in parts.glob("0*.safetensors"))
    assert 0 < kept < 30 and not file.exists()
    again = subprocess.run([*command, "0", str(processes)], capture_output=True, text=True, check=True)
    assert int(again.stdout) == 30 - kept
    found, wanted = read_proposals(file), Grid()
    assert len(found) == 30
    assert all(torch.equal(torch.from_numpy(found[r.id]), wanted(dataset[0].image)[0]) for r in dataset.records)
    while _running(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _running(session: int) -> bool:
    """Whether any process of the session is left; those that have ended and are not waited for are not."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own) == session and state != "Z":
            return True
    return False


def test_settings_are_those_that_decide_what_is_found() -> None:
    assert method_settings(Grid()) == json.loads(json.dumps(method_settings(Grid())))
    assert method_settings(Grid())["scales"] == list(Grid().scales)
    weights = torch.nn.Linear(2, 3)

    class Learned:
        def __init__(self, module: torch.nn.Module) -> None:
            self.module, self._kept = module, 3

        def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(0, 4), torch.zeros(0)

    before = method_settings(Learned(weights))
    assert set(before) == {"name", "module"} and before == method_settings(Learned(weights))
    with torch.no_grad():
        weights.bias[0] += 1
    assert before != method_settings(Learned(weights))
    assert files.settings_differences(before, before | {"weights": "elsewhere"}) == ""
