"""TriangularBins: the contract, a picture of the triangles, and that each cell is in one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regio.regions.triangular import TriangularBins
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, box_strategy, close, feature_map, regions


def part_of(right: float, down: float, triangles: int) -> int:
    """The triangle of a position relative to the centre, in a frame where the box is square."""
    flat = abs(right) >= abs(down)
    if triangles == 4:
        if flat:
            return 0 if right >= 0 else 2
        return 1 if down >= 0 else 3
    if down >= 0:
        return (0 if flat else 1) if right >= 0 else (3 if flat else 2)
    return (7 if flat else 6) if right >= 0 else (4 if flat else 5)


class TestEight(ExtractorContract):
    bins = (8, 1)
    box_gradient = False

    def make(self, channels: int, bins: tuple[int, int]) -> TriangularBins:
        return TriangularBins(bins[0])

    def reference(self, extractor: TriangularBins, x: FeatureMap, r: Regions) -> Tensor:
        out = x.data.new_zeros(len(r), x.data.shape[1], *extractor.bins)
        for n, (box, image) in enumerate(zip(r.boxes.tolist(), r.image.tolist(), strict=True)):
            x1, y1, x2, y2 = (c / x.stride for c in box)
            cells: list[list[Tensor]] = [[] for _ in range(extractor.triangles)]
            for v in range(x.size[0]):
                for u in range(x.size[1]):
                    if x1 <= u + 0.5 < x2 and y1 <= v + 0.5 < y2:
                        right = (u + 0.5 - (x1 + x2) / 2) * (y2 - y1)
                        down = (v + 0.5 - (y1 + y2) / 2) * (x2 - x1)
                        cells[part_of(right, down, extractor.triangles)].append(x.data[image, :, v, u])
            for k, own in enumerate(cells):
                if own:
                    out[n, :, k, 0] = torch.stack(own).mean(0)
        return out


class TestFour(TestEight):
    bins = (4, 1)


PICTURES = {
    4: """
        2 3 3 3 3 0
        2 2 3 3 0 0
        2 2 2 0 0 0
        2 2 2 0 0 0
        2 2 1 1 0 0
        2 1 1 1 1 0
    """,
    8: """
        4 5 5 6 6 7
        4 4 5 6 7 7
        4 4 4 7 7 7
        3 3 3 0 0 0
        3 3 2 1 0 0
        3 2 2 1 1 0
    """,
}


@pytest.mark.parametrize("triangles", [4, 8])
def test_triangles_of_a_square_box(triangles: int) -> None:
    """Part numbers of the cells of a 6 x 6 box: clockwise from the right, diagonals to the horizontal side."""
    rows = [[int(k) for k in line.split()] for line in PICTURES[triangles].splitlines() if line.strip()]
    x, r = FeatureMap(torch.zeros(1, 1, 6, 6), 1), Regions(torch.tensor([[0.0, 0, 6, 6]]), torch.tensor([0]))
    w = TriangularBins(triangles).weights(x, r)[0, 0]
    assert w.argmax(0).tolist() == rows
    assert torch.equal((w > 0).sum(0), torch.ones(6, 6, dtype=torch.int64))


@settings(deadline=None, max_examples=30)
@given(box=box_strategy, triangles=st.sampled_from([4, 8]))
def test_every_cell_of_the_box_is_in_one_triangle(box: list[float], triangles: int) -> None:
    x, r = feature_map(), regions([box])
    reads = TriangularBins(triangles).weights(x, r)[0, 0] > 0
    u, v = torch.arange(11) * 4 + 2, torch.arange(9)[:, None] * 4 + 2
    inside = (u >= box[0]) & (u < box[2]) & (v >= box[1]) & (v < box[3])
    assert torch.equal(reads.sum(0), inside.long())


def test_four_are_pairs_of_eight() -> None:
    x, r = feature_map(), regions()
    four, eight = (TriangularBins(n).weights(x, r)[:, 0] > 0 for n in (4, 8))
    for k, pair in enumerate([(7, 0), (1, 2), (3, 4), (5, 6)]):
        assert torch.equal(four[:, k], eight[:, pair[0]] | eight[:, pair[1]])


def test_a_flip_of_the_image_exchanges_triangles() -> None:
    x, r = feature_map(), regions([[5.3, 4.1, 30.9, 29.9]] * 2)
    mirrored = Regions(torch.stack([44 - r.boxes[:, 2], r.boxes[:, 1], 44 - r.boxes[:, 0], r.boxes[:, 3]], 1), r.image)
    flipped = TriangularBins()(FeatureMap(x.data.flip(3), 4), mirrored)
    close(flipped[:, :, [3, 2, 1, 0, 7, 6, 5, 4]], TriangularBins()(x, r), 1e-12)


def test_other_numbers_raise() -> None:
    with pytest.raises(ValueError, match="triangles: expected 4 or 8, got 6"):
        TriangularBins(6)
