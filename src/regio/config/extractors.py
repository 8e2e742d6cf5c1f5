"""Region extractors by name: what makes each from words and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from regio.settings import setting

if TYPE_CHECKING:
    from regio.regions import LearnedRegionFeatures, PositionSensitive, RegionExtractor

__all__ = ["EXTRACTORS", "Extractor"]


class Extractor(ABC):
    """The settings of an extractor."""

    @abstractmethod
    def build(self, channels: int) -> RegionExtractor:
        """The extractor, for maps of so many channels. Raises ValueError for settings that it does not take."""

    def position_sensitive(self) -> PositionSensitive:
        """The extractor with channels of their own for each part. Raises ValueError for one without such a form."""
        from regio import regions

        made = self.build(1)
        if not isinstance(made, regions.SamplingExtractor):
            raise ValueError(
                "extractor: expected one whose parts can read channels of their own, such as roi-align or "
                f"rfcn-average-pool, got {type(made).__name__}"
            )
        return regions.PositionSensitive(made)

    def score_maps(self, in_channels: int, channels: int, classes: int) -> RegionExtractor:
        """The extractor on score maps of its own, R-FCN's, from maps of `in_channels` to features of `channels`, which
        belong to so many classes. Raises ValueError as `position_sensitive`."""
        from regio import regions

        return regions.score_maps(in_channels, channels, self.position_sensitive())


@dataclass(frozen=True)
class Bins(Extractor):
    """Those of an extractor whose parts are the bins of a regular grid."""

    bins: tuple[int, int] = setting((7, 7), "rows and columns of parts")


SUPPORT = "what is read: the box, or one of twice its area around it"


def reading(extractor: RegionExtractor, support: str) -> RegionExtractor:
    """`extractor` where `support` is "box"; for "2x" the one that reads boxes of twice the area."""
    from regio import regions

    return extractor if support == "box" else regions.Enlarged(extractor, 2.0)


@dataclass(frozen=True)
class RoIPool(Bins):
    """Maximum of the cells of each bin."""

    support: Literal["box", "2x"] = setting("box", SUPPORT)

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return reading(regions.RoIPool(self.bins), self.support)


@dataclass(frozen=True)
class RoIAveragePool(Bins):
    """Mean of the cells of each bin."""

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.RoIAveragePool(self.bins)


@dataclass(frozen=True)
class SpatialPyramid(Extractor):
    """Maximum of the cells of the bins of several grids."""

    grids: tuple[int, ...] = setting((6, 3, 2, 1), "bins along a side, of each grid")

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.SpatialPyramidPool(self.grids)


@dataclass(frozen=True)
class RFCNAveragePool(Bins):
    """Mean of the cells that each bin touches, with the rounding of R-FCN."""

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.RFCNAveragePool(self.bins)


@dataclass(frozen=True)
class RoIAlign(Bins):
    """Mean of bilinear samples in each bin."""

    samples: int = setting(2, "along a side of a bin; 0 for as many as it has cells", ge=0)
    aligned: bool = setting(True, "whether half a pixel is taken off, as it should be")
    support: Literal["box", "2x"] = setting("box", SUPPORT)

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return reading(regions.RoIAlign(self.bins, self.samples, self.aligned), self.support)


@dataclass(frozen=True)
class RoIAlignMax(Bins):
    """Maximum of bilinear samples in each bin."""

    samples: int = setting(2, "along a side of a bin", ge=1)
    aligned: bool = setting(True, "whether half a pixel is taken off, as it should be")

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.SampleMax(regions.RoIAlign(self.bins, self.samples, self.aligned))


@dataclass(frozen=True)
class RoIWarp(Bins):
    """The box warped to a finer grid, then the mean over bins."""

    samples: int = setting(2, "cells of the finer grid along a side of a bin", ge=1)
    rounded: bool = setting(True, "whether corners are rounded to cells, as in the paper")

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.RoIWarp(self.bins, self.samples, self.rounded)


@dataclass(frozen=True)
class PreciseRoIPool(Bins):
    """Integral over each bin."""

    aligned: bool = setting(True, "whether the centre of a cell is at half a cell")

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.PreciseRoIPool(self.bins, self.aligned)


@dataclass(frozen=True)
class DeformableRoIPool(Bins):
    """RoIAlign whose bins are moved by learned offsets."""

    samples: int = setting(2, "along a side of a bin", ge=1)
    offsets: tuple[int, int] | None = setting(None, "rows and columns of offsets; null for one a part")
    gamma: float = setting(0.1, "factor on the offsets, in sides of the box")

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.DeformableRoIPool(regions.RoIAlign(self.bins, self.samples), channels, self.offsets, self.gamma)

    def score_maps(self, in_channels: int, channels: int, classes: int) -> RegionExtractor:
        """With offsets for each of `classes`, from maps of their own."""
        from regio import regions

        pool, offsets = (
            regions.PositionSensitive(regions.RoIAlign(bins, self.samples))
            for bins in (self.bins, self.offsets or self.bins)
        )
        return regions.DeformablePositionSensitive(pool, in_channels, channels, classes, offsets, self.gamma)


@dataclass(frozen=True)
class Centre(Extractor):
    """The cell at the centre of the box."""

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.CentreFeature()


@dataclass(frozen=True)
class Triangular(Extractor):
    """Mean of the cells of triangles about the centre of the box."""

    triangles: Literal[4, 8] = setting(8, "how many parts")

    def build(self, channels: int) -> RegionExtractor:
        from regio import regions

        return regions.TriangularBins(self.triangles)


@dataclass(frozen=True)
class Learned(Bins):
    """Learned region features: each cell's weight in each part is learned."""

    support: Literal["box", "2x", "image"] = setting("image", "cells that a box may read: its own, twice the area, all")
    terms: Literal["both", "geometry", "appearance"] = setting(
        "appearance",
        "what the weights learn to depend on: the coordinates of cell and box (geometry), the features of the cell "
        "(appearance), or both, as in the paper",
    )
    mode: Literal["exact", "sampled", "dense"] = setting("exact", "all cells, the paper's samples, or all and slowly")
    inside: int = setting(196, "samples in the box at most, if sampled", ge=1)
    outside: int = setting(196, "samples outside the box at most, if sampled", ge=1)
    prior: Literal["deformable", "roi-align", "grid", "none"] = setting(
        "deformable",
        "where parts begin; roi-align: at RoIAlign's bins, as Gaussians as wide as these; deformable: there, each "
        "moved by an offset that is found in the box; grid: at the bins, half a cell wide; none: anywhere, as in the "
        "paper, which takes terms=both and long trainings",
    )
    feature_encoding: Literal["normalised", "as-given"] = setting(
        "normalised",
        "normalised: the appearance term reads the features of a cell divided by their root mean square; as-given: as "
        "they are, as in the paper",
    )
    scale: float | None = setting(None, "factor on the geometric term; null for 1 / sqrt(C_g); 1 is the paper's", gt=0)
    rate: float = setting(
        1.0, "factor on the learning rate of the weights; 0 leaves them where they begin, but for moved parts", ge=0
    )
    embedding_channels: int = setting(512, "of one coordinate, even", ge=2)
    key_channels: int = setting(256, "of the geometric term (C_g)", ge=1)

    def build(self, channels: int) -> LearnedRegionFeatures:
        from regio import regions
        from regio.regions.learned import as_given, normalised

        if (self.terms, self.prior, self.support) == ("appearance", "none", "image"):
            raise ValueError(
                "extractor: expected terms=both, a prior or a support of the box, got the appearance alone over the "
                "whole image, which is the same for every box"
            )
        supports = {"box": regions.BoxSupport(), "2x": regions.BoxSupport(2.0), "image": regions.WholeImage()}
        modes = {
            "exact": regions.Exact(),
            "sampled": regions.Sampled(self.inside, self.outside),
            "dense": regions.Dense(),
        }
        priors: dict[str, Callable[[], regions.Prior | None]] = {
            "roi-align": regions.RoIAlignPrior,
            "deformable": lambda: regions.DeformablePrior(channels, self.bins),
            "grid": regions.GridPrior,
            "none": lambda: None,
        }
        encodings = {"normalised": normalised, "as-given": as_given}
        return regions.LearnedRegionFeatures(
            channels,
            self.bins,
            self.embedding_channels,
            self.key_channels,
            geometry=self.terms != "appearance",
            appearance=self.terms != "geometry",
            support=supports[self.support],
            mode=modes[self.mode],
            prior=priors[self.prior](),
            scale=self.scale,
            rate=self.rate,
            feature_encoding=encodings[self.feature_encoding],
        )


EXTRACTORS: dict[str, type[Extractor]] = {
    "roi-pool": RoIPool,
    "roi-average-pool": RoIAveragePool,
    "rfcn-average-pool": RFCNAveragePool,
    "spatial-pyramid": SpatialPyramid,
    "roi-align": RoIAlign,
    "roi-align-max": RoIAlignMax,
    "roi-warp": RoIWarp,
    "precise-roi-pool": PreciseRoIPool,
    "deformable-roi-pool": DeformableRoIPool,
    "centre": Centre,
    "triangular": Triangular,
    "learned": Learned,
}
"""By the name on the command line and in files."""
