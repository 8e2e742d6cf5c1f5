"""Exported segmentation networks give the class maps of the network."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regio.config.systems import DeepLab
from regio.export import SegmentationGraph, export_onnx, export_torch
from regio.segmentation import SegmentationNetwork
from regio.types import IGNORED

SIZES = [[[100, 90], [77, 60]], [[61, 203]], [[48, 48], [128, 128], [199, 30]]]
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    made = DeepLab(channels=8, short_side=80, long_side=120).build(3).eval()
    with torch.no_grad():  # scores of an untrained network are near each other
        made.classifier.weight.mul_(4 / made.scores([batch([[100, 120]])[0][0]])[1].data.std())
    return made


def batch(sizes: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Smooth images, each in the upper left corner of noise."""
    generator = torch.Generator().manual_seed(len(sizes))
    side = [max(each[axis] for each in sizes) for axis in (0, 1)]
    images = torch.randint(0, 256, (len(sizes), 3, *side), generator=generator, dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        coarse = torch.rand((1, 3, 6, 5), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
        image[:, :height, :width] = (smooth * 255).clamp(0, 255).to(torch.uint8)
    return images, torch.tensor(sizes)


def require_same(network: SegmentationNetwork, sizes: list[list[int]], labels: Tensor, scores: Tensor) -> None:
    images, _ = batch(sizes)
    with torch.no_grad():
        expected = network([image[:, :h, :w] for image, (h, w) in zip(images, sizes, strict=True)])
    for i, (height, width) in enumerate(sizes):
        inside = torch.zeros(labels.shape[1:], dtype=torch.bool)
        inside[:height, :width] = True
        assert bool((labels[i][~inside] == IGNORED).all()) and not scores[i][~inside].any()
        found = scores[i][:height, :width]
        torch.testing.assert_close(found, expected[i].scores, rtol=0, atol=1e-3)
        sure = expected[i].scores > 0.51  # where two classes are equally likely, rounding decides
        same = labels[i][:height, :width] == expected[i].labels
        assert sure.float().mean() > 0.5 and bool(same[sure].all())


@pytest.mark.parametrize("sizes", SIZES)
def test_the_graph_is_the_network(network: SegmentationNetwork, sizes: list[list[int]]) -> None:
    with torch.no_grad():
        require_same(network, sizes, *SegmentationGraph(network)(*batch(sizes)))


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_class_maps(network: SegmentationNetwork, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "a.onnx"
    export_onnx(network, file, LABELS)
    session = onnxruntime.InferenceSession(str(file))
    assert [each.name for each in session.get_outputs()] == ["labels", "scores"]
    assert session.get_outputs()[0].shape == ["images", "height", "width"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == list(LABELS)
    for sizes in SIZES:
        images, table = batch(sizes)
        found = session.run(None, {"images": images.numpy(), "sizes": table.numpy()})
        require_same(network, sizes, *map(torch.from_numpy, found))


@pytest.mark.slow
def test_an_exported_program_gives_the_same_class_maps(network: SegmentationNetwork, tmp_path: Path) -> None:
    export_torch(network, tmp_path / "a.pt2", LABELS)
    program = torch.export.load(tmp_path / "a.pt2").module()
    for sizes in SIZES:
        require_same(network, sizes, *program(*batch(sizes)))


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="detector: expected one, or a segmentation network, got Linear"):
        export_torch(torch.nn.Linear(1, 1), tmp_path / "a.pt2")  # type: ignore[arg-type]
