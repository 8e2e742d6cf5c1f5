"""Region features of maps that a layer makes: the contract of score maps, and what the layer may be."""

import torch
from torch import Tensor, nn

from regio.convolutions import LargeSeparable
from regio.regions import DeformableRoIPool, LearnedRegionFeatures
from regio.regions.convolved import Convolved, score_maps
from regio.regions.enlarged import Enlarged
from regio.regions.position_sensitive import PositionSensitive
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIPool
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions
from tests.regions.test_deformable import aligned_part, pooled


class TestScoreMaps(ExtractorContract):
    """1 x 1 convolutions, of which part k reads channel group k."""

    channels = 4

    @property
    def in_channels(self) -> int:
        return 3

    def make(self, channels: int, bins: tuple[int, int]) -> Convolved:
        e = score_maps(self.in_channels, channels, PositionSensitive(RoIAlign(bins)))
        assert isinstance(e.layer, nn.Conv2d)
        nn.init.normal_(e.layer.weight, std=0.6)
        nn.init.normal_(e.layer.bias, std=0.6)  # type: ignore[arg-type]
        return e

    def contraction(self, extractor: Convolved, x: FeatureMap, r: Regions) -> Tensor:
        scores = extractor.layer(x.data)[r.image].unflatten(1, (self.channels, 6))
        w = extractor.weights(x, r).expand(-1, self.channels, -1, -1, -1)
        return torch.einsum("rckhw,rckhw->rck", w, scores)

    def reference(self, extractor: Convolved, x: FeatureMap, r: Regions) -> Tensor:
        assert isinstance(extractor.layer, nn.Conv2d)
        weight, bias = (each.detach() for each in extractor.layer.parameters())
        scores = torch.stack([(x.data * row).sum(1) for row in weight[:, None]], 1) + bias[:, None, None]
        return pooled(aligned_part, lambda k: scores[:, k::6], r, x.data.new_zeros(len(r), 2, 2, 3))


def test_start_of_score_maps() -> None:
    torch.manual_seed(0)
    layer = score_maps(256, 5, PositionSensitive(RoIAlign(7))).layer
    assert isinstance(layer, nn.Conv2d) and layer.out_channels == 49 * 5 and layer.kernel_size == (1, 1)
    assert abs(float(layer.weight.detach().std()) - 0.01) < 2e-4
    assert layer.bias is not None and not layer.bias.any()


def test_what_is_looked_at_is_that_of_the_extractor() -> None:
    """Moves of parts, and terms alone."""
    torch.manual_seed(0)
    x, r = FeatureMap(feature_map().data, 4), regions()
    layer = nn.Conv2d(3, 4, 1).double()
    deformable = DeformableRoIPool(RoIAlign(3), 4).double()
    nn.init.normal_(deformable.offset.weight, std=0.1)
    made, e = FeatureMap(layer(x.data), 4), Convolved(layer, deformable)
    shifts, samples = e.part_shifts(x, r), e.moved_samples(x, r)
    assert shifts is not None and samples is not None and float(shifts.detach().abs().max()) > 0.01
    close(shifts, deformable.part_shifts(made, r), 1e-12)
    close(samples[0].points, deformable.moved_samples(made, r)[0].points, 1e-12)
    learned = LearnedRegionFeatures(4, 3, 16, 8).double()
    terms = Convolved(layer, learned).terms_alone()
    assert terms.keys() == learned.terms_alone().keys() == {"geometry alone", "appearance alone"}
    for name, each in learned.terms_alone().items():
        close(terms[name].weights(x, r), each.weights(made, r), 1e-12)


def test_any_layer_and_any_extractor() -> None:
    """On one map and on a pyramid, features, weights and the cells that a box is rounded to."""
    torch.manual_seed(0)
    maps = [FeatureMap(feature_map(seed=i).data[:, :, :: 2**i, :: 2**i], 4 * 2**i) for i in range(2)]
    r, level = regions(), torch.arange(len(regions())) % 2
    for inner in (RoIPool((2, 3)), Enlarged(RoIAlign((2, 3)))):
        layer = LargeSeparable(3, 4, hidden=2, size=5).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
        e = Convolved(layer, inner)
        made = [FeatureMap(layer(x.data), x.stride) for x in maps]
        assert float(made[0].data.detach().std()) > 0.1
        close(e(maps[0], r), inner(made[0], r), 1e-12)
        close(e.pyramid(maps, r, level), inner.pyramid(made, r, level), 1e-12)
        close(e.weights(maps[0], r), inner.weights(made[0], r), 1e-12)
        close(e.mean_weights(maps[0], r), inner.mean_weights(made[0], r), 1e-12)
        ours, theirs = e.whole_cells(maps, r, level), inner.whole_cells(made, r, level)
        assert (ours is None and theirs is None) or (ours is not None and torch.equal(ours, theirs))  # type: ignore[arg-type]
