"""Learned region features (Gu et al. 2018, "Learning Region Features for Object Detection").

    y_k(b) = sum over p in Omega_b of w_k(b, p, x) x(p)              (Eq. 2)
    w_k(b, p, x) = softmax over p of G_k(b, p) + A_k(x, p)           (Eq. 7)
    G_k(b, p) = <W_k_box E(b), W_im E(p)> / sqrt(C_g)                (Eq. 8, see `scale`)
    A_k(x, p) = W_k_app x(p)                                         (Eq. 9, see `feature_encoding`)

E(p) is the embedding of the column u next to that of the row v, and W_im is linear, so G is a term of u plus a term
of v. That is exact, and the reason why the whole image costs little: see `regio.kernels.attend`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, pi, prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.kernels.arguments import autocast_off, coordinate_dtype, has_values
from regio.kernels.attend import attend, readable
from regio.regions.base import RegionExtractor
from regio.regions.embedding import embed, span_of_embeddings
from regio.regions.priors import DeformablePrior, Prior
from regio.regions.support import BoxSupport, Support, WholeImage
from regio.rows import joined_rows, rows_of_levels
from regio.types import FeatureMap, Regions

__all__ = [
    "Dense",
    "Exact",
    "LearnedRegionFeatures",
    "Mode",
    "Sampled",
    "as_given",
    "centre_and_size",
    "corners",
    "embed",
    "normalised",
]


def corners(boxes: Tensor) -> Tensor:
    """Boxes [R, 4] as (x1, y1, x2, y2)."""
    return boxes


def centre_and_size(boxes: Tensor) -> Tensor:
    """Boxes [R, 4] as (centre x, centre y, width, height)."""
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(corner + opposite) / 2, opposite - corner], 1)


def as_given(features: Tensor) -> Tensor:
    """Features [N, C, H, W] as they are."""
    return features


def normalised(features: Tensor) -> Tensor:
    """Features [N, C, H, W], those of a cell divided by their root mean square over the channels (plus 1e-6 under the
    root, so that a cell of zeros stays one). Law: the result is that of ``c * features`` for every c > 0, up to the
    1e-6."""
    return features * features.square().mean(1, keepdim=True).add(1e-6).rsqrt()


@dataclass(frozen=True)
class GeometryTable:
    """G (Eq. 8) between all coordinates of an interval, in the D dimensions that their embeddings span.

    basis: [C_E, D], see `span_of_embeddings`. values: [2, 4 D, K D], for columns and for rows: with e(z) = E(z) basis,
    the term of the columns is ``sum over j of e(z_j) values[0][j, :, k] e(u)`` for the four coordinates z_j of a box.
    """

    basis: Tensor
    values: Tensor

    def terms(self, box: Tensor, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """G as [R, K, W] and [R, K, H] from embeddings of boxes [R, 4, C_E], columns [W, C_E] and rows [H, C_E]."""
        code = (box @ self.basis).flatten(1)
        column, row = (
            (code @ values).unflatten(1, (-1, self.basis.shape[1])) @ (positions @ self.basis).t()
            for values, positions in zip(self.values, (columns, rows), strict=True)
        )
        return column, row


class Mode(ABC):
    """How the sum of Eq. 2 is evaluated. All modes share one set of parameters."""

    @abstractmethod
    def __call__(
        self, extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions, table: GeometryTable | None = None
    ) -> Tensor:
        """Region features [R, C, K]. table: see `LearnedRegionFeatures.terms`."""

    def cells(self, x: FeatureMap, r: Regions, support: Tensor) -> Tensor | None:
        """The cells [R, S] int64, ``v * W + u`` padded with -1, that enter the sum; None for all of the support."""
        return None


@dataclass(frozen=True)
class Exact(Mode):
    """Every cell of the support, through the separable logits. aggregate_dtype: see `regio.kernels.attend.attend`."""

    aggregate_dtype: torch.dtype | None = field(default=None, kw_only=True)

    def __call__(
        self, extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions, table: GeometryTable | None = None
    ) -> Tensor:
        support = extractor.support(x, r)
        column, row, appearance = extractor.terms(x, r, table)
        return attend(
            x.data, r.image, column, row, appearance, support, self.cells(x, r, support),
            aggregate_dtype=self.aggregate_dtype,
        )  # fmt: skip


@dataclass(frozen=True)
class Sampled(Exact):
    """The paper's sparse sampling (section 3.1): about `inside` cells of the box and `outside` of the rest of the
    support.

    Inside, every ceil(w / sqrt(inside))-th column and ceil(h / sqrt(inside))-th row of a box of w x h cells (Eq. 10);
    outside, every ceil(sqrt(HW / outside))-th column and row of the H x W cells of the image (Eq. 11) that is not in
    the box. The maxima are nominal: a small box keeps all of its cells, and the ceilings make fewer samples than asked
    for. Eq. 10 divides each side by the same number, so a long box is sampled even where it has fewer than `inside`
    cells: one of 20 x 5 cells keeps 10 x 5 of them for 196. With ``inside >= max(H, W)^2`` and ``outside >= H W`` the
    result is that of `Exact`.

    Raises ValueError unless both are positive.
    """

    inside: int = 196
    outside: int = 196

    def __post_init__(self) -> None:
        if self.inside < 1 or self.outside < 1:
            raise ValueError(f"inside, outside: expected positive numbers of cells, got {self.inside}, {self.outside}")

    def cells(self, x: FeatureMap, r: Regions, support: Tensor) -> Tensor:
        covered = BoxSupport()(x, r)
        return torch.cat([self._inside(covered, x), self._outside(covered, support, x, r)], 1)

    def _inside(self, covered: Tensor, x: FeatureMap) -> Tensor:
        side, (height, width) = sqrt(self.inside), x.size
        u0, v0, u1, v1 = covered[:, :, None].unbind(1)
        columns = torch.arange(min(ceil(side), width), device=covered.device)
        rows = torch.arange(min(ceil(side), height), device=covered.device)
        u = u0 + columns * torch.ceil((u1 - u0) / side).to(torch.int64)
        v = v0 + rows * torch.ceil((v1 - v0) / side).to(torch.int64)
        missing = (u >= u1)[:, None, :] | (v >= v1)[:, :, None]
        return (v[:, :, None] * width + u[:, None, :]).masked_fill(missing, -1).flatten(1)

    def _outside(self, covered: Tensor, support: Tensor, x: FeatureMap, r: Regions) -> Tensor:
        strides = [ceil(sqrt(height * width / self.outside)) for height, width in x.extents]
        rows, columns = (
            max(ceil(extent[axis] / stride) for extent, stride in zip(x.extents, strides, strict=True))
            for axis in (0, 1)
        )
        stride = torch.tensor(strides, device=covered.device)[r.image, None, None]
        u = torch.arange(columns, device=covered.device) * stride
        v = torch.arange(rows, device=covered.device)[:, None] * stride

        def within(ranges: Tensor) -> Tensor:
            u0, v0, u1, v1 = ranges[:, :, None, None].unbind(1)
            return (u >= u0) & (u < u1) & (v >= v0) & (v < v1)

        wanted = within(support) & ~within(covered)
        return (v * x.size[1] + u).masked_fill(~wanted, -1).flatten(1)


@dataclass(frozen=True)
class Dense(Mode):
    """The equations as they are written, every inner product of Eq. 8 on its own: slow and large, for comparison."""

    def __call__(
        self, extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions, table: GeometryTable | None = None
    ) -> Tensor:
        return RegionExtractor.forward(extractor, x, r).flatten(2)


class LearnedRegionFeatures(RegionExtractor):
    """Region features whose weights over the map are learned: a softmax of a geometric and an appearance term (Eq. 7).

    channels: of the map. bins: (rows, columns) of parts, K in all; nothing but a `prior` gives them a place.
    embedding_channels: of one coordinate (C_E, a multiple of 2). key_channels: C_g. geometry, appearance: which terms
    of Eq. 7 there are. support: the cells that a box may read. mode: `Exact`, `Sampled` or `Dense`. prior: terms that
    are added to the logits, see `regio.regions.priors`; None, as in the paper, for none.

    The paper leaves open which four numbers of a box are embedded, and in what unit. box_encoding: `corners` (default)
    or `centre_and_size`. unit: image pixels per unit of all embedded coordinates; None is the stride of the map, so
    that coordinates are in cells. In cells one module serves all levels of a pyramid, where a level's boxes have
    similar sizes in cells; and the shortest wavelength, 2 pi cells, is one that cells can sample, while 2 pi pixels is
    shorter than a cell.

    scale: factor on G; None is 1 / sqrt(C_g), as in the attention of Vaswani et al. 2017 that the term is motivated by,
    and 1 is Eq. 8 as it is printed. G is a product of three matrices, which Adam moves by the same step whatever its
    gradient: with a factor of 1 and a rate of 4e-4 it changes by nats in one step, and the parts end on single cells
    that do not lie on the object. The paper's optimizer is SGD, whose step shrinks with the gradient of G.

    feature_encoding: what the appearance term reads of the features of a cell: `normalised` (default), so that it does
    not depend on how large they are, or `as_given`, which is Eq. 9 as it is printed. The cells of a feature pyramid
    have lengths of 100 to 200: with these, W_app = N(0, 0.01) moves logits by more than a nat before anything is
    learned, and a step of Adam by half of one. What is summed (Eq. 2) are the features as they are.

    Parameters start as N(0, 0.01), as in the paper. rate: factor on their learning rate, for the optimizers of
    `regio.optimisation`; with 0 the weights stay where they begin. A `DeformablePrior` has a rate of its own.

    Raises ValueError for sizes and factors that are not positive, a negative rate, and where neither term is wanted.
    """

    def __init__(
        self,
        channels: int,
        bins: int | tuple[int, int] = (7, 7),
        embedding_channels: int = 512,
        key_channels: int = 256,
        *,
        geometry: bool = True,
        appearance: bool = True,
        support: Support = WholeImage(),  # noqa: B008  (it is frozen)
        mode: Mode = Exact(),
        prior: Prior | None = None,
        scale: float | None = None,
        rate: float = 1.0,
        box_encoding: Callable[[Tensor], Tensor] = corners,
        feature_encoding: Callable[[Tensor], Tensor] = normalised,
        unit: float | None = None,
    ) -> None:
        super().__init__()
        self.bins = (bins, bins) if isinstance(bins, int) else bins
        for name, size in (("channels", channels), ("bins", min(self.bins)), ("key_channels", key_channels)):
            if size < 1:
                raise ValueError(f"{name}: expected a positive number, got {size}")
        if embedding_channels < 2 or embedding_channels % 2:
            raise ValueError(f"embedding_channels: expected a positive even number, got {embedding_channels}")
        if not (geometry or appearance):
            raise ValueError("geometry, appearance: expected at least one of the two terms")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale: expected a positive factor, got {scale}")
        if not rate >= 0:
            raise ValueError(f"rate: expected a factor of at least 0, got {rate}")
        if unit is not None and not unit > 0:
            raise ValueError(f"unit: expected a positive number of image pixels, got {unit}")
        parts = prod(self.bins)
        self.embedding_channels, self.key_channels = embedding_channels, key_channels
        self.support, self.mode, self.prior = support, mode, prior
        self.box_encoding, self.feature_encoding, self.unit = box_encoding, feature_encoding, unit
        self.scale = 1 / sqrt(key_channels) if scale is None else scale
        self.rate_factors = {"": rate}  # see `regio.optimisation.rate_groups`
        self.geometry = geometry
        if geometry:
            self.position_weight = nn.Parameter(torch.empty(key_channels, 2 * embedding_channels))  # W_im
            self.box_weight = nn.Parameter(torch.empty(embedding_channels, 4 * embedding_channels))  # V
            self.part_weight = nn.Parameter(torch.empty(parts, key_channels, embedding_channels))  # W_k_box = this V
        self.appearance_weight = nn.Parameter(torch.empty(parts, channels)) if appearance else None  # W_app
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.01)

    def extra_repr(self) -> str:
        terms = f"geometry={self.geometry}, appearance={self.appearance_weight is not None}, scale={self.scale:g}"
        prior = "with the prior below" if isinstance(self.prior, nn.Module) else f"prior={self.prior}"
        return f"bins={self.bins}, {terms}, support={self.support}, mode={self.mode}, {prior}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        r.check(x)
        return self.mode(self, x, r).unflatten(2, self.bins)

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        for x in maps:
            r.check(x)
        table = self._table(maps, r, r.boxes.new_tensor([x.stride for x in maps])[level, None])  # one for all levels
        rows = rows_of_levels(level, len(maps))
        parts = [self.mode(self, x, r[i], table) for x, i in zip(maps, rows, strict=True)]
        by_part = joined_rows([each.mT for each in parts], rows)  # [R, K, C], as it is stored
        return by_part.mT.unflatten(2, self.bins)

    def part_shifts(self, x: FeatureMap, r: Regions) -> Tensor | None:
        """By how much a `DeformablePrior` moves the parts, [R, 1, *bins, 2] as (x, y) in cells; None for another."""
        if not isinstance(self.prior, DeformablePrior):
            return None
        r.check(x)
        return self.prior.shifts(x, r)[:, None]

    def terms_alone(self) -> dict[str, RegionExtractor]:
        """With the geometric term and the prior alone, and with the appearance term alone."""
        if (not self.geometry and self.prior is None) or self.appearance_weight is None:
            return {}
        geometry, appearance = copy.deepcopy(self), copy.deepcopy(self)
        geometry.appearance_weight, appearance.geometry, appearance.prior = None, False, None
        return {"geometry alone": geometry, "appearance alone": appearance}

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1, K, H, W] of Eq. 7, zero outside the support and on cells that are not sampled."""
        r.check(x)
        support = self.support(x, r)
        inside = readable(support, self.mode.cells(x, r, support), x.size).flatten(1)[:, None]
        with autocast_off(x.data):
            logits = self._geometry(x, r) if self.geometry else torch.zeros((), device=x.data.device)
            if self.appearance_weight is not None:
                logits = logits + self._appearance(x)[r.image]
            if self.prior is not None:
                across, down = self.prior(x, r, self.bins)
                prior = across[..., None, :] + down[..., None]  # [R, *bins, H, W], or what broadcasts to it
                logits = logits + prior.expand(-1, *self.bins, -1, -1).flatten(1, 2)
        logits = logits.expand(r.boxes.shape[0], -1, *x.size).flatten(2).masked_fill(~inside, -torch.inf)
        return logits.softmax(2).masked_fill(~inside, 0.0).unflatten(2, x.size)[:, None]

    def terms(
        self, x: FeatureMap, r: Regions, table: GeometryTable | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits as a column term [R, K, W] and a row term [R, K, H], whose sum is G and the prior, and A
        [N, K, H, W] or None.

        In float32 (float64 for float64 features), also under autocast: they are the arguments of an exponential. The
        inner products of Eq. 8 are as precise as `torch.set_float32_matmul_precision` has it; the prior has none.
        table: G for the coordinates of these boxes and others, where it has been made.
        """
        with autocast_off(x.data):
            appearance = self._appearance(x) if self.appearance_weight is not None else None
            column, row = self._separable_geometry(x, r, table)
            if self.prior is not None:
                prior = self.prior(x, r, self.bins)
                column, row = (
                    (t.unflatten(1, self.bins) + p).flatten(1, 2) for t, p in zip((column, row), prior, strict=True)
                )
        return column, row, appearance

    def _separable_geometry(self, x: FeatureMap, r: Regions, table: GeometryTable | None) -> tuple[Tensor, Tensor]:
        """G as [R, K, W] and [R, K, H]."""
        height, width = x.size
        if not self.geometry:
            zero = x.data.new_zeros((r.boxes.shape[0], prod(self.bins), 1), dtype=coordinate_dtype(x.data))
            return zero.expand(-1, -1, width), zero.expand(-1, -1, height)
        u, v = (self._embedded_centres(x, length) for length in (width, height))
        if table is None:
            table = self._table([x], r, x.stride)
        if table is not None:
            return table.terms(self._embedded_box(x.stride, r, u.dtype), u, v)
        for_columns, for_rows = self.position_weight.to(u.dtype).chunk(2, 1)
        logits = self._inner_products(self._box_code(x, r), torch.cat([u @ for_columns.t(), v @ for_rows.t()]))
        return logits[:, :, :width], logits[:, :, width:]

    def _inner_products(self, code: Tensor, keys: Tensor) -> Tensor:
        """<part_weight_k code_r, keys_l> for code [R, C_E] and keys [L, C_g]: [R, K, L], in the cheaper order of the
        two."""
        part_weight = self.part_weight.to(code.dtype)
        parts, c_g, c_e = part_weight.shape
        boxes, positions = code.shape[0], keys.shape[0]
        compiling = torch.compiler.is_compiling()  # then the choice must not depend on the number of boxes
        if compiling or positions * c_e * (c_g + boxes) < boxes * c_g * (c_e + positions):  # multiplications, by part
            probes = keys.expand(parts, -1, -1) @ part_weight  # [K, L, C_E]
            return (code @ probes.flatten(0, 1).t()).unflatten(1, (parts, positions))
        return (code @ part_weight.flatten(0, 1).t()).unflatten(1, (parts, c_g)) @ keys.t()

    def _geometry(self, x: FeatureMap, r: Regions) -> Tensor:
        """G [R, K, H, W], every inner product of Eq. 8 on its own."""
        height, width = x.size
        u, v = (self._embedded_centres(x, length) for length in (width, height))
        position = torch.cat([u.expand(height, -1, -1), v[:, None].expand(-1, width, -1)], 2)
        keys = position @ self.position_weight.to(u.dtype).t()
        queries = torch.einsum("kge,re->rkg", self.part_weight.to(u.dtype), self._box_code(x, r))
        return torch.einsum("rkg,hwg->rkhw", queries, keys)

    def _appearance(self, x: FeatureMap) -> Tensor:
        """A [N, K, H, W] (Eq. 9)."""
        assert self.appearance_weight is not None
        data = self.feature_encoding(x.data.to(coordinate_dtype(x.data)))
        return F.conv2d(data, self.appearance_weight.to(data.dtype)[:, :, None, None])

    def _box_code(self, x: FeatureMap, r: Regions) -> Tensor:
        """V E(b), [R, C_E], times `scale`."""
        embedded = self._embedded_box(x.stride, r, coordinate_dtype(x.data)).flatten(1)
        return embedded @ self.box_weight.to(embedded.dtype).t() * self.scale

    def _box_coordinates(self, stride: float | Tensor, r: Regions, dtype: torch.dtype) -> Tensor:
        """The four numbers [R, 4] of a box that are embedded."""
        return self.box_encoding(r.boxes.to(dtype) / (self.unit or stride))

    def _embedded_box(self, stride: float, r: Regions, dtype: torch.dtype) -> Tensor:
        """E of the numbers of a box, [R, 4, C_E]."""
        return embed(self._box_coordinates(stride, r, dtype), self.embedding_channels)

    def _table(self, maps: Sequence[FeatureMap], r: Regions, stride: float | Tensor) -> GeometryTable | None:
        """The table for boxes on one or more levels; stride: of the map of each box. None where it costs more than the
        inner products or spans no fewer dimensions, so that a box far away costs none; on a GPU, to which these are
        little; and in graphs, which are to hold for other boxes."""
        if not self.geometry or not has_values(r.boxes) or r.boxes.device.type != "cpu" or len(r) == 0:
            return None
        dtype, parts = coordinate_dtype(maps[0].data), prod(self.bins)
        c_g, c_e, boxes = self.key_channels, self.embedding_channels, len(r)
        numbers = self._box_coordinates(stride, r, dtype).detach()
        last = max(max(x.size) * x.stride / (self.unit or x.stride) for x in maps)
        low, high = floor(min(0.0, float(numbers.min())) / 16), ceil(max(last, float(numbers.max())) / 16)
        count, positions = 16 * (high - low) / pi + 14, max(sum(x.size) for x in maps)
        if count >= c_e:
            return None
        with_table = 2 * count * parts * (c_e * (c_g + 4 * count) + 4 * count * boxes)  # multiplications
        without = 4 * boxes * c_e**2 + parts * min(positions * c_e * (c_g + boxes), boxes * c_g * (c_e + positions))
        if with_table > without:
            return None
        basis = span_of_embeddings(c_e, 16 * low, 16 * high, dtype)
        with torch.autocast("cpu", enabled=False):
            of_positions, of_boxes = (
                (weight.to(dtype).unflatten(1, (-1, c_e)) @ basis).permute(1, 2, 0).flatten(0, 1).contiguous()
                for weight in (self.position_weight, self.box_weight)
            )  # [2 D, C_g] and [4 D, C_E]
            probes = of_positions.expand(parts, -1, -1) @ self.part_weight.to(dtype)  # [K, 2 D, C_E]
            by_axis = probes.unflatten(1, (2, -1)).transpose(0, 1).flatten(1, 2)  # [2, K D, C_E]
            return GeometryTable(basis, of_boxes * self.scale @ by_axis.mT)

    def _embedded_centres(self, x: FeatureMap, length: int) -> Tensor:
        """E of the centres of the first `length` cells along an axis, [length, C_E]."""
        at = torch.arange(length, dtype=coordinate_dtype(x.data), device=x.data.device)
        return embed((at + 0.5) * (x.stride / (self.unit or x.stride)), self.embedding_channels)
