"""Where stacked deformable filters read, by hand."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regio.analysis import (
    LayerOffsets,
    offsets_in_backbone,
    recorded_offsets,
    stacked_layers,
    stacked_sampling_points,
)
from regio.backbones import Backbone, Level
from regio.deformable_conv import DeformableConv2d, DeformableConv2dSame
from regio.detector import TwoStageDetector
from regio.regions import RoIAlign
from regio.systems import faster_rcnn


def layer(
    size: int, *, stride: int = 1, dilation: int = 1, padding: int | None = None, name: str = "a"
) -> LayerOffsets:
    """A layer of 3 x 3 taps without offsets on a map of `size` x `size` cells."""
    padding = dilation if padding is None else padding
    out = (size + 2 * padding - 2 * dilation - 1) // stride + 1
    pairs = (stride,) * 2, (padding,) * 2, (dilation,) * 2
    return LayerOffsets(name, torch.zeros(1, 18, out, out), (size, size), (3, 3), *pairs)


def shifted(of: LayerOffsets, tap: int, offset: tuple[float, float], at: tuple[int, int]) -> LayerOffsets:
    """`of` with one tap of one filter moved by (y, x)."""
    of.offsets[0, 2 * tap : 2 * tap + 2, at[0], at[1]] = torch.tensor(offset)
    return of


def counted(points: Tensor) -> dict[tuple[float, float], int]:
    unique, counts = points.unique(dim=0, return_counts=True)
    return {(x, y): n for (x, y), n in zip(unique.tolist(), counts.tolist(), strict=True)}


def test_without_offsets_one_layer_reads_its_grid() -> None:
    """Around cell (row 4, column 6), at stride 16, with dilation 2."""
    found = stacked_sampling_points([layer(20, dilation=2)], (4, 6), 16)
    rows, columns = [(i + 0.5) * 16 for i in (2, 4, 6)], [(i + 0.5) * 16 for i in (4, 6, 8)]
    assert found.tolist() == [[x, y] for y in rows for x in columns]


def test_without_offsets_three_layers_read_their_receptive_field() -> None:
    """Steps of 1 + 1 + 2 cells to each side: of 9 columns, those reached in 1, 2, 4, 5, 6 ways of 27, and their
    products."""
    stack = [layer(30), layer(30), layer(30, dilation=2)]
    found = stacked_sampling_points(stack, (10, 12), 8)
    assert found.shape == (729, 2) and found.dtype == torch.float64
    ways = {-4: 1, -3: 2, -2: 4, -1: 4, 0: 5, 1: 4, 2: 4, 3: 2, 4: 1}
    assert sum(ways.values()) == 27
    expected = {((12.5 + u) * 8, (10.5 + v) * 8): n * m for u, n in ways.items() for v, m in ways.items()}
    assert counted(found) == expected


def test_a_strided_layer_widens_what_is_below_it() -> None:
    """The filter at 3 of the top reads 2, 3, 4 of the map that the strided layer gives, whose filters are centred at
    cells 4, 6, 8 of the map below, and read 3 to 9 of it."""
    stack = [layer(17, stride=2, name="below"), layer(9, name="above")]
    found = stacked_sampling_points(stack, (3, 3), 4)
    ways = {3: 1, 4: 1, 5: 2, 6: 1, 7: 2, 8: 1, 9: 1}
    expected = {((u + 0.5) * 4, (v + 0.5) * 4): n * m for u, n in ways.items() for v, m in ways.items()}
    assert counted(found) == expected


def test_a_strided_layer_on_top() -> None:
    """Its filter (2, 1) is centred at cell (4, 2) of its input; without padding at (5, 3)."""
    for padding, centre in ((1, (4, 2)), (0, (5, 3))):
        found = stacked_sampling_points([layer(16), layer(16, stride=2, padding=padding)], (2, 1), 1)
        assert found.mean(0).tolist() == [centre[1] + 0.5, centre[0] + 0.5]
        assert found.amin(0).tolist() == [centre[1] - 1.5, centre[0] - 1.5]


def test_a_shifted_tap_moves_what_is_below_it() -> None:
    """Of three layers, a tap of the top one has 81 points below it: moved by 3 rows and -2 columns, so are they."""
    plain = [layer(30), layer(30), layer(30)]
    before = stacked_sampling_points(plain, (14, 15), 16).reshape(9, 81, 2)
    plain[2] = shifted(layer(30), 5, (3.0, -2.0), (14, 15))
    after = stacked_sampling_points(plain, (14, 15), 16).reshape(9, 81, 2)
    torch.testing.assert_close(after[5] - before[5], torch.tensor([-2.0, 3.0]).double().expand(81, 2) * 16)
    others = [0, 1, 2, 3, 4, 6, 7, 8]
    assert torch.equal(after[others], before[others])


def test_a_tap_between_cells_is_followed_to_the_nearest_filter() -> None:
    """A tap of the top moved by 0.6 rows lies nearest to the next filter below: its points move by a whole row. In the
    bottom layer points are where they are: a tap there moved by 0.6 rows has its points at 0.6 rows."""
    top = shifted(layer(30, name="top"), 0, (0.6, 0.4), (10, 10))
    moved = stacked_sampling_points([layer(30), top], (10, 10), 1).reshape(9, 9, 2)
    still = stacked_sampling_points([layer(30), layer(30)], (10, 10), 1).reshape(9, 9, 2)
    assert torch.equal(moved[0] - still[0], torch.tensor([0.0, 1.0]).double().expand(9, 2))
    bottom = shifted(layer(30), 4, (0.6, 0.4), (9, 9))  # the filter below the first tap
    own = stacked_sampling_points([bottom, layer(30)], (10, 10), 1).reshape(9, 9, 2)
    torch.testing.assert_close((own - still)[0, 4], torch.tensor([0.4, 0.6]).double(), atol=1e-6, rtol=0)
    assert torch.equal(own[1:], still[1:])


def test_what_reads_nothing_is_left_out() -> None:
    """In the corner, 4 of the 9 taps are on the map, and each of these has 4, 6, 6 and 9 below it."""
    assert len(stacked_sampling_points([layer(8)], (0, 0), 1)) == 4
    assert len(stacked_sampling_points([layer(8), layer(8)], (0, 0), 1)) == 25
    almost = shifted(layer(8), 0, (0.25, 0.5), (0, 0))  # at (-0.75, -0.5), where the cell (0, 0) is read
    assert len(stacked_sampling_points([almost], (0, 0), 1)) == 5
    assert len(stacked_sampling_points([layer(8), almost], (0, 0), 1)) == 29
    assert len(stacked_sampling_points([shifted(layer(8), 4, (0, 7.5), (0, 0))], (0, 0), 1)) == 4
    assert len(stacked_sampling_points([shifted(layer(8), 4, (0, 8.0), (0, 0))], (0, 0), 1)) == 3


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize("same", [False, True])
def test_points_are_those_that_the_convolutions_read(size: int, same: bool) -> None:
    """With whole offsets, the gradient of a cell of the top map is not zero at the cells that are read, and there
    alone. same: of convolutions that pad as TensorFlow does, by more or less before the first cell."""
    torch.manual_seed(0)
    kind = DeformableConv2dSame if same else DeformableConv2d
    convolutions = [
        kind(1, 1, 3, padding=0 if same else 2, dilation=2),
        kind(1, 1, 3, stride=2, padding=0 if same else 1),
        kind(1, 1, 3, padding=0 if same else 1),
    ]
    with torch.no_grad():
        for each in convolutions:
            each.weight.fill_(1.0)
            each.offset.bias.copy_(torch.randint(-3, 4, each.offset.bias.shape).float())
    network = nn.Sequential(*convolutions).double()
    x = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    with recorded_offsets(network) as layers:
        network(x)[0, 0, 9, 8].backward()
    assert [each.name for each in layers] == ["0", "1", "2"]
    points = stacked_sampling_points(layers, (9, 8), 1)
    assert points.shape == (729, 2)
    assert x.grad is not None
    expected = {(u + 0.5, v + 0.5): round(float(x.grad[0, 0, v, u])) for v, u in x.grad[0, 0].nonzero().tolist()}
    assert counted(points) == expected


def test_offset_groups_are_followed_one_at_a_time() -> None:
    both = layer(12)
    second = torch.zeros(1, 18, 12, 12)
    second[0, 1::2] = 2.0  # x
    both = LayerOffsets("both", torch.cat([both.offsets, second], 1), (12, 12))
    first, other = (stacked_sampling_points([both], (5, 5), 4, group=group) for group in (0, 1))
    assert torch.equal(other - first, torch.tensor([8.0, 0.0]).double().expand(9, 2))
    assert both.groups == 2 and float(both.lengths.mean()) == 1
    with pytest.raises(ValueError, match=r"group: expected 0 \.\. 1, those of both, got 2"):
        stacked_sampling_points([both], (5, 5), 4, group=2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="layers: expected at least one, got none"):
        stacked_sampling_points([], (0, 0), 1)
    with pytest.raises(ValueError, match=r"expected above, which reads a map of \(8, 8\), behind .* got below, which"):
        stacked_sampling_points([layer(8, stride=2, name="below"), layer(8, name="above")], (0, 0), 1)
    with pytest.raises(ValueError, match=r"location: expected \(row, column\) on a map of 8 x 8, got \(8, 0\)"):
        stacked_sampling_points([layer(8)], (8, 0), 1)


def test_the_last_layers_that_fit_on_each_other_are_stacked() -> None:
    layers = [layer(16, name="a"), layer(16, stride=2, name="b"), layer(8, name="c"), layer(8, name="d")]
    assert [each.name for each in stacked_layers(layers)] == ["b", "c", "d"]
    assert [each.name for each in stacked_layers(layers, 9)] == ["a", "b", "c", "d"]
    assert [each.name for each in stacked_layers([layers[0], layers[2], layers[3]])] == ["c", "d"]
    assert stacked_layers([]) == []


class Body(nn.Module):
    """Maps of strides 4 and 8; the last layers are deformable, one of them strided."""

    def __init__(self, modulated: bool = False, offset_groups: int = 1) -> None:
        super().__init__()
        more = {"padding": 1, "modulated": modulated, "offset_groups": offset_groups}
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.first, self.strided, self.last = (DeformableConv2d(4, 4, 3, stride=stride, **more) for stride in (1, 2, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [x, self.last(self.strided(self.first(x)))]


def deformable_detector(levels: tuple[int, ...] = (3,), **body: bool | int) -> TwoStageDetector:
    """A small untrained one, whose offsets are a few cells long and depend on the image."""
    torch.manual_seed(0)
    own = Body(**body)  # type: ignore[arg-type]
    with torch.no_grad():
        for each in (own.first, own.strided, own.last):
            each.offset.weight.normal_(std=0.5)
            each.offset.bias.normal_(std=0.5)
    gives = [Level(2, 4, 4), Level(3, 4, 8)]
    backbone = Backbone(own, gives, levels=levels, frozen_norm=False)
    made = faster_rcnn(7, backbone, RoIAlign(2), channels=8, hidden=16, short_side=160, long_side=400)
    return made.eval()


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("levels", [(3,), (2, 3)])
def test_layers_of_a_detector_have_their_strides(levels: tuple[int, ...], modulated: bool) -> None:
    """Also that whose output is no map of the backbone; and it does not matter who else hooks the layers."""
    detector = deformable_detector(levels, modulated=modulated, offset_groups=2)
    image = torch.randint(0, 256, (3, 130, 170), dtype=torch.uint8)
    batch, maps, layers = offsets_in_backbone(detector, [image])
    assert [each.name for each in layers] == ["body.first", "body.strided", "body.last"]
    assert [each.output_stride for each in layers] == [4, 8, 8]
    assert [each.stride for each in layers] == [(1, 1), (2, 2), (1, 1)]
    height, width = batch.data.shape[2:]
    assert [each.output_size for each in layers] == [(height // s, width // s) for s in (4, 8, 8)]
    assert all(each.offsets.shape[1] == 36 and each.groups == 2 for each in layers)
    torch.testing.assert_close(maps[-1].data, detector.features([image])[1][-1].data)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detector.modules())


def test_a_layer_of_unknown_stride_is_named() -> None:
    class Apart(Body):
        """After the deformable layers there is another, plain one, that halves the map."""

        def forward(self, x: Tensor) -> list[Tensor]:
            return [nn.functional.avg_pool2d(each, 2) for each in super().forward(x)]

    backbone = Backbone(Apart(), [Level(3, 4, 8), Level(4, 4, 16)], levels=(4,), frozen_norm=False)
    detector = faster_rcnn(7, backbone, RoIAlign(2), channels=8, hidden=16, short_side=64, long_side=64).eval()
    with pytest.raises(ValueError, match=r"body.last: expected an output of the size of a map .* got 8 x 8"):
        offsets_in_backbone(detector, [torch.zeros(3, 64, 64, dtype=torch.uint8)])


def test_offsets_are_recorded_in_float32_and_once_a_run() -> None:
    conv = DeformableConv2d(2, 2, 3, padding=1).to(torch.bfloat16)
    with recorded_offsets(conv) as layers:
        conv(torch.zeros(1, 2, 5, 4, dtype=torch.bfloat16))
        conv(torch.zeros(1, 2, 6, 4, dtype=torch.bfloat16))
    conv(torch.zeros(1, 2, 7, 4, dtype=torch.bfloat16))
    assert [each.input_size for each in layers] == [(5, 4), (6, 4)]
    assert all(each.offsets.dtype == torch.float32 and not each.offsets.requires_grad for each in layers)


def test_code_of_the_page_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "deformable.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 1
    exec(blocks[0], {})
