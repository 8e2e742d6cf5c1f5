"""Divergences, effective dilation and counted samples, by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

from regio.analysis import (
    FILTER_CLASSES,
    SIZES,
    by_class,
    count_samples,
    divergence,
    effective_dilation,
    filter_class,
    kl_between_parts,
    kl_of_mask,
    masks_to_cells,
    size_class,
)
from regio.regions import BoxSupport, RoIAlign, Sampled, WholeImage
from regio.types import FeatureMap, Regions


def parts(*rows: list[float]) -> Tensor:
    """Weights [1, 1, K, 1, W] of one box."""
    return torch.tensor(rows)[None, None, :, None]


def regions(*boxes: list[float]) -> Regions:
    return Regions(torch.tensor(boxes, dtype=torch.float32), torch.zeros(len(boxes), dtype=torch.int64))


def test_sizes_are_cocos() -> None:
    assert size_class(torch.tensor([0.0, 1023, 1024, 9216, 9217])).tolist() == [0, 0, 1, 1, 2]


def test_statistics_by_class() -> None:
    found = by_class(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([1, 1, 2]), SIZES)
    assert (found["medium"].count, found["medium"].mean, found["medium"].deviation) == (2, 2.0, 1.0)
    assert (found["large"].count, found["large"].deviation) == (1, 0.0)
    assert found["small"].count == 0 and math.isnan(found["small"].mean)
    with pytest.raises(ValueError, match=r"classes: expected 0 .. 2, one for each of names, got 1 .. 3"):
        by_class(torch.tensor([1.0, 3.0]), torch.tensor([1, 3]), SIZES)
    with pytest.raises(ValueError, match=r"classes: expected shape \[2\]"):
        by_class(torch.tensor([1.0, 3.0]), torch.tensor([1]), SIZES)


def test_divergence_between_two_parts() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = ln(4/3) / 2 and KL(q || p) = 3/4 ln 3 - ln 2."""
    weights = 7 * parts([0.5, 0.5], [0.25, 0.75])  # each part is divided by its sum
    both = math.log(4 / 3) / 2 + 0.75 * math.log(3) - math.log(2)
    assert kl_between_parts(weights).item() == pytest.approx(both / 4)
    assert kl_between_parts(weights, diagonal=False).item() == pytest.approx(both / 2)


