"""Traced graphs, meta and fake tensors, quantized tensors: the functions and layers beside torchvision's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from regio import ops
from tests.ops.parity import rois, tensor

X, BOXES = tensor(2, 8, 9, 11), rois()
OFFSET, MASK, WEIGHT = tensor(2, 18, 9, 11, seed=1), tensor(2, 9, 9, 11, seed=2), tensor(6, 8, 3, 3, seed=3)
SCORES = torch.arange(len(BOXES), dtype=torch.float64)
LABELS = torch.arange(len(BOXES)) % 2
DETECTIONS = BOXES[:, 1:]
CELLS = tensor(2, 9 * 11 + 4 * 5, 2, 4)
LOCATIONS, ATTENTION = tensor(2, 3, 2, 2, 4, 2), tensor(2, 3, 2, 2, 4)

# Each with the tensors that a graph is traced with, and whether torchvision has it.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], bool]] = {
    "roi_pool": (lambda m, x, b: m.roi_pool(x, b, 2, 0.25), (X, BOXES), True),
    "roi_align": (lambda m, x, b: m.roi_align(x, b, (2, 3), 0.25, sampling_ratio=2), (X, BOXES), True),
    "adaptive roi_align": (lambda m, x, b: m.roi_align(x, b, 2, 0.25), (X, BOXES), True),
    "roi_align of lists": (lambda m, x, b, c: m.roi_align(x, [b, c], 2, 0.25), (X, DETECTIONS[:4], DETECTIONS), True),
    "ps_roi_pool": (lambda m, x, b: m.ps_roi_pool(x, b, 2, 0.25), (X, BOXES), True),
    "ps_roi_align": (lambda m, x, b: m.ps_roi_align(x, b, 2, 0.25, 2), (X, BOXES), True),
    "deform_conv2d": (
        lambda m, x, o, w, k: m.deform_conv2d(x, o, w, padding=1, mask=k),
        (X, OFFSET, WEIGHT, MASK),
        True,
    ),
    "box_iou": (lambda m, a, b: m.box_iou(a, b), (DETECTIONS, DETECTIONS[:3]), True),
    "prroi_pool": (lambda m, x, b: m.prroi_pool(x, b, 2, 0.25), (X, BOXES), False),
    "roi_warp": (lambda m, x, b: m.roi_warp(x, b, 2, 0.25), (X, BOXES), False),
    "deform_roi_pool": (lambda m, x, b, o: m.deform_roi_pool(x, b, o, 2), (X, BOXES, tensor(12, 2, 2, 2)), False),
    "deform_ps_roi_pool": (lambda m, x, b, o: m.deform_ps_roi_pool(x, b, o, 2), (X, BOXES, tensor(12, 2, 2, 2)), False),
    "modulated_deform_conv2d": (
        lambda m, x, o, k, w: m.modulated_deform_conv2d(x, o, k, w, padding=1),
        (X, OFFSET, MASK, WEIGHT),
        False,
    ),
    "ms_deform_attn": (
        lambda m, v, at, w: m.ms_deform_attn(v, [(9, 11), (4, 5)], [0, 99], at, w),
        (CELLS, LOCATIONS, ATTENTION),
        False,
    ),
}
SUPPRESSIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], bool]] = {
    "nms": (lambda m, b, s: m.nms(b, s, iou_threshold=0.3), (DETECTIONS, SCORES), True),
    "batched_nms": (lambda m, b, s, i: m.batched_nms(b, s, i, 0.3), (DETECTIONS, SCORES, LABELS), True),
}
LAYERS: dict[str, tuple[dict[str, Any], tuple[Tensor, ...]]] = {
    "RoIPool": ({"output_size": 2, "spatial_scale": 0.25}, (X, BOXES)),
    "RoIAlign": ({"output_size": 2, "spatial_scale": 0.25, "sampling_ratio": -1}, (X, BOXES)),
    "PSRoIPool": ({"output_size": 2, "spatial_scale": 0.25}, (X, BOXES)),
    "PSRoIAlign": ({"output_size": 2, "spatial_scale": 0.25, "sampling_ratio": 2}, (X, BOXES)),
    "DeformConv2d": ({"in_channels": 8, "out_channels": 6, "kernel_size": 3, "padding": 1}, (X, OFFSET)),
}


class Calls(nn.Module):
    """A function of tensors as a module with a part before and one after it."""

    def __init__(self, function: Callable[..., Tensor], count: int) -> None:
        super().__init__()
        self.function, self.count = function, count

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *others = (inputs[i] for i in range(self.count))
        return self.function(ops, first * 1, *others) * 2


@pytest.mark.parametrize("name", [*FUNCTIONS, *SUPPRESSIONS])
def test_a_call_is_a_node_of_a_traced_graph(name: str) -> None:
    function, inputs, _ = (FUNCTIONS | SUPPRESSIONS)[name]
    model = Calls(function, len(inputs))
    traced = torch.fx.symbolic_trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert getattr(ops, name.split()[-1] if name != "roi_align of lists" else "roi_align") in targets
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_traced(name: str) -> None:
    options, inputs = LAYERS[name]
    layer = getattr(ops, name)(**options).double()
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(*inputs), layer(*inputs))
    theirs = getattr(torchvision.ops, name)(**options).double()
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(traced(*inputs), theirs(*inputs), rtol=0, atol=1e-10)


class Head(nn.Module):
    """The second stage of a detector, in torchvision's classes or ours."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.align = module.MultiScaleRoIAlign(["a", "b"], 3, 2)
        self.crop = module.RoIAlign(2, 0.25, 2)
        self.fc = nn.Linear(72, 5)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        boxes = [first, second]
        pooled = self.align({"a": y, "b": self.pool(y)}, boxes, [(36, 44), (36, 44)])
        return self.fc(pooled.flatten(1)), self.crop(y, boxes)


