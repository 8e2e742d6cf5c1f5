"""Maps of the fixed levels of a backbone in place of photos: the same maps, the same detector, nothing made twice."""

import copy
import io
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from regio.backbones.deformable import deformable_layers
from regio.config import RunConfig, TrainConfig
from regio.config.systems import DeepLab, FasterRCNN, FasterRCNNOnFPN, FastRCNN, SPPNet, System
from regio.data import DetectionDataset, HorizontalFlip, Shapes
from regio.detector import TwoStageDetector
from regio.errors import Interrupted
from regio.kept_maps import KeptMaps, MappedDetector, MappedImage, MappedSegmentationNetwork, fixed_part
from regio.processes import launch
from regio.ready import ReadyDetector, ReadySegmentation
from regio.run import on_kept_maps, run
from regio.run_folders import emptied, locked
from regio.weights import load_trained

SMALL = {"frozen": 5, "short_side": 64, "long_side": 96, "hidden": 32, "channels": 16}
ON_ONE_MAP = FasterRCNN(**SMALL, anchor_sizes=(16.0, 32.0))  # type: ignore[arg-type]
ON_PYRAMID = FasterRCNNOnFPN(**SMALL)  # type: ignore[arg-type]


def built(system: System) -> TwoStageDetector:
    torch.manual_seed(0)
    return system.build(6).eval()


def kept(folder: Path, detector: TwoStageDetector, dataset: DetectionDataset, **options: bool) -> KeptMaps:
    maps = KeptMaps(folder, detector, dataset, **options)
    maps.make()
    return maps


def of(image: object) -> MappedImage:
    assert isinstance(image, MappedImage)
    return image


@pytest.mark.parametrize("system", [ON_ONE_MAP, ON_PYRAMID], ids=["one map", "pyramid"])
def test_maps_are_those_of_the_backbone_in_half_precision(tmp_path: Path, system: System) -> None:
    detector, data = built(system), Shapes(3)
    dataset = kept(tmp_path, detector, data, mirrored=True).in_place_of_images()
    for index in range(3):
        image, pixels = of(dataset[index].image), data[index].image
        assert image.shape == pixels.shape
        for some, each in ((image, pixels), (image.flip(-1), pixels.flip(-1))):
            with torch.no_grad():
                maps = detector.backbone(detector.preprocess([each]).data)
            assert len(maps) == len(some.maps)
            for ours, theirs in zip(some.maps, maps, strict=True):
                assert ours.dtype == torch.float16
                torch.testing.assert_close(ours.float(), theirs.data[0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(image.flip(-1).flip(-1).maps[0], image.maps[0], rtol=0, atol=0)
        assert not torch.equal(image.flip(-1).maps[0], image.maps[0])


@pytest.mark.parametrize("system", [ON_ONE_MAP, ON_PYRAMID], ids=["one map", "pyramid"])
def test_the_detector_finds_what_it_finds_in_the_images(tmp_path: Path, system: System) -> None:
    detector, data = built(system), Shapes(3)
    dataset = kept(tmp_path, detector, data).in_place_of_images()
    with torch.no_grad():
        boxes = [data[i].targets.boxes for i in range(3)]  # with its own, rounding decides between equal scores
        ours = MappedDetector.of(detector)([dataset[i].image for i in range(3)], boxes)
        # One by one: backbones see what a batch is padded with.
        theirs = [detector([data[i].image], boxes[i : i + 1])[0] for i in range(3)]
    assert sum(map(len, theirs)) > 10
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=5e-3)


def test_losses_are_those_of_the_images(tmp_path: Path) -> None:
    detector, data = built(ON_PYRAMID), Shapes(1)
    dataset = kept(tmp_path, detector, data).in_place_of_images()
    found = []
    for each, sample in ((detector, data[0]), (MappedDetector.of(detector), dataset[0])):
        torch.manual_seed(1)
        found.append(each.losses([sample.image], [sample.targets], [sample.targets.boxes]))
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        torch.testing.assert_close(found[1][name], loss, rtol=2e-2, atol=1e-3)


DEFORMABLE = SMALL | {"frozen": 4, "deformable_layers": 2}
PARTLY_FIXED = {
    "one map, deformable": FasterRCNN(**DEFORMABLE, anchor_sizes=(16.0, 32.0)),  # type: ignore[arg-type]
    "pyramid, deformable": FasterRCNNOnFPN(**DEFORMABLE),  # type: ignore[arg-type]
    "two stages": FasterRCNN(**SMALL | {"frozen": 3}, anchor_sizes=(16.0, 32.0)),  # type: ignore[arg-type]
    "ResNet": FasterRCNN(
        **DEFORMABLE | {"deformable_modulated": True},  # type: ignore[arg-type]
        anchor_sizes=(16.0, 32.0),
        backbone="torchvision:resnet18",
        backbone_weights="none",
        output_stride=32,
    ),
}


def with_offsets(detector: TwoStageDetector) -> TwoStageDetector:
    """Its deformable layers, where there are any, read elsewhere."""
    with torch.no_grad():
        for i, layer in enumerate(deformable_layers(detector).values()):
            layer.offset.bias.copy_(torch.linspace(-1, 1.5, layer.offset.out_channels) * (i + 1))
    return detector


@pytest.mark.slow
@pytest.mark.parametrize("system", PARTLY_FIXED.values(), ids=PARTLY_FIXED)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_losses_and_gradients_are_those_of_the_photos(tmp_path: Path, system: System, dtype: str) -> None:
    """Where the last stages are trained: but for the rounding of half precision, or of the order of sums. Of the photos
    and of their mirror images."""
    detector, data = with_offsets(built(system)), Shapes(1)
    maps = KeptMaps(tmp_path, detector, data, mirrored=True, dtype=dtype)
    maps.make()
    dataset, mapped = maps.in_place_of_images(), MappedDetector.of(detector)
    assert mapped.state_dict().keys() == detector.state_dict().keys()
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert any(name.startswith("backbone.body") for name in trained)
    for flip in (0.0, 1.0):
        found = []
        for each, samples in ((detector, data), (mapped, dataset)):
            sample = HorizontalFlip(flip)(samples[0], torch.Generator())
            torch.manual_seed(1)
            losses = each.losses([sample.image], [sample.targets], [sample.targets.boxes])
            found.append((losses, torch.autograd.grad(sum(losses.values()), [*trained.values()], allow_unused=True)))  # type: ignore[arg-type]
        (expected, gradients), (losses, ours) = found
        tolerance = 1e-4 if dtype == "float32" else 0.05
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss, rtol=tolerance, atol=tolerance)
        some = 0
        for name, one, other in zip(trained, ours, gradients, strict=True):
            assert (one is None) == (other is None), name
            if one is not None and other is not None:
                difference, size = float((one - other).norm()), float(other.norm())
                assert difference <= tolerance * size + 1e-6, (name, difference, size)
                some += size > 0 and name.startswith("backbone.body")
        assert some > 3