def test_divergence_between_three_parts() -> None:
    """p = (1, 0), q = (1/2, 1/2), r = (1/4, 3/4). KL(p || q) = ln 2, KL(p || r) = ln 4; of the others, KL(q || p) and
    KL(r || p) have -ln(floor) on the second cell."""
    far = -math.log(1e-12)
    q_p, r_p = (far - math.log(2)) / 2 - math.log(2) / 2, 0.75 * (far + math.log(0.75)) - math.log(4) / 4
    q_r, r_q = math.log(4 / 3) / 2, 0.75 * math.log(3) - math.log(2)
    expected = math.log(2) + math.log(4) + q_p + r_p + q_r + r_q
    weights = parts([1.0, 0.0], [0.5, 0.5], [0.25, 0.75])
    assert kl_between_parts(weights).item() == pytest.approx(expected / 9)
    assert kl_between_parts(weights, diagonal=False).item() == pytest.approx(expected / 6)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-12, 1e-3]),
    st.sampled_from([1.0, 40.0]),
    st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_divergence_between_parts_is_the_mean_over_all_pairs(
    seed: int, floor: float, scale: float, dtype: torch.dtype
) -> None:
    """Also of sharp distributions, whose weights half precision takes to zero."""
    logits = scale * torch.randn(2, 1, 5, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = logits.softmax(-1).to(dtype).unflatten(3, (3, 4))
    p = weights.double().flatten(3)[:, 0]
    p = p / p.sum(2, keepdim=True)
    pairs = divergence(p[:, :, None], p[:, None], floor=floor)  # [2, 5, 5]
    torch.testing.assert_close(kl_between_parts(weights, floor=floor), pairs.mean((1, 2)))
    torch.testing.assert_close(kl_between_parts(weights, diagonal=False, floor=floor), pairs.sum((1, 2)) / 20)


def test_divergence_of_disjoint_parts_is_bounded_by_the_floor() -> None:
    weights = parts([1.0, 0.0], [0.0, 1.0])
    assert kl_between_parts(weights, diagonal=False).item() == pytest.approx(-math.log(1e-12))
    assert kl_between_parts(weights, diagonal=False, floor=1e-3).item() == pytest.approx(-math.log(1e-3))
    assert kl_between_parts(weights, floor=0.0).item() == math.inf


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_divergence_is_zero_only_between_equal_distributions(seed: int) -> None:
    p, q = torch.rand(2, 3, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)
    assert (divergence(p, p) == 0).all()
    assert (divergence(p, q) > 0).all()
    torch.testing.assert_close(divergence(p, q), (p * (p / q).log()).sum(-1))


def test_weights_are_averaged_over_channels() -> None:
    weights = torch.cat(
        [parts([1.0, 0.0], [0.5, 0.5]), parts([0.0, 1.0], [0.0, 1.0])], 1
    )  # mean (1/2, 1/2), (1/4, 3/4)
    torch.testing.assert_close(kl_between_parts(weights), kl_between_parts(parts([0.5, 0.5], [0.25, 0.75])))


def test_parts_without_weights_or_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights: expected a positive sum over the cells, got 0.0 at box 0, part 1"):
        kl_between_parts(parts([1.0, 0.0], [0.0, 0.0]))
    with pytest.raises(ValueError, match="at least two parts without the diagonal, got 1"):
        kl_between_parts(parts([1.0, 0.0]), diagonal=False)
    with pytest.raises(ValueError, match=r"weights: expected shape \[R, 1 or C, K, H, W\], got \[2, 3\]"):
        kl_between_parts(torch.ones(2, 3))
    assert kl_between_parts(torch.ones(0, 1, 4, 2, 2)).shape == (0,)


def test_divergence_of_the_mask() -> None:
    """The maxima (1/2, 1/2, 3/4, 0) become (2, 2, 3, 0) / 7; the mask is (0, 1/2, 1/2, 0)."""
    weights, mask = parts([0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0]), torch.tensor([[[0.0, 1, 1, 0]]])
    expected = (math.log(7 / 4) + math.log(7 / 6)) / 2
    assert kl_of_mask(weights, mask).item() == pytest.approx(expected)
    assert kl_of_mask(weights, 9 * mask).item() == pytest.approx(expected)
    outside = torch.tensor([[[0.0, 0, 0, 1]]])
    assert kl_of_mask(weights, outside).item() == pytest.approx(-math.log(1e-12))
    assert kl_of_mask(weights, outside, floor=0.0).item() == math.inf


def test_masks_that_do_not_fit_are_refused() -> None:
    weights = parts([0.5, 0.5])
    with pytest.raises(ValueError, match="an empty mask at row 0"):
        kl_of_mask(weights, torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match=r"masks: expected shape \[1, 1, 2\], as the weights, got \[1, 2, 2\]"):
        kl_of_mask(weights, torch.ones(1, 2, 2))


def test_masks_become_shares_of_cells() -> None:
    """A 3 x 5 image at stride 2 on 2 x 4 cells: of the last row and columns, it covers half, a quarter and nothing."""
    x = FeatureMap(torch.zeros(1, 1, 2, 4), stride=2)
    expected = torch.tensor([[[1, 1, 0.5, 0], [0.5, 0.5, 0.25, 0]]], dtype=torch.float64)
    torch.testing.assert_close(masks_to_cells(torch.ones(1, 3, 5, dtype=torch.bool), x), expected)
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, 0, 1:3] = True
    torch.testing.assert_close(masks_to_cells(mask, x)[0, 0], torch.tensor([0.25, 0.25, 0, 0], dtype=torch.float64))
    thin = torch.zeros(1, 300, 400, dtype=torch.bool)
    thin[0, 100:200, 101] = True  # a quarter of a pixel wide, where the image is scaled to 75 x 100
    shares = masks_to_cells(thin, FeatureMap(torch.zeros(1, 1, 10, 13), stride=8), (75, 100))[0]
    assert shares.sum().item() * 64 == pytest.approx(25 * 0.25)
    assert shares[3:6, 3].tolist() == pytest.approx([7 * 0.25 / 64, 8 * 0.25 / 64, 8 * 0.25 / 64])
    half = masks_to_cells(torch.ones(1, 1, 3, dtype=torch.bool), FeatureMap(torch.zeros(1, 1, 1, 2), stride=1.5))
    torch.testing.assert_close(half, torch.full((1, 1, 2), 2 / 3, dtype=torch.float64))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 2.5, 7.0]))
