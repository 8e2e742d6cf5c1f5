"""A hundred objects with masks on a photo of 4000 x 3000 pixels take no gigabytes: a byte a pixel would be 1.2.

Each part runs in one process of its own, whose high-water mark of resident memory begins anew before it.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regio.data import DetectionDataset, read_coco

HEIGHT, WIDTH, OBJECTS = 3000, 4000, 100
LIMIT = 600 * 2**20  # the photo takes 36 MB, and 144 MB as floating point

PROGRAM = """
import gc, json, sys
from pathlib import Path
import torch
from regio.config.systems import MaskRCNN
from regio.data import read_coco
from regio.evaluate import evaluate
from regio.inference import detect_files
from regio.ready import ReadyDetector

folder = Path(sys.argv[1])

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024

def peak(call):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    return call(), status("VmHWM") - before

torch.manual_seed(0)
sizes = dict(short_side=64, long_side=96, channels=16, hidden=32, mask_channels=8, mask_layers=1, levels=(3, 4, 5))
system = MaskRCNN(score_threshold=0.0, nms_threshold=0.9, **sizes)
detector = system.build(3, pretrained=False).eval()
ReadyDetector(detector)([torch.zeros(3, 60, 80, dtype=torch.uint8)])
detector([torch.zeros(3, 60, 80, dtype=torch.uint8)])  # what is imported and compiled at the first call
data = system.dataset(read_coco(folder / "data.json", [folder]))
photos = [record.path for record in data.records]
names = data.class_names
found, detected = peak(lambda: detect_files(ReadyDetector(detector), photos, names, folder / "detected"))
evaluator = system.evaluator(data)
evaluation, evaluated = peak(lambda: evaluate(detector, evaluator, batch_size=1))
results = system.results(evaluator, evaluation.records)
_, reported = peak(lambda: results.write(folder / "report", {}))
print(json.dumps({
    "objects": [len(one["detections"]) for one in found.found],
    "masks": sum("segmentation" in row for one in found.found for row in one["detections"]),
    "rows": [len(record) for record in evaluation.records],
    "peaks": {"detect": detected, "evaluate": evaluated, "report": reported},
}))
"""


def photo_with_objects(folder: Path) -> DetectionDataset:
    """A photo with a hundred polygons, in COCO's form."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[::2, :, 1] = 200
    Image.fromarray(pixels).save(folder / "photo.jpg")
    corners = np.random.default_rng(0).uniform(0, (WIDTH - 600, HEIGHT - 500), (OBJECTS, 2)).round()
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 1 + i % 3,
            "bbox": [x, y, 600, 500],
            "segmentation": [[x, y, x + 600, y, x + 600, y + 500, x, y + 500]],
        }
        for i, (x, y) in enumerate(corners.tolist(), start=1)
    ]
    image = {"id": 1, "file_name": "photo.jpg", "width": WIDTH, "height": HEIGHT}
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    source = {"images": [image], "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(source))
    return read_coco(folder / "data.json", [folder])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
def test_a_hundred_objects_on_a_large_photo_take_no_gigabytes(tmp_path: Path) -> None:
    assert photo_with_objects(tmp_path).problems == ()
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert (result["objects"], result["masks"], result["rows"]) == ([OBJECTS], OBJECTS, [OBJECTS])
    assert (tmp_path / "detected" / "pictures" / "photo.jpg").exists()
    assert (tmp_path / "report" / "pictures.jpg").exists()
    assert {name: peak for name, peak in result["peaks"].items() if peak > LIMIT} == {}


def test_samples_of_an_evaluation_have_no_masks_and_records_keep_them(tmp_path: Path) -> None:
    data = photo_with_objects(tmp_path).with_masks()
    light = data.without_masks()
    assert light[0].targets.masks is None
    assert light.records[0].segmentations == data.records[0].segmentations
    assert light.masks_of(0) is None
    masks = data.masks_of(0)
    assert masks is not None and len(masks) == OBJECTS
