"""What every region extractor promises: one test class that the tests of each extractor inherit.

    from tests.regions.contract import ExtractorContract

    class TestRoIAlign(ExtractorContract):
        def make(self, channels, bins):
            return RoIAlign(bins)

        def reference(self, extractor, x, r):
            ...nested loops in float64, returning [R, C, *bins]...

`make` gives a module in its default dtype; the contract converts it. The attributes say where an extractor
differs; `contraction` defines how its weights enter, where that is not the plain sum over the cells of each channel.
"""

import copy
import io

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from regio.regions.base import RegionExtractor, contract
from regio.types import FeatureMap, Regions

# In pixels of a 36 x 44 image: inside, the whole image, thin, across a border, a point, outside, far outside.
BOXES = [
    [5.3, 4.1, 30.9, 29.9],
    [0.0, 0.0, 44.0, 36.0],
    [10.2, 3.3, 11.1, 31.7],
    [-13.7, 17.2, 12.9, 51.3],
    [20.6, 14.9, 20.6, 14.9],
    [47.1, 39.3, 58.2, 45.8],
    [-900.0, -800.0, -500.0, -700.0],
]
INSIDE = BOXES[0]


def feature_map(channels: int = 3, dtype: torch.dtype = torch.float64, images: int = 2, seed: int = 0) -> FeatureMap:
    """Random features [images, channels, 9, 11] at stride 4."""
    data = torch.randn(images, channels, 9, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return FeatureMap(data.to(dtype), 4)


def regions(boxes: list[list[float]] = BOXES, dtype: torch.dtype = torch.float64, images: int = 2) -> Regions:
    """`boxes`, dealt out to the images in turn."""
    return Regions(torch.tensor(boxes, dtype=dtype).reshape(-1, 4), torch.arange(len(boxes)) % images)


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


coordinate = st.floats(-30, 70, width=32)
box_strategy = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])]
)


