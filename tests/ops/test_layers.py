"""The layer classes beside torchvision's: constructors, attributes, state dicts and results."""

import inspect
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import regio.ops
from regio import ops
from tests.ops.parity import rois, tensor

LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("RoIPool", {"output_size": (2, 3), "spatial_scale": 0.25}),
    ("RoIAlign", {"output_size": 2, "spatial_scale": 0.25, "sampling_ratio": 2, "aligned": True}),
    ("PSRoIPool", {"output_size": 2, "spatial_scale": 0.25}),
    ("PSRoIAlign", {"output_size": 2, "spatial_scale": 0.25, "sampling_ratio": 2}),
    ("DeformConv2d", {"in_channels": 8, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2}),
    ("MultiScaleRoIAlign", {"featmap_names": ["0", "1"], "output_size": 3, "sampling_ratio": 2}),
]


@pytest.mark.parametrize(("name", "arguments"), LAYERS)
def test_constructor_attributes_repr_and_state_dict(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = getattr(ops, name)(**arguments)
    torch.manual_seed(0)
    theirs = getattr(torchvision.ops, name)(**arguments)
    assert repr(ours) == repr(theirs)
    assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
    assert vars(ours).keys() == vars(theirs).keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(("name", "arguments"), LAYERS[:4])
def test_pooling_layers(name: str, arguments: dict[str, Any]) -> None:
    x, boxes = tensor(2, 8, 9, 11), rois()
    ours, theirs = getattr(ops, name)(**arguments), getattr(torchvision.ops, name)(**arguments)
    torch.testing.assert_close(ours(x, boxes), theirs(x, boxes), rtol=0, atol=1e-10)


@pytest.mark.parametrize("masked", [True, False])
def test_deform_conv(masked: bool) -> None:
    ours = ops.DeformConv2d(**LAYERS[4][1]).double()
    theirs = torchvision.ops.DeformConv2d(**LAYERS[4][1]).double()
    theirs.load_state_dict(ours.state_dict())
    x, offset = tensor(2, 8, 9, 11), tensor(2, 36, 9, 11, seed=1)
    mask = (tensor(2, 18, 9, 11, seed=2),) if masked else ()
    torch.testing.assert_close(ours(x, offset, *mask), theirs(x, offset, *mask), rtol=0, atol=1e-10)


def pyramid(levels: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Maps of a batch of two images, the larger 200 x 304, at strides 8, 16, ..., and one that no layer names."""
    sizes = [(25, 38), (13, 19), (7, 10)][:levels]
    maps = {str(i): tensor(2, 3, *size, dtype=dtype, seed=i) for i, size in enumerate(sizes)}
    return maps | {"pool": tensor(2, 3, 4, 5, dtype=dtype)}


def boxes_of_all_sizes(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    corner = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 150
    side = 2 ** (torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * 6 + 3)
    degenerate = torch.tensor([[10.0, 10, 50, 10], [50, 10, 10, 50], [50, 50, 10, 10], [0, 0, 1000, 1000]])
    boxes = torch.cat([corner, corner + side], 1).to(dtype)
    return [torch.cat([boxes[:25], degenerate.to(dtype)]), boxes[25:]]


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("ratio", [2, 0])
def test_multi_scale_parity(levels: int, ratio: int) -> None:
    names, sizes = [str(i) for i in range(levels)], [(180, 304), (200, 290)]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        x, boxes = pyramid(levels, dtype), boxes_of_all_sizes(dtype)
        arguments = (names, (2, 3), ratio)
        ours, theirs = ops.MultiScaleRoIAlign(*arguments), torchvision.ops.MultiScaleRoIAlign(*arguments)
        torch.testing.assert_close(ours(x, boxes, sizes), theirs(x, boxes, sizes), rtol=0, atol=tolerance)


def test_multi_scale_options_and_no_boxes() -> None:
    x, sizes = pyramid(3), [(180, 304), (200, 290)]
    options = {"canonical_scale": 100, "canonical_level": 3}
    ours = ops.MultiScaleRoIAlign(["0", "1", "2"], 2, 2, **options)
    theirs = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 2, 2, **options)
    boxes = boxes_of_all_sizes()
    torch.testing.assert_close(ours(x, boxes, sizes), theirs(x, boxes, sizes), rtol=0, atol=1e-10)
    assert ours(x, [boxes[0][:0]] * 2, sizes).shape == (0, 3, 2, 2)


def test_multi_scale_reads_a_left_out_level_from_the_last_map() -> None:
    """A box of level 5 where the maps are of levels 3 and 5: torchvision takes it for the third map and gives zeros."""
    x, boxes = pyramid(3), [torch.tensor([[0.0, 0, 600, 600]], dtype=torch.float64)]
    y = ops.MultiScaleRoIAlign(["0", "2"], 2, 2)(x, boxes, [(200, 304)])
    torch.testing.assert_close(y, ops.roi_align(x["2"], boxes, 2, 1 / 32, 2), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_multi_scale_compiles_without_a_graph_break() -> None:
    layer, x, boxes = ops.MultiScaleRoIAlign(["0", "1", "2"], 2, 2), pyramid(3), boxes_of_all_sizes()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected = layer(x, boxes, [(200, 304)])
    torch.testing.assert_close(compiled(x, boxes, [(200, 304)]), expected, rtol=0, atol=1e-10)


def test_multi_scale_bad_input_raises() -> None:
    layer = ops.MultiScaleRoIAlign(["a"], 2, 2)
    with pytest.raises(ValueError, match="^x: expected maps of the names"):
        layer(pyramid(1), boxes_of_all_sizes(), [(200, 304)])
    with pytest.raises(ValueError, match="^image_shapes: expected"):
        layer({"a": tensor(2, 3, 25, 38)}, boxes_of_all_sizes(), [])


def test_public_names() -> None:
    """Every name that torchvision shares is there; what the module exports exists."""
    shared = ["roi_pool", "roi_align", "ps_roi_pool", "ps_roi_align", "deform_conv2d", "nms", "batched_nms", "box_iou"]
    assert {*shared, *(name for name, _ in LAYERS)} <= set(regio.ops.__all__)
    assert all(hasattr(regio.ops, name) for name in regio.ops.__all__)
    for name in shared:
        ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ops, torchvision.ops))
        assert list(ours) == list(theirs)
        assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
