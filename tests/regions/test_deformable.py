"""Deformable pooling: the contract in its three forms, position-sensitive with and without classes, and its laws."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from regio.regions.base import level_by_level
from regio.regions.deformable import DeformablePositionSensitive, DeformableRoIPool, RoundedSamples, deformed_samples
from regio.regions.position_sensitive import PositionSensitive, RFCNAveragePool
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIAveragePool, RoIPool
from regio.regions.sampling import SamplingExtractor
from regio.types import FeatureMap, Regions
from tests.regions.contract import BOXES, INSIDE, ExtractorContract, close, feature_map, regions

Part = Callable[[Tensor, list[float], int, int, float, float], Tensor]


def c_round(value: float) -> int:
    return int(abs(value) + 0.5) * (1 if value >= 0 else -1)


def bilinear(cells: Tensor, v: float, u: float) -> Tensor:
    """The values [C] of `cells` [C, H, W] at row v and column u, zero outside (Dai et al. 2017, Eqs. 3 and 4)."""
    total = cells.new_zeros(len(cells))
    for q in (math.floor(v), math.floor(v) + 1):
        for p in (math.floor(u), math.floor(u) + 1):
            if 0 <= q < cells.shape[1] and 0 <= p < cells.shape[2]:
                total += (1 - abs(v - q)) * (1 - abs(u - p)) * cells[:, q, p]
    return total


def on_border(cells: Tensor, v: float, u: float) -> Tensor:
    """`bilinear` at the nearest place that is on the map."""
    return bilinear(cells, min(max(v, 0.0), cells.shape[1] - 1), min(max(u, 0.0), cells.shape[2] - 1))


# Each gives part (i, j) of a box, moved by `dy` rows and `dx` columns, as multiples gamma * offset of the box's sides.
# Boxes are in image pixels, at stride 4, and there are 2 x 3 parts.


def paper_part(cells: Tensor, box: list[float], i: int, j: int, dy: float, dx: float) -> Tensor:
    """Eq. 6: the mean of x(p0 + p + shift) over the whole cells p of the bin."""
    x1, y1, x2, y2 = (c_round(c / 4) for c in box)
    height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    down, right = dy * (box[3] - box[1]) / 4, dx * (box[2] - box[0]) / 4
    values = [
        bilinear(cells, y1 + v + down, x1 + u + right)
        for v in range(i * height // 2, -(-(i + 1) * height // 2))
        for u in range(j * width // 3, -(-(j + 1) * width // 3))
    ]
    return torch.stack(values).mean(0)


def released_part(cells: Tensor, box: list[float], i: int, j: int, dy: float, dx: float) -> Tensor:
    """The released operator: 4 x 4 samples from the start of the bin, those on the map in the mean."""
    x1, y1 = c_round(box[0]) / 4 - 0.5, c_round(box[1]) / 4 - 0.5
    width = max((c_round(box[2]) + 1) / 4 - 0.5 - x1, 0.1)
    height = max((c_round(box[3]) + 1) / 4 - 0.5 - y1, 0.1)
    values = []
    for s in range(4):
        for t in range(4):
            v = y1 + (i + s / 4) * height / 2 + dy * height
            u = x1 + (j + t / 4) * width / 3 + dx * width
            if -0.5 <= v <= cells.shape[1] - 0.5 and -0.5 <= u <= cells.shape[2] - 0.5:
                values.append(on_border(cells, v, u))
    return torch.stack(values).mean(0) if values else cells.new_zeros(len(cells))


def aligned_part(cells: Tensor, box: list[float], i: int, j: int, dy: float, dx: float) -> Tensor:
    """2 x 2 centred samples; one that is not in [-1, size] counts as zero."""
    x1, y1, width, height = box[0] / 4 - 0.5, box[1] / 4 - 0.5, (box[2] - box[0]) / 4, (box[3] - box[1]) / 4
    values = []
    for s in (0.25, 0.75):
        for t in (0.25, 0.75):
            v, u = y1 + (i + s) * height / 2 + dy * height, x1 + (j + t) * width / 3 + dx * width
            on = -1 <= v <= cells.shape[1] and -1 <= u <= cells.shape[2]
            values.append(on_border(cells, v, u) if on else cells.new_zeros(len(cells)))
    return torch.stack(values).mean(0)


def pooled(part: Part, maps: Callable[[int], Tensor], r: Regions, offsets: Tensor, gamma: float = 0.1) -> Tensor:
    """Features [R, C, 2, 3] of parts of which part k reads ``maps(k)`` [N, C, H, W], for offsets [R, 2, ph, pw]."""
    ph, pw = offsets.shape[2:]
    features = []
    for n, box in enumerate(r.boxes.tolist()):
        for i in range(2):
            for j in range(3):
                dx, dy = (gamma * offsets[n, :, i * ph // 2, j * pw // 3]).tolist()
                features.append(part(maps(i * 3 + j)[r.image[n]], box, i, j, dy, dx))
    return torch.stack(features).unflatten(0, (len(r), 2, 3)).movedim(3, 1)


def parent(form: str, bins: tuple[int, int] = (2, 3)) -> SamplingExtractor:
    return {
        "paper": RoIAveragePool(bins, count_outside=True),
        "released": RoundedSamples(bins),
        "aligned": RoIAlign(bins),
    }[form]


class DeformableContract(ExtractorContract):
    offset_size = (2, 3)
    part = staticmethod(paper_part)
    form = "paper"

    def make(self, channels: int, bins: tuple[int, int]) -> DeformableRoIPool:
        e = DeformableRoIPool(parent(self.form, bins), channels, self.offset_size)
        torch.nn.init.normal_(e.offset.weight, std=0.4)
        torch.nn.init.normal_(e.offset.bias, std=0.4)
        return e

    def reference(self, extractor: DeformableRoIPool, x: FeatureMap, r: Regions) -> Tensor:
        still = pooled(self.part, lambda k: x.data, r, x.data.new_zeros(len(r), 2, 2, 3))
        offsets = still.flatten(1) @ extractor.offset.weight.t() + extractor.offset.bias
        return pooled(self.part, lambda k: x.data, r, offsets.unflatten(1, (2, *self.offset_size)).detach())


class TestPaper(DeformableContract): ...


class TestReleased(DeformableContract):
    box_gradient = False
    part = staticmethod(released_part)
    form = "released"


class TestAlignedWithFewerOffsets(DeformableContract):
    offset_size = (1, 2)
    part = staticmethod(aligned_part)
    form = "aligned"


class TestRoundedSamples(ExtractorContract):
    box_gradient = False

    def make(self, channels: int, bins: tuple[int, int]) -> RoundedSamples:
        return RoundedSamples(bins)

    def reference(self, extractor: RoundedSamples, x: FeatureMap, r: Regions) -> Tensor:
        return pooled(released_part, lambda k: x.data, r, x.data.new_zeros(len(r), 2, 2, 3))


class PositionSensitiveContract(ExtractorContract):
    """Score and offset maps are convolutions of the map that is read."""

    channels = 4
    classes = 2
    part = staticmethod(released_part)
    form = "released"
    box_gradient = False

    @property
    def in_channels(self) -> int:
        return 3

    def make(self, channels: int, bins: tuple[int, int]) -> DeformablePositionSensitive:
        extractor = PositionSensitive(parent(self.form, bins))
        e = DeformablePositionSensitive(extractor, self.in_channels, channels, self.classes)
        torch.nn.init.normal_(e.offset.weight, std=0.4)
        return e

    def contraction(self, extractor: DeformablePositionSensitive, x: FeatureMap, r: Regions) -> Tensor:
        scores = extractor.scores(x.data)[r.image].unflatten(1, (self.channels, 6))
        w = extractor.weights(x, r).expand(-1, self.channels, -1, -1, -1)
        return torch.einsum("rckhw,rckhw->rck", w, scores)

    def reference(self, extractor: DeformablePositionSensitive, x: FeatureMap, r: Regions) -> Tensor:
        scores, fields = extractor.scores(x.data).detach(), extractor.offset(x.data).detach()
        offsets = pooled(self.part, lambda k: fields[:, k::6], r, x.data.new_zeros(len(r), 2, 2, 3))
        each = self.channels // self.classes
        classes = []
        for d in range(self.classes):
            own = scores[:, d * each * 6 : (d + 1) * each * 6]
            classes.append(pooled(self.part, partial(lambda m, k: m[:, k::6], own), r, offsets[:, 2 * d : 2 * d + 2]))
        return torch.cat(classes, 1)


class TestOffsetsOfEachClass(PositionSensitiveContract): ...


class TestSharedOffsets(PositionSensitiveContract):
    classes = 1
    part = staticmethod(aligned_part)
    form = "aligned"
    box_gradient = True


FORMS = ["paper", "released", "aligned"]
OWN = [*FORMS, "rfcn", "position-sensitive"]


def any_parent(name: str) -> tuple[SamplingExtractor, int]:
    """An extractor of 2 x 3 parts, and the channels of the map from which it gives 3."""
    if name == "rfcn":
        return PositionSensitive(RFCNAveragePool((2, 3))), 18
    if name == "position-sensitive":
        return PositionSensitive(RoIAlign((2, 3)), group_size=2, group_major=True), 12
    return parent(name), 3


@pytest.mark.parametrize("name", OWN)
def test_starts_as_the_extractor(name: str) -> None:
    """Zero offsets, those of a new layer, are the plain extractor: features, weights and gradients of features."""
    e, channels = any_parent(name)
    pool = DeformableRoIPool(e, 3).double()
    data = [feature_map(channels).data.requires_grad_() for _ in range(2)]
    ours, plain = (FeatureMap(d, 4) for d in data)
    close(pool(ours, regions()), e(plain, regions()), 1e-12)
    close(pool.weights(ours, regions()), e.weights(plain, regions()), 1e-12)
    pool(ours, regions()).square().sum().backward()
    e(plain, regions()).square().sum().backward()
    close(data[0].grad, data[1].grad, 1e-12)


def test_position_sensitive_starts_as_the_extractor() -> None:
    extractor = PositionSensitive(RoundedSamples((2, 3)))
    e = DeformablePositionSensitive(extractor, 3, 4, classes=2).double()
    x = feature_map()
    close(e(x, regions()), extractor(FeatureMap(e.scores(x.data), 4), regions()), 1e-12)


@pytest.mark.parametrize("name", OWN)
def test_a_shift_of_one_cell_is_the_next_cell(name: str) -> None:
    """Offsets that move all parts one column right and two rows down read what the plain extractor reads on the map
    moved the other way."""
    e, channels = any_parent(name)
    x, r = feature_map(channels), regions([[13.0, 10.0, 26.0, 21.0]] * 2)
    sides = torch.tensor([14.0, 12.0] if name == "released" else [13.0, 11.0], dtype=torch.float64) / 4
    offsets = (torch.tensor([1.0, 2.0], dtype=torch.float64) / sides / 0.1)[:, None, None].expand(2, 2, 2, 3)
    moved = FeatureMap(x.data.roll((-2, -1), (2, 3)), 4)
    pool = DeformableRoIPool(e, 3).double()
    close(pool.deformed([x], r, r.image * 0, offsets), e(moved, r), 1e-12)


@pytest.mark.parametrize("name", OWN)
def test_gradients_of_features_offsets_and_boxes(name: str) -> None:
    e, channels = any_parent(name)
    pool, x, r = DeformableRoIPool(e, 3), feature_map(channels), regions([INSIDE, BOXES[2], BOXES[3]])
    offsets = torch.randn(3, 2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [
        t.clone().requires_grad_(flag) for t, flag in ((x.data, True), (offsets, True), (r.boxes, name != "released"))
    ]

    def run(data: Tensor, offsets: Tensor, boxes: Tensor) -> Tensor:
        return pool.deformed([FeatureMap(data, 4)], Regions(boxes, r.image), r.image * 0, offsets)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-5)
    assert torch.autograd.gradcheck(lambda o: run(x.data, o, r.boxes).sum((0, 1)), inputs[1:2], atol=1e-5)


@pytest.mark.parametrize("group_major", [False, True])
def test_offsets_of_a_class_move_its_channels_alone(group_major: bool) -> None:
    """Three classes of two channels: each as if it were alone, with its own two channels of the offsets."""
    e = PositionSensitive(RoIAlign((2, 3)), group_major=group_major)
    x, r = feature_map(36), regions()
    offsets = torch.randn(len(r), 6, 2, 3, dtype=torch.float64)
    level = torch.zeros_like(r.image)
    y = deformed_samples(e, [x], r, level, offsets).features([x.data], r.image, level)
    groups = e.by_group(x)
    for d in range(3):
        own = groups[:, :, 2 * d : 2 * d + 2]
        alone = FeatureMap((own if group_major else own.transpose(1, 2)).flatten(1, 2), 4)
        samples = deformed_samples(e, [alone], r, level, offsets[:, 2 * d : 2 * d + 2])
        close(y[:, 2 * d : 2 * d + 2], samples.features([alone.data], r.image, level), 1e-12)


def test_a_part_takes_the_offset_where_it_lies() -> None:
    """Four by four parts, two by two offsets: only the parts of the lower left quarter move."""
    e, x, r = RoIAlign(4), feature_map(), regions([INSIDE])
    offsets = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    offsets[0, :, 1, 0] = 1
    level = torch.zeros_like(r.image)
    y = deformed_samples(e, [x], r, level, offsets).features([x.data], r.image, level)
    changed = ((y - e(x, r)).abs() > 1e-6).all(1)[0]
    assert changed.tolist() == [[False] * 4] * 2 + [[True, True, False, False]] * 2


def test_pyramid_is_level_by_level() -> None:
    maps, r = [feature_map(), FeatureMap(feature_map(seed=1).data[:, :, :5, :6], 8)], regions()
    level = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    extractors = [TestPaper().extractor(), TestOffsetsOfEachClass().extractor()]
    for e in extractors:
        close(e.pyramid(maps, r, level), level_by_level([e, e], maps, r, level), 1e-12)


@pytest.mark.parametrize("e", [TestReleased().extractor(), TestOffsetsOfEachClass().extractor()])
def test_samples_are_what_is_read(e: DeformableRoIPool | DeformablePositionSensitive) -> None:
    """Moved as the offsets say, by tenths of the sides of the rounded box, 26 x 27 pixels."""
    x, r = feature_map(), regions([INSIDE])
    offsets = e.offsets([x], r, r.image * 0).detach()
    still, moved = (e.samples(x, r, o).points for o in (torch.zeros_like(offsets), offsets))
    assert still.shape == (offsets.shape[1] // 2, 2, 3, 16, 2)
    # In cells, the box of pixels 5 to 31 and 4 to 30 starts at 0.75 and 0.5 after the half-cell shift.
    assert still[0, 0, 0, 0].tolist() == [0.75, 0.5]
    sides = torch.tensor([27.0, 27.0], dtype=torch.float64) / 4
    expected = 0.1 * offsets.unflatten(1, (-1, 2))[0].permute(0, 2, 3, 1) * sides
    close(moved - still, expected[:, :, :, None].expand_as(still), 1e-12)


def test_offset_layer() -> None:
    pool = DeformableRoIPool(RoIAlign(7), 16, offset_size=(3, 5))
    assert [tuple(p.shape) for p in pool.offset_parameters()] == [(30, 16 * 49), (30,)]
    assert not any(p.any() for p in pool.offset_parameters())
    assert pool.rate_factors == {"offset": 0.01}
    e = DeformablePositionSensitive(PositionSensitive(RoundedSamples(7)), 32, 21, classes=21)
    assert e.scores.out_channels == 49 * 21
    assert e.offset.out_channels == 2 * 49 * 21
    assert not any(p.any() for p in e.offset.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 2, 3), (2, 2, 2, 3), (1, 2, 6), (1, 2, 0, 3), (1, 0, 2, 3)])
def test_bad_offsets_raise(shape: tuple[int, ...]) -> None:
    r = regions([INSIDE])
    with pytest.raises(ValueError, match=r"offsets: expected shape \[1, 2 D, rows, columns\]"):
        deformed_samples(PositionSensitive(RoIAlign((2, 3))), [feature_map(6)], r, r.image, torch.zeros(shape))


def test_offsets_of_classes_need_position_sensitive_channels() -> None:
    r = regions([INSIDE])
    with pytest.raises(ValueError, match="offsets: expected 2 channels"):
        deformed_samples(RoIAlign((2, 3)), [feature_map()], r, r.image, torch.zeros(1, 4, 2, 3))


def test_bad_input_raises() -> None:
    x, r = feature_map(5), regions([INSIDE])
    with pytest.raises(ValueError, match="x: expected 3 channels a part, got 5"):
        DeformableRoIPool(RoIAlign(2), 3).double()(x, r)
    with pytest.raises(ValueError, match="shift: expected None"):
        DeformableRoIPool(RoIPool(2), 5).double()(x, r)
    with pytest.raises(ValueError, match="channels: expected a positive multiple of 2 classes, got 5"):
        DeformablePositionSensitive(PositionSensitive(RoIAlign(2)), 3, 5, classes=2)
    with pytest.raises(ValueError, match="channels: expected a positive number, got 0"):
        DeformableRoIPool(RoIAlign(2), 0)
    with pytest.raises(ValueError, match="samples: expected a positive number"):
        RoundedSamples(7, samples=0)