class OnTensors(torch.nn.Module):
    """An extractor as a module of plain tensors, at stride 4."""

    def __init__(self, extractor: RegionExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, data: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        return self.extractor(FeatureMap(data, 4), Regions(boxes, image))


class ExtractorContract:
    """Laws of `RegionExtractor`. A subclass gives `make` and `reference`, and may change the attributes."""

    channels = 3
    bins = (2, 3)  # not square, so that a swap of the axes shows
    box_gradient = True  # boxes receive gradients
    weights_sum_to_one = True  # of a box inside the image
    in_place = True  # features may be changed in place
    exports_any_number_of_boxes = True  # or only as many as the example has
    tolerance = 1e-4  # float32 against float64, relative and absolute
    low_precision_tolerance = 3e-2  # bfloat16 and float16 against float32

    @property
    def in_channels(self) -> int:
        """Channels of the maps that are read; `channels` is that of the features."""
        return self.channels

    def make(self, channels: int, bins: tuple[int, int]) -> RegionExtractor:
        raise NotImplementedError

    def reference(self, extractor: RegionExtractor, x: FeatureMap, r: Regions) -> Tensor:
        raise NotImplementedError

    def contraction(self, extractor: RegionExtractor, x: FeatureMap, r: Regions) -> Tensor:
        """The features [R, C, K] by the definition, from the extractor's weights."""
        return contract(extractor.weights(x, r), x, r)

    def extractor(self, dtype: torch.dtype = torch.float64) -> RegionExtractor:
        torch.manual_seed(0)
        return self.make(self.channels, self.bins).to(dtype)

    def test_shape_and_dtype(self) -> None:
        for dtype in (torch.float32, torch.float64):
            out = self.extractor(dtype)(feature_map(self.in_channels, dtype), regions(dtype=dtype))
            assert out.shape == (len(BOXES), self.channels, *self.bins)
            assert out.dtype == dtype

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_boxes_of_half_precision_are_read_as_they_are(self, dtype: torch.dtype) -> None:
        """What is computed from them is not rounded to their precision."""
        e, x, r = self.extractor(torch.float32), feature_map(self.in_channels, torch.float32), regions(dtype=dtype)
        close(e(x, r), e(x, Regions(r.boxes.float(), r.image)), 1e-6)
        close(e.weights(x, r), e.weights(x, Regions(r.boxes.float(), r.image)), 1e-6)

    def test_forward_is_the_contraction_of_weights(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions()
        close(e(x, r), self.contraction(e, x, r).unflatten(2, self.bins), 1e-10)

    def test_forward_equals_nested_loops(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions()
        close(e(x, r), self.reference(e, x, r), 1e-10)

    def test_float32_is_close_to_float64(self) -> None:
        expected = self.extractor()(feature_map(self.in_channels), regions())
        out = self.extractor(torch.float32)(feature_map(self.in_channels, torch.float32), regions(dtype=torch.float32))
        close(out.double(), expected, self.tolerance)

    def test_weights_shape_and_sum(self) -> None:
        e, x = self.extractor(), feature_map(self.in_channels)
        w = e.weights(x, regions([INSIDE, INSIDE]))
        assert w.shape[0] == 2
        assert w.shape[1] in (1, self.channels)
        assert w.shape[2:] == (self.bins[0] * self.bins[1], *x.size)
        if self.weights_sum_to_one:
            close(w.sum((3, 4)), torch.ones_like(w.sum((3, 4))), 1e-10)

    def test_mean_weights_are_those_of_the_channels(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions()
        close(e.mean_weights(x, r), e.weights(x, r).mean(1, keepdim=True), 1e-12)

    def test_gradients(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions([INSIDE, BOXES[2], BOXES[3]])
        names = [name for name, _ in e.named_parameters()]
        inputs = [x.data, r.boxes, *(p.detach() for p in e.parameters())]
        flags = [True, self.box_gradient, *(True for _ in names)]
        inputs = [i.clone().requires_grad_(flag) for i, flag in zip(inputs, flags, strict=True)]

        def run(data: Tensor, boxes: Tensor, *parameters: Tensor) -> Tensor:
            arguments = (FeatureMap(data, x.stride), Regions(boxes, r.image))
            return torch.func.functional_call(e, dict(zip(names, parameters, strict=True)), arguments)

        assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-5)

        def run_row(row: Tensor) -> Tensor:  # every entry of the Jacobian, for one row of cells
            return run(torch.cat([x.data[:, :, :4], row, x.data[:, :, 5:]], 2), *inputs[1:]).sum((2, 3))

        assert torch.autograd.gradcheck(run_row, x.data[:, :, 4:5].clone().requires_grad_(), atol=1e-5)

    def test_backward_is_deterministic(self) -> None:
        e, r = self.extractor(torch.float32), regions(BOXES * 3, torch.float32)
        gradients = []
        for _ in range(2):
            x = feature_map(self.in_channels, torch.float32)
            x.data.requires_grad_()
            e(x, r).square().sum().backward()
            gradients.append(x.data.grad)
        assert torch.equal(gradients[0], gradients[1])

    def test_features_may_be_changed_in_place(self) -> None:
        """As by ``nn.ReLU(inplace=True)`` after it."""
        if not self.in_place:
            return
        e, x, r = self.extractor(torch.float32), feature_map(self.in_channels, torch.float32), regions(BOXES * 3)
        r = Regions(r.boxes.float(), r.image)
        gradients = []
        for relu in (torch.relu, torch.relu_):
            data = x.data.clone().requires_grad_()
            relu(e(FeatureMap(data, x.stride), r)).sum().backward()
            gradients.append(data.grad)
        assert torch.equal(gradients[0], gradients[1])

    def test_a_constant_map_gives_boxes_no_gradient_at_its_border(self) -> None:
        """Not where a sample lies on the last row or column either: both one-sided derivatives are 0 there."""
        e, x = self.extractor(), feature_map(self.in_channels)
        height, width = (4.0 * side for side in x.size)  # cells of four pixels
        r = regions([[0.0, 0.0, width, height], [width - 4, height - 4, width, height], INSIDE])
        r.boxes.requires_grad_()
        out = e(FeatureMap(torch.ones_like(x.data), x.stride), r)
        if not self.box_gradient or not torch.allclose(out, torch.ones_like(out)):
            return  # boxes get no gradients, or the map ends in zeros
        out.sum().backward()
        if r.boxes.grad is not None:
            close(r.boxes.grad, torch.zeros_like(r.boxes.grad), 1e-9)

    def test_zero_boxes(self) -> None:
        e, x = self.extractor(), feature_map(self.in_channels)
        x.data.requires_grad_()
        out = e(x, regions([]))
        assert out.shape == (0, self.channels, *self.bins)
        out.sum().backward()
        assert x.data.grad is None or not x.data.grad.any()
        assert e.weights(x, regions([])).shape[0] == 0

    @pytest.mark.parametrize("index", [-1, 2])
    def test_image_index_out_of_range_raises(self, index: int) -> None:
        r = Regions(torch.tensor([INSIDE], dtype=torch.float64), torch.tensor([index]))
        with pytest.raises(ValueError, match="image: expected an index in"):
            self.extractor()(feature_map(self.in_channels), r)

    @pytest.mark.parametrize(
        "box", [[0.0, 0.0, float("nan"), 4.0], [0.0, 0.0, float("inf"), 4.0], [5.0, 0.0, 4.0, 4.0]]
    )
    def test_bad_box_raises(self, box: list[float]) -> None:
        with pytest.raises(ValueError, match="boxes: expected finite"):
            self.extractor()(feature_map(self.in_channels), regions([INSIDE, box]))

    def test_each_box_reads_its_own_image(self) -> None:
        e, x = self.extractor(), feature_map(self.in_channels)
        boxes = torch.tensor([INSIDE, INSIDE], dtype=torch.float64)
        out = e(x, Regions(boxes, torch.tensor([1, 0])))
        alone = e(FeatureMap(x.data[1:], x.stride), Regions(boxes[:1], torch.tensor([0])))
        close(out[:1], alone, 1e-12)
        assert not torch.allclose(out[0], out[1])

    def test_order_of_boxes_does_not_matter(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions()
        order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
        close(e(x, r[order]), e(x, r)[order], 1e-12)

    def test_memory_format_does_not_matter(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions()
        expected = e(x, r)
        padded = torch.nn.functional.pad(x.data, (1, 2, 3, 4))[:, :, 3:-4, 1:-2]
        for data in (x.data.to(memory_format=torch.channels_last), padded, x.data.mT.contiguous().mT):
            assert data.stride() != x.data.stride()
            gradient = data.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            close(e(FeatureMap(data, x.stride), r), expected, 1e-12)
            e(FeatureMap(gradient, x.stride), r).sum().backward()
            plain = x.data.detach().clone().requires_grad_()
            e(FeatureMap(plain, x.stride), r).sum().backward()
            close(gradient.grad, plain.grad, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_features(self, dtype: torch.dtype) -> None:
        x, r = feature_map(self.in_channels, torch.float32), regions(dtype=torch.float32)
        e = self.extractor(torch.float32)
        rounded = FeatureMap(x.data.to(dtype).float(), x.stride)
        low = FeatureMap(x.data.to(dtype).requires_grad_(), x.stride)
        with torch.autocast("cpu", dtype):
            out = e(low, r)
            mixed = e(x, r)
        assert out.dtype == dtype
        close(out.float(), e(rounded, r), self.low_precision_tolerance)
        close(mixed.float(), e(x, r), self.low_precision_tolerance)
        out.float().square().sum().backward()
        rounded.data.requires_grad_()
        e(rounded, r).square().sum().backward()
        scale = float(rounded.data.grad.abs().max())
        close(low.data.grad.float() / scale, rounded.data.grad / scale, self.low_precision_tolerance)

    @pytest.mark.slow
    def test_compiles_without_a_graph_break(self) -> None:
        """In one graph, with its backward; and exported, for any number of boxes where the attribute allows it."""
        e, x = self.extractor(torch.float32), feature_map(self.in_channels, torch.float32)
        r, run = regions(dtype=torch.float32), OnTensors(e)
        torch.compiler.reset()
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        data = [x.data.clone().requires_grad_() for _ in range(2)]
        out, expected = compiled(data[0], r.boxes, r.image), run(data[1], r.boxes, r.image)
        close(out, expected, 1e-5)
        out.square().sum().backward()
        expected.square().sum().backward()
        close(data[0].grad, data[1].grad, 1e-5)
        count = {0: torch.export.Dim("count")} if self.exports_any_number_of_boxes else None
        shapes = (None, count, count)
        exported = torch.export.export(run, (x.data, r.boxes, r.image), dynamic_shapes=shapes).module()
        some = r[torch.tensor([4, 0, 2])] if self.exports_any_number_of_boxes else r
        close(exported(x.data, some.boxes, some.image), e(x, some), 1e-5)

    def test_copy_and_pickle(self) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions()
        stream = io.BytesIO()
        torch.save(e, stream)
        stream.seek(0)
        for other in (copy.deepcopy(e), torch.load(stream, weights_only=False)):
            assert torch.equal(other(x, r), e(x, r))

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.differing_executors])
    @given(boxes=st.lists(box_strategy, min_size=1, max_size=5))
    def test_any_boxes(self, boxes: list[list[float]]) -> None:
        e, x, r = self.extractor(), feature_map(self.in_channels), regions(boxes)
        out = e(x, r)
        assert torch.isfinite(out).all()
        close(out, self.contraction(e, x, r).unflatten(2, self.bins), 1e-9)