def test_masks_keep_their_area(seed: int, stride: float) -> None:
    masks = torch.rand(2, 9, 13, generator=torch.Generator().manual_seed(seed)) < 0.4
    x = FeatureMap(torch.zeros(1, 1, math.ceil(9 / stride), math.ceil(13 / stride)), stride)
    area = masks_to_cells(masks, x).sum((1, 2)) * stride**2
    torch.testing.assert_close(area, masks.sum((1, 2)).double())


def test_effective_dilation_without_offsets_is_the_dilation() -> None:
    zero = torch.zeros(1, 18, 2, 3)
    assert effective_dilation(zero).shape == (1, 1, 2, 3)
    torch.testing.assert_close(effective_dilation(zero, dilation=(2, 2)), torch.full((1, 1, 2, 3), 2.0))
    eight = (12 + 8 * math.sqrt(2)) / 20
    torch.testing.assert_close(effective_dilation(zero, neighbours=8), torch.full((1, 1, 2, 3), eight))


def test_effective_dilation_by_hand() -> None:
    """The centre moved by half a cell: of 12 distances one is 1.5, one 0.5, two are sqrt(1.25), the others 1."""
    offsets = torch.zeros(1, 2, 9, 2, 1, 1)  # [N, G, tap, (y, x), H, W]
    offsets[0, 1, 4, 1] = 0.5
    found = effective_dilation(offsets.flatten(1, 3)).flatten()
    assert found[0].item() == 1
    assert found[1].item() == pytest.approx((8 + 1.5 + 0.5 + 2 * math.sqrt(1.25)) / 12)
    pair = torch.zeros(1, 4, 1, 1)
    pair[0, 2] = 1.0  # y of the second tap
    assert effective_dilation(pair, (1, 2), (5, 1)).item() == pytest.approx(math.sqrt(2))
    pair[0, 2:] = torch.tensor([0.0, 1.0])[:, None, None]  # x of the second tap
    assert effective_dilation(pair, (1, 2), (5, 1)).item() == pytest.approx(2)