def test_features_are_extracted_as_from_torchvisions_layers() -> None:
    torch.manual_seed(0)
    ours, theirs = Head(ops).double().eval(), Head(torchvision.ops).double().eval()
    theirs.load_state_dict(ours.state_dict())
    inputs = X, DETECTIONS[:4], DETECTIONS[4:]
    assert get_graph_node_names(ours) == get_graph_node_names(theirs)
    names = ["conv", "align", "fc", "crop"]
    features, expected = (create_feature_extractor(m, names)(*inputs) for m in (ours, theirs))
    assert list(features) == names
    for name in names:
        torch.testing.assert_close(features[name], expected[name], rtol=0, atol=1e-10)
    for a, b in zip(torch.fx.symbolic_trace(ours)(*inputs), theirs(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_traced_modules_compile_and_check_their_arguments() -> None:
    traced = torch.fx.symbolic_trace(Calls(FUNCTIONS["roi_align"][0], 2))
    torch.compiler.reset()
    compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X, BOXES), traced(X, BOXES))
    with pytest.raises(ValueError, match="^boxes: expected shape"):
        traced(X, BOXES[:, :3])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_meta_and_fake_tensors_give_the_shape(name: str) -> None:
    function, inputs, in_torchvision = FUNCTIONS[name]
    expected = function(ops, *inputs)
    on_meta = [t.to("meta") for t in inputs]
    out = function(ops, *on_meta)
    assert (out.device.type, out.shape, out.dtype) == ("meta", expected.shape, expected.dtype)
    assert out.stride() == expected.stride()
    if in_torchvision:
        assert function(torchvision.ops, *on_meta).shape == out.shape
    with FakeTensorMode() as mode:
        fake = function(ops, *map(mode.from_tensor, inputs))
    assert (fake.device.type, fake.shape, fake.stride()) == ("cpu", expected.shape, expected.stride())


def test_meta_tensors_have_gradients() -> None:
    x, boxes = X.to("meta").requires_grad_(), BOXES.to("meta").requires_grad_()
    ops.roi_align(x, boxes, 2).sum().backward()
    assert x.grad is not None and boxes.grad is not None
    assert (x.grad.shape, boxes.grad.shape) == (x.shape, boxes.shape)


def test_layers_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = ops.DeformConv2d(8, 6, 3, padding=1).double()
    assert layer(X.to("meta"), OFFSET.to("meta")).shape == (2, 6, 9, 11)
    maps, boxes = {"a": X.to("meta"), "b": X[:, :, ::2, ::2].to("meta")}, [DETECTIONS.to("meta")] * 2
    assert ops.MultiScaleRoIAlign(["a", "b"], 3, 2)(maps, boxes, [(36, 44)] * 2).shape == (24, 8, 3, 3)


@pytest.mark.parametrize("name", SUPPRESSIONS)
def test_suppression_has_no_shape_on_the_meta_device(name: str) -> None:
    """It depends on the numbers; torchvision's function raises this error too."""
    function, inputs, _ = SUPPRESSIONS[name]
    for module in (ops, torchvision.ops):
        with pytest.raises(RuntimeError, match="data-dependent shape"):
            function(module, *(t.to("meta") for t in inputs))


def quantized(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    return torch.quantize_per_tensor(x.float(), scale, zero_point, dtype)


about_quantized = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # they are deprecated


@about_quantized
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, 0), (2.0, 10), (0.1, 50)])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32])
def test_roi_align_of_quantized_tensors(aligned: bool, scale: float, zero_point: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = quantized(torch.randint(50, 100, (1, 2, 10, 10), generator=generator), scale, zero_point, dtype)
    boxes = quantized(torch.tensor([[0, 0, 0, 9, 9], [0, 0, 5, 4, 9], [0, 5, 5, 9, 9.0]]), scale, zero_point, dtype)
    y = ops.roi_align(x, boxes, 5, aligned=aligned)
    assert (y.dtype, y.q_scale(), y.q_zero_point()) == (dtype, scale, zero_point)
    expected = quantized(
        ops.roi_align(x.dequantize(), boxes.dequantize(), 5, aligned=aligned), scale, zero_point, dtype
    )
    assert torch.equal(y.int_repr(), expected.int_repr())
    theirs = torchvision.ops.roi_align(x, boxes, 5, aligned=aligned)
    # A result between two steps may be rounded to either, for the sums are not added in one order.
    assert int((y.int_repr().long() - theirs.int_repr().long()).abs().max()) <= 1
    assert torch.equal(ops.RoIAlign(5, 1.0, -1, aligned)(x, [boxes[:, 1:]]).int_repr(), y.int_repr())


@about_quantized
@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, 0), (2.0, 50), (3.0, 10)])
def test_nms_of_quantized_tensors(scale: float, zero_point: int) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(300, 2, generator=generator) * 40], 1)
    # Each score once: torchvision takes equal ones in any order.
    scores = torch.randperm(200, generator=generator)
    boxes, scores = (quantized(t, scale, zero_point, torch.qint32) for t in (boxes[:200], scores * scale))
    kept = ops.nms(boxes, scores, 0.3)
    assert torch.equal(kept, ops.nms(boxes.dequantize(), scores.dequantize(), 0.3))
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.3))
    labels = torch.arange(200) % 3
    expected = ops.batched_nms(boxes.dequantize(), scores.dequantize(), labels, 0.3)
    assert torch.equal(ops.batched_nms(boxes, scores, labels, 0.3), expected)


@about_quantized
def test_other_functions_refuse_quantized_tensors() -> None:
    x = quantized(X, 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match=r"^input: expected a floating point dtype, got torch.quint8"):
        ops.roi_pool(x, BOXES.float(), 2)
