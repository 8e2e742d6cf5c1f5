"""Matching and sampling on numbers worked by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regio.boxes import iou
from regio.matching import BACKGROUND, IGNORED, BalancedSampler, Matcher, RegionSampler, TakeAll
from regio.types import Targets


def targets(*boxes: tuple[float, ...], crowd: tuple[bool, ...] | None = None) -> Targets:
    """Objects at `boxes` with labels 1, 2, ..."""
    flags = torch.tensor(crowd) if crowd else torch.zeros(len(boxes), dtype=torch.bool)
    return Targets(torch.tensor(boxes).reshape(-1, 4), torch.arange(1, len(boxes) + 1), crowd=flags)


# Against the object (0, 0, 10, 10): the whole of it (IoU 1), 7 of 10 columns (0.7), half (0.5), 3 of 10 (0.3), 1 of 10
# (0.1), nothing.
LADDER = torch.tensor([[0.0, 0, 10, 10], [0, 0, 7, 10], [0, 0, 5, 10], [0, 0, 3, 10], [0, 0, 1, 10], [50, 50, 60, 60]])


def test_thresholds_include_the_lower_end() -> None:
    match = Matcher(positive=0.5, background=0.3)(LADDER, targets((0.0, 0, 10, 10)))
    assert match.tolist() == [0, 0, 0, IGNORED, BACKGROUND, BACKGROUND]


def test_background_has_a_lower_end_too() -> None:
    match = Matcher(positive=0.5, background=0.5, background_low=0.1)(LADDER, targets((0.0, 0, 10, 10)))
    assert match.tolist() == [0, 0, 0, BACKGROUND, BACKGROUND, IGNORED]


def test_a_box_goes_to_the_object_it_overlaps_most() -> None:
    match = Matcher(0.5, 0.5)(LADDER[:1], targets((0.0, 0, 6, 10), (0.0, 0, 9, 10)))
    assert match.tolist() == [1]


def test_allow_low_quality_matches_takes_all_ties_and_no_box_without_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 10], [6, 0, 10, 10], [4, 0, 6, 10], [50, 50, 60, 60]])
    objects = targets((0.0, 0, 10, 10), (200.0, 200, 210, 210))  # nothing meets the second
    assert Matcher(0.7, 0.3)(boxes, objects).tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND]
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(boxes, objects).tolist() == [0, 0, BACKGROUND, BACKGROUND]


def test_allow_low_quality_matches_keeps_the_boxs_own_best_object() -> None:
    # The box is the best there is for both objects, and overlaps the second more.
    objects = targets((0.0, 0, 2, 10), (0.0, 0, 9, 10))
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(LADDER[:1], objects).tolist() == [1]


def test_crowd_regions_are_never_matched_and_hide_background() -> None:
    objects = targets((0.0, 0, 10, 10), (40.0, 40, 70, 70), crowd=(False, True))
    boxes = torch.cat(
        [LADDER[:1], torch.tensor([[40.0, 40, 70, 70], [45, 45, 50, 50], [69, 40, 79, 70], [0, 60, 9, 69]])]
    )
    # An exact copy of the crowd region, a part of it, a box a tenth of which is inside, one away from it.
    assert Matcher(0.5, 0.5)(boxes, objects).tolist() == [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_index_counts_crowd_regions() -> None:
    objects = targets((40.0, 40, 70, 70), (0.0, 0, 10, 10), crowd=(True, False))
    assert Matcher(0.5, 0.5)(LADDER[:1], objects).tolist() == [1]


@pytest.mark.parametrize("allow_low_quality_matches", [False, True])
def test_no_objects_and_no_boxes(allow_low_quality_matches: bool) -> None:
    matcher = Matcher(0.5, 0.5, allow_low_quality_matches=allow_low_quality_matches)
    assert matcher(LADDER, targets()).tolist() == [BACKGROUND] * 6
    assert matcher(LADDER[:0], targets((0.0, 0, 1, 1))).tolist() == []
    assert matcher(LADDER[:0], targets()).tolist() == []


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"background_low <= background <= positive"):
        Matcher(positive=0.3, background=0.5)


box = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(deadline=None, max_examples=50)
@given(st.lists(box, min_size=1, max_size=8), st.lists(box, min_size=1, max_size=4))
def test_matching_is_what_its_definition_says(boxes: list[tuple[int, ...]], objects: list[tuple[int, ...]]) -> None:
    b, target = torch.tensor(boxes, dtype=torch.float32), targets(*[tuple(map(float, o)) for o in objects])
    overlap = iou(b, target.boxes).tolist()
    columns = [max(row[g] for row in overlap) for g in range(len(objects))]
    for row, match in zip(overlap, Matcher(0.7, 0.3, allow_low_quality_matches=True)(b, target).tolist(), strict=True):
        is_best = any(row[g] == columns[g] > 0 for g in range(len(objects)))
        if max(row) >= torch.tensor(0.7) or is_best:
            assert row[match] == max(row)
        else:
            assert match == (BACKGROUND if max(row) < torch.tensor(0.3) else IGNORED)


def test_sampler_draws_what_it_may() -> None:
    match = torch.tensor([3] * 40 + [BACKGROUND] * 100 + [IGNORED] * 60)
    positive, background = BalancedSampler(64, 0.25)(match)
    assert (len(positive), len(background)) == (16, 48)
    assert len({*positive.tolist(), *background.tolist()}) == 64  # without replacement
    assert bool((match[positive] == 3).all()) and bool((match[background] == BACKGROUND).all())


@pytest.mark.parametrize(("objects", "rest", "expected"), [(2, 100, (2, 62)), (40, 10, (16, 10)), (0, 0, (0, 0))])
def test_sampler_makes_up_for_missing_positives_only(objects: int, rest: int, expected: tuple[int, int]) -> None:
    positive, background = BalancedSampler(64, 0.25)(
        torch.tensor([0] * objects + [BACKGROUND] * rest, dtype=torch.int64)
    )
    assert (len(positive), len(background)) == expected


@pytest.mark.parametrize(
    ("size", "fraction", "message"),
    [(0, 0.5, "size: expected a number of boxes"), (8, 1.5, "positive_fraction: expected"), (8, -0.1, "positive_fr")],
)
def test_samplers_that_cannot_be_are_refused(size: int, fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BalancedSampler(size, fraction)


def test_crowds_hide_background_in_half_precision_too() -> None:
    crowd = Targets(torch.tensor([[0.0, 0, 600, 600]]), torch.tensor([1]), torch.tensor([True]))
    boxes = torch.tensor([[0.0, 0, 400, 400], [0, 0, 1200, 600]])
    expected = [IGNORED, BACKGROUND]
    for dtype in (torch.float32, torch.float16):
        assert Matcher(0.5, 0.5)(boxes.to(dtype), crowd).tolist() == expected


def test_sampler_follows_the_seed() -> None:
    match = torch.tensor([0] * 100 + [BACKGROUND] * 100)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.cat(BalancedSampler(20, 0.5)(match)).tolist())
    assert draws[0] == draws[1] != draws[2]


def test_take_all_leaves_out_what_is_ignored() -> None:
    match = torch.tensor([2, BACKGROUND, IGNORED, 0, BACKGROUND])
    positive, background = TakeAll()(match)
    assert positive.tolist() == [0, 3] and background.tolist() == [1, 4]


def test_region_sampler_appends_objects() -> None:
    sampler = RegionSampler(Matcher(0.5, 0.5), BalancedSampler(10, 0.5))
    proposals = [torch.tensor([[0.0, 0, 8, 10], [30, 30, 40, 40]]), torch.tensor([[5.0, 5, 9, 9]]), torch.zeros(0, 4)]
    crowd = targets((0.0, 0, 10, 10), (20.0, 20, 28, 28), (60.0, 60, 90, 90), crowd=(False, False, True))
    sample = sampler(proposals, [crowd, targets(), targets((1.0, 2, 3, 4))])
    assert sample.regions.image.tolist() == [0, 0, 0, 0, 1, 2]
    assert sample.labels.tolist() == [1, 1, 2, 0, 0, 1]
    assert sample.match.tolist() == [0, 0, 1, BACKGROUND, BACKGROUND, 0]
    assert sample.objects[0].tolist() == [0, 0, 10, 10] and sample.regions.boxes[0].tolist() == [0, 0, 8, 10]
    positive = sample.labels > 0
    assert torch.equal(sample.objects[positive][1:], sample.regions.boxes[positive][1:])  # they stand for themselves
    assert not bool(sample.objects[~positive].any())  # background has no object


def test_region_sampler_without_the_objects() -> None:
    sampler = RegionSampler(Matcher(0.5, 0.5), BalancedSampler(10, 0.5), append_objects=False)
    sample = sampler([torch.tensor([[0.0, 0, 8, 10]])], [targets((0.0, 0, 10, 10), (20.0, 20, 28, 28))])
    assert sample.labels.tolist() == [1] and sample.match.tolist() == [0]


def test_zero_area_objects_are_never_matched() -> None:
    sampler = RegionSampler(Matcher(0.5, 0.5), BalancedSampler(10, 0.5))
    sample = sampler([LADDER], [targets((3.0, 3, 3, 9))])
    assert sample.labels.tolist() == [0] * 7
    assert not bool(sample.objects.any())