@pytest.mark.slow
@pytest.mark.parametrize("system", PARTLY_FIXED.values(), ids=PARTLY_FIXED)
def test_a_ready_detector_runs_what_comes_after_the_maps(tmp_path: Path, system: System) -> None:
    detector, data = with_offsets(built(system)), Shapes(2)
    dataset = kept(tmp_path, detector, data).in_place_of_images()
    mapped = MappedDetector.of(detector)
    images = [dataset[i].image for i in range(2)]
    with torch.inference_mode():
        _, expected = mapped.features(images)
        _, found = ReadyDetector(mapped, precision="32-true").detector.features(images)
        _, low = ReadyDetector(mapped, precision="bf16-mixed").detector.features(images)
    for ours, half, theirs in zip(found, low, expected, strict=True):
        scale = float(theirs.data.abs().max())
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(half.data.float() / scale, theirs.data / scale, rtol=0, atol=0.05)


@pytest.mark.slow
def test_the_maps_of_one_level_serve_plain_and_deformable_layers_after_it(tmp_path: Path) -> None:
    plain = FasterRCNN(**SMALL | {"frozen": 4})  # type: ignore[arg-type]
    assert not kept(tmp_path, built(plain), Shapes(2)).missing
    assert not KeptMaps(tmp_path, built(PARTLY_FIXED["one map, deformable"]), Shapes(2)).missing
    levels = [fixed_part(built(PARTLY_FIXED[name]).backbone).levels for name in PARTLY_FIXED]
    assert levels == [(4,), (3, 4), (3,), (4,)]


def test_what_is_fixed_in_a_later_stage_of_a_training_does_not_change_the_maps(tmp_path: Path) -> None:
    """As in the alternating scheme, which fixes the whole backbone in its second half."""
    detector, data = built(PARTLY_FIXED["one map, deformable"]), Shapes(1)
    image = kept(tmp_path, detector, data).in_place_of_images()[0].image
    mapped = MappedDetector.of(detector)
    with torch.no_grad():
        _, (expected,) = mapped.features([image])
        detector.backbone.requires_grad_(False)
        for each in (mapped, mapped.without_heads(), mapped.without_proposals(), copy.deepcopy(mapped)):
            _, (found,) = each.features([image])
            assert torch.equal(found.data, expected.data)