def test_effective_dilation_reads_offsets_as_deformable_convolution_does() -> None:
    """On a map that holds its own coordinates, filters with a single one give the places of the taps."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.rand(1, 18, 5, 5, generator=generator, dtype=torch.float64) * 2 - 1
    coordinates = torch.meshgrid(*[torch.arange(9, dtype=torch.float64)] * 2, indexing="ij")
    one_hot = torch.eye(9, dtype=torch.float64).reshape(9, 1, 3, 3)
    sampled = [deform_conv2d(c[None, None], offsets, one_hot, dilation=2)[0] for c in coordinates]
    places = torch.stack(sampled, -1).unflatten(0, (3, 3))  # [tap row, tap column, H, W, (y, x)]
    down, across = (places[1:] - places[:-1]).norm(dim=-1), (places[:, 1:] - places[:, :-1]).norm(dim=-1)
    expected = torch.cat([down.flatten(0, 1), across.flatten(0, 1)]).mean(0)
    found = effective_dilation(offsets, dilation=(2, 2))[0, 0]
    torch.testing.assert_close(found[1:-1, 1:-1], expected[1:-1, 1:-1])  # where no tap leaves the map


@settings(deadline=None, max_examples=20)
@given(st.floats(0.25, 4), st.floats(-3, 3), st.floats(-3, 3))
def test_effective_dilation_scales_and_ignores_translation(scale: float, dy: float, dx: float) -> None:
    grid = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    offsets = (grid * (scale - 1) + torch.tensor([dy, dx])).reshape(1, 18, 1, 1)
    assert effective_dilation(offsets).item() == pytest.approx(scale, abs=1e-4)


def test_effective_dilation_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"offsets: expected shape \[N, G \* 18, H, W\] for a kernel of 3 x 3"):
        effective_dilation(torch.zeros(1, 16, 2, 2))
    with pytest.raises(ValueError, match="neighbours: expected 4 or 8, got 6"):
        effective_dilation(torch.zeros(1, 18, 2, 2), neighbours=6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernel_size: expected at least two taps"):
        effective_dilation(torch.zeros(1, 2, 2, 2), (1, 1))


def test_filters_are_classed_by_the_smallest_object_at_their_centre() -> None:
    """Centres at 8, 24, 40, ... pixels. A large object, a small one in it, and one that ends at a centre."""
    boxes = torch.tensor([[20.0, 0, 40, 30], [0.0, 0, 200, 200], [300, 0, 328, 30]])
    classes = filter_class(boxes, (14, 22), stride=16)
    assert classes.shape == (14, 22)
    name = [FILTER_CLASSES[c] for c in classes[0]]
    assert name[:3] == ["large", "small", "large"]  # x = 8; 24 in the small box; 40, where the half-open small box ends
    assert name[12:14] == ["background", "background"]  # 200 is outside of [0, 200)
    assert name[18:21] == ["background", "small", "background"]  # 296, 312, 328
    assert (classes[13] == FILTER_CLASSES.index("background")).all()
    assert (filter_class(torch.zeros(0, 4), (2, 3), 16) == 3).all()
    by_mask = filter_class(boxes, (14, 22), stride=16, area=torch.tensor([100.0, 2000.0, 100.0]))
    assert FILTER_CLASSES[by_mask[5, 5]] == "medium"
    with pytest.raises(ValueError, match=r"area: expected shape \[3\], one a box, got \[1\]"):
        filter_class(boxes, (14, 22), 16, area=torch.ones(1))


def test_sampled_cells_are_counted() -> None:
    """On 38 x 53 cells every 4th row and column is sampled outside: 10 x 14. A box of 28 x 28 cells is sampled at every
    2nd inside, and keeps 7 x 7 of those; one of 10 x 5 cells has them all, and takes 3 x 2 of the others."""
    x = FeatureMap(torch.zeros(1, 1, 38, 53), stride=16)
    inside, outside = count_samples(x, regions([0, 0, 448, 448], [0, 0, 160, 80]))
    assert inside.tolist() == [196, 50]
    assert outside.tolist() == [140 - 49, 140 - 6]
    _, none = count_samples(x, regions([0, 0, 448, 448]), support=BoxSupport())
    assert none.tolist() == [0]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_samples_without_limit_are_all_cells(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, 4, 2, generator=generator) * torch.tensor([80.0, 60.0])
    r, x = (
        Regions(torch.cat([corner, corner + side], 1), torch.zeros(4, dtype=torch.int64)),
        FeatureMap(torch.zeros(1, 1, 10, 12), 8),
    )
    inside, outside = count_samples(x, r, Sampled(inside=10**4, outside=10**4))
    u0, v0, u1, v1 = BoxSupport()(x, r).unbind(1)
    assert inside.tolist() == ((u1 - u0) * (v1 - v0)).tolist()
    assert (inside + outside).tolist() == [120] * 4


@pytest.mark.parametrize(("outside", "printed"), [(100, 71), (196, 114), (400, 194), (625, 432)])
def test_table_3_has_inside_and_outside_the_right_way_round(outside: int, printed: int) -> None:
    """A box of 282 of 2014 cells, the means of table 3, leaves nearly the column "Out" of its table outside; so in the
    text, "114 and 86 for In and Out", the two are swapped."""
    x = FeatureMap(torch.zeros(1, 1, 38, 53), stride=16)
    starts = torch.cartesian_prod(torch.arange(0, 36) * 16.0, torch.arange(0, 21) * 16.0)
    boxes = torch.cat([starts, starts + 16 * math.sqrt(282)], 1)
    _, found = count_samples(
        x, Regions(boxes, torch.zeros(len(boxes), dtype=torch.int64)), Sampled(196, outside=outside)
    )
    assert found.double().mean().item() == pytest.approx(printed, rel=0.08)
    assert WholeImage()(x, regions(boxes[0].tolist())).tolist() == [[0, 0, 53, 38]]


def test_weights_of_an_extractor_go_straight_in() -> None:
    """Two bins side by side, one sample each on a cell's centre: disjoint, and exactly on the mask."""
    x = FeatureMap(torch.zeros(1, 3, 4, 4), stride=8)
    weights = RoIAlign((1, 2), samples=1).weights(x, regions([8, 8, 24, 16]))
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 8:16, 8:24] = True
    assert kl_between_parts(weights).item() == pytest.approx(-math.log(1e-12) / 2)
    assert kl_of_mask(weights, masks_to_cells(mask, x)).item() == pytest.approx(0, abs=1e-9)