SEGMENTATION = DeepLab(frozen=4, deformable_layers=2, short_side=64, long_side=96, channels=16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_segmentation_network_trains_on_the_maps_of_its_photos(tmp_path: Path, dtype: str) -> None:
    """Losses, gradients and class maps, of the photos and of their mirror images; no pixels are taken."""
    torch.manual_seed(0)
    network, data = SEGMENTATION.build(6).eval(), SEGMENTATION.dataset(Shapes(1))
    with torch.no_grad():
        network.classifier.weight.mul_(100)
    with_offsets(network)
    maps = KeptMaps(tmp_path, network, data, mirrored=True, dtype=dtype)
    maps.make()
    dataset, mapped = maps.in_place_of_images(), MappedSegmentationNetwork.of(network)
    assert mapped.state_dict().keys() == network.state_dict().keys()
    trained = [p for p in network.parameters() if p.requires_grad]
    tolerance = 1e-4 if dtype == "float32" else 0.05
    for flip in (0.0, 1.0):
        found = []
        for each, samples in ((network, data), (mapped, dataset)):
            sample = HorizontalFlip(flip)(samples[0], torch.Generator())
            loss = each.losses([sample.image], [sample.targets])["pixel"]
            found.append((loss, torch.autograd.grad(loss, trained), each([sample.image])[0]))
        (expected, gradients, theirs), (loss, ours, classes) = found
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
        for one, other in zip(ours, gradients, strict=True):
            assert float((one - other).norm()) <= tolerance * float(other.norm()) + 1e-6
        assert theirs.labels.unique().numel() > 1
        assert float((classes.labels == theirs.labels).float().mean()) > 0.98
        ready = ReadySegmentation(mapped, precision="32-true")([sample.image])[0]
        assert float((ready.labels == classes.labels).float().mean()) > 0.98
    with pytest.raises(TypeError, match=r"images\[0\]: expected a MappedImage, got Tensor"):
        mapped([data[0].image])


def test_detection_and_segmentation_share_maps(tmp_path: Path) -> None:
    detector = FasterRCNN(frozen=4, short_side=64, long_side=96, hidden=32, channels=16, anchor_sizes=(16.0, 32.0))
    assert not kept(tmp_path, built(detector), Shapes(2)).missing
    assert not KeptMaps(tmp_path, SEGMENTATION.build(6).eval(), SEGMENTATION.dataset(Shapes(2))).missing


def test_maps_of_images_of_several_sizes_are_padded_with_zeros() -> None:
    detector = MappedDetector.of(built(ON_ONE_MAP))
    small = MappedImage((40, 60), (64, 96), (torch.ones(320, 4, 6, dtype=torch.float16),))
    large = MappedImage((60, 40), (96, 64), (torch.ones(320, 6, 4, dtype=torch.float16),))
    detector.neck = torch.nn.Identity()
    batch, (maps,) = detector.features([small, large])  # type: ignore[list-item]
    assert maps.data.shape == (2, 320, 6, 6) and maps.sizes == ((64, 96), (96, 64))
    assert batch.sizes == [(64, 96), (96, 64)] and batch.original == [(40, 60), (60, 40)]
    assert float(maps.data[0].sum()) == 320 * 24 and float(maps.data[0, :, :4, :6].sum()) == 320 * 24
    with pytest.raises(TypeError, match=r"images\[1\]: expected a MappedImage, got Tensor"):
        detector.features([small, torch.zeros(3, 8, 8)])  # type: ignore[list-item]


@pytest.mark.slow
def test_a_stopped_making_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    detector, data = built(ON_ONE_MAP), Shapes(4)
    maps = KeptMaps(tmp_path, detector, data, mirrored=True)

    def stop(done: int, images: int) -> None:
        assert images == 4
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="maps of 2 of 4 images; they are kept"):
        maps.make(progress=stop)
    again, numbers = KeptMaps(tmp_path, detector, data, mirrored=True), list[int]()
    assert again.missing == [2, 3]
    with pytest.raises(ValueError, match="the features of 4 images are missing"):
        again.read(data.records[0])
    again.make(progress=lambda done, images: numbers.append(done))
    assert numbers == [3, 4] and not again.missing
    whole = kept(tmp_path / "whole", detector, data, mirrored=True)
    for record in data.records:
        torch.testing.assert_close(of(again.read(record)).maps, of(whole.read(record)).maps, rtol=0, atol=0)


def test_maps_of_other_weights_images_or_sizes_are_not_taken(tmp_path: Path) -> None:
    detector, data = built(ON_ONE_MAP), Shapes(2)
    assert not kept(tmp_path, detector, data).missing
    assert not KeptMaps(tmp_path, detector, data).missing  # those that are there
    assert KeptMaps(tmp_path, detector, data.subset([1])).missing == [0]
    assert KeptMaps(tmp_path, built(FasterRCNN(**SMALL | {"short_side": 80})), data).missing == [0, 1]  # type: ignore[arg-type]
    with torch.no_grad():
        next(detector.backbone.parameters()).add_(1e-3)
    assert KeptMaps(tmp_path, detector, data).missing == [0, 1]


def test_processes_that_read_images_get_neither_open_files_nor_the_detector(tmp_path: Path) -> None:
    data = Shapes(2)
    maps = kept(tmp_path, built(ON_PYRAMID), data)
    maps.read(data.records[0])
    packed = pickle.dumps(maps)
    assert len(packed) < 100_000  # the backbone alone has 13 MB
    sent = pickle.loads(packed)
    torch.testing.assert_close(of(sent.read(data.records[1])).maps, of(maps.read(data.records[1])).maps)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (FasterRCNN(**SMALL | {"frozen": 0}), r"fixed up to a level, got \d+ parameters .*; frozen=5 fixes all"),  # type: ignore[arg-type]
        (FastRCNN(frozen=5, sides=(64, 80)), "reads images at one scale, got ImagePyramid"),
    ],
    ids=["trained", "pyramid of images"],
)
def test_backbones_that_change_or_scale_are_refused(tmp_path: Path, system: System, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeptMaps(tmp_path, built(system), Shapes(1))


def test_running_statistics_are_refused(tmp_path: Path) -> None:
    from regio.backbones import efficientnet_lite0
    from regio.systems import faster_rcnn

    detector = faster_rcnn(3, efficientnet_lite0((5,), frozen=5, frozen_norm=False), channels=16, hidden=16)
    with pytest.raises(ValueError, match="got running statistics that are"):
        KeptMaps(tmp_path, detector, Shapes(1))


def test_no_mirror_image_without_its_maps(tmp_path: Path) -> None:
    data = kept(tmp_path, built(ON_ONE_MAP), Shapes(1)).in_place_of_images()
    with pytest.raises(ValueError, match="with maps of the mirror image"):
        HorizontalFlip(1.0)(data[0], torch.Generator())


def configured(**changes: object) -> RunConfig:
    training = TrainConfig(steps=4, batch_size=2, workers=0, device="cpu", log_every=1, evaluate_every=1e9)
    options = {"data": "shapes", "images": 6, "validation_images": 3, "keep_maps": True, "model": ON_ONE_MAP}
    return RunConfig(**{**options, "training": training, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_leaves_a_detector_for_images_and_makes_maps_once(tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    run(configured(), emptied(tmp_path / "a"), console)
    assert "maps of 6 images" in console.export_text(clear=True)
    assert (tmp_path / "a" / "report.html").is_file()
    run(configured(), emptied(tmp_path / "b"), console)
    assert "maps of 6 images" not in console.export_text()
    trained = [load_trained(tmp_path / name / "weights" / "last.safetensors") for name in "ab"]
    for one, other in zip(*(each.detector.state_dict().values() for each in trained), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert trained[0].detector([Shapes(1)[0].image])[0].boxes.shape[1] == 4
    config = trained[0].system
    assert isinstance(config, FasterRCNN) and config == ON_ONE_MAP


@pytest.mark.slow
def test_stages_run_on_kept_maps(tmp_path: Path) -> None:
    from dataclasses import replace

    console = Console(quiet=True)
    run(configured(model=replace(ON_ONE_MAP, scheme="alternating")), emptied(tmp_path / "a"), console)
    again = run(
        configured(model=replace(ON_ONE_MAP, scheme="alternating")), locked(tmp_path / "a"), console, resume=True
    )
    assert np.isfinite(again.evaluator.measure(again.records)["ap50"])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_fitted_heads_run_on_kept_maps(tmp_path: Path) -> None:
    spp = SPPNet(frozen=5, sides=(64,), long_side=96, hidden=32, pyramid=(2, 1))
    ended = run(configured(model=spp, proposals="grid"), emptied(tmp_path / "a"), Console(quiet=True))
    assert np.isfinite(ended.evaluator.measure(ended.records)["ap50"])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_run_of_segmentation_leaves_a_network_for_images(tmp_path: Path) -> None:
    ended = run(configured(model=SEGMENTATION), emptied(tmp_path / "a"), Console(quiet=True))
    assert np.isfinite(ended.evaluator.measure(ended.records)["mean_iou"])  # type: ignore[attr-defined]
    image = Shapes(1)[0].image
    (found,) = load_trained(tmp_path / "a" / "weights" / "last.safetensors").model([image])
    assert found.labels.shape == image.shape[1:]


def test_other_networks_are_refused() -> None:
    model, data, config = torch.nn.Linear(1, 1), Shapes(1), configured()
    fabric = launch("cpu", 1, "32-true")
    with pytest.raises(ValueError, match="two stages or a segmentation network, got Linear"):
        on_kept_maps(config, model, data, data, Path(), fabric, Console(quiet=True))


def test_colours_cannot_be_varied(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_maps: expected jitter=false"):
        run(configured(jitter=True), emptied(tmp_path / "a"), Console(quiet=True))
