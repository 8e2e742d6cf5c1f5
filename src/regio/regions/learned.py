"""Learned region features (Gu et al. 2018, "Learning Region Features for Object Detection").

    y_k(b) = sum over p in Omega_b of w_k(b, p, x) x(p)              (Eq. 2)
    w_k(b, p, x) = softmax over p of G_k(b, p) + A_k(x, p)           (Eq. 7)
    G_k(b, p) = <W_k_box E(b), W_im E(p)>                            (Eq. 8)
    A_k(x, p) = W_k_app x(p)                                         (Eq. 9)

E(p) is the embedding of the column u next to that of the row v, and W_im is linear, so G is a term of u plus a term
of v. That is exact, and the reason why the whole image costs little: see `regio.kernels.attend`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod, sqrt
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.kernels.attend import attend, readable
from regio.kernels.maps import coordinate_dtype
from regio.regions.base import RegionExtractor
from regio.regions.support import Box, Support, WholeImage
from regio.types import FeatureMap, Regions

__all__ = ["Dense", "Exact", "LearnedRegionFeatures", "Mode", "Sampled", "centre_and_size", "corners", "embed"]


def embed(z: Tensor, channels: int) -> Tensor:
    """Sines and cosines [..., channels] of coordinates z [...]: channel 2i is sin(z / 1000^(2i / channels)), 2i + 1 its
    cosine (section 3; the base is 1000)."""
    angle = z[..., None] * _frequencies(channels, z)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def _frequencies(channels: int, like: Tensor) -> Tensor:
    return 1000.0 ** -(torch.arange(0, channels, 2, dtype=like.dtype, device=like.device) / channels)


def corners(boxes: Tensor) -> Tensor:
    """Boxes [R, 4] as (x1, y1, x2, y2)."""
    return boxes


def centre_and_size(boxes: Tensor) -> Tensor:
    """Boxes [R, 4] as (centre x, centre y, width, height)."""
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(corner + opposite) / 2, opposite - corner], 1)


class Mode(ABC):
    """How the sum of Eq. 2 is evaluated. All modes share one set of parameters."""

    @abstractmethod
    def __call__(self, extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, K]."""

    def cells(self, x: FeatureMap, r: Regions, support: Tensor) -> Tensor | None:
        """The cells [R, S] int64, ``v * W + u`` padded with -1, that enter the sum; None for all of the support."""
        return None


@dataclass(frozen=True)
class Exact(Mode):
    """Every cell of the support, through the separable logits. aggregate_dtype: see `regio.kernels.attend.attend`."""

    aggregate_dtype: torch.dtype | None = field(default=None, kw_only=True)

    def __call__(self, extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions) -> Tensor:
        support = extractor.support(x, r)
        column, row, appearance = extractor.terms(x, r)
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
    for. With maxima of the size of the map the result is that of `Exact`.

    Raises ValueError unless both are positive.
    """

    inside: int = 196
    outside: int = 196

    def __post_init__(self) -> None:
        if self.inside < 1 or self.outside < 1:
            raise ValueError(f"inside, outside: expected positive numbers of cells, got {self.inside}, {self.outside}")

    def cells(self, x: FeatureMap, r: Regions, support: Tensor) -> Tensor:
        covered = Box()(x, r)
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

    def __call__(self, extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions) -> Tensor:
        return RegionExtractor.forward(extractor, x, r).flatten(2)


class LearnedRegionFeatures(RegionExtractor):
    """Region features whose weights over the map are learned: a softmax of a geometric and an appearance term (Eq. 7).

    channels: of the map. bins: (rows, columns) of parts, K in all; nothing but `initialise_as_grid` gives them a
    place. embedding_channels: of one coordinate (C_E, a multiple of 2). key_channels: C_g. geometry, appearance:
    which terms of Eq. 7 there are. support: the cells that a box may read. mode: `Exact`, `Sampled` or `Dense`.

    The paper leaves open which four numbers of a box are embedded, and in what unit. box_numbers: `corners` (default;
    only they make a Gaussian at each bin a solution, see `initialise_as_grid`) or `centre_and_size`. unit: image
    pixels per unit of all embedded coordinates; None is the stride of the map, so that coordinates are in cells. In
    cells one module serves all levels of a pyramid, where a level's boxes have similar sizes in cells; and the
    shortest wavelength, 2 pi cells, is one that cells can sample, while 2 pi pixels is shorter than a cell.

    Parameters start as N(0, 0.01), as in the paper, which makes the weights nearly uniform.

    Raises ValueError for sizes that are not positive, and where neither term is wanted.
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
        box_numbers: Callable[[Tensor], Tensor] = corners,
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
        if unit is not None and not unit > 0:
            raise ValueError(f"unit: expected a positive number of image pixels, got {unit}")
        parts = prod(self.bins)
        self.embedding_channels, self.key_channels = embedding_channels, key_channels
        self.support, self.mode, self.box_numbers, self.unit = support, mode, box_numbers, unit
        self.geometry = geometry
        if geometry:
            self.position_weight = nn.Parameter(torch.empty(key_channels, 2 * embedding_channels))  # W_im
            self.box_weight = nn.Parameter(torch.empty(embedding_channels, 4 * embedding_channels))  # V
            self.part_weight = nn.Parameter(torch.empty(parts, key_channels, embedding_channels))  # W_k_box = this V
        self.appearance_weight = nn.Parameter(torch.empty(parts, channels)) if appearance else None  # W_app
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01)

    def extra_repr(self) -> str:
        terms = f"geometry={self.geometry}, appearance={self.appearance_weight is not None}"
        return f"bins={self.bins}, {terms}, support={self.support}, mode={self.mode}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        r.check(x)
        return self.mode(self, x, r).unflatten(2, self.bins)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1, K, H, W] of Eq. 7, zero outside the support and on cells that are not sampled."""
        support = self.support(x, r)
        inside = readable(support, self.mode.cells(x, r, support), x.size).flatten(1)[:, None]
        with torch.autocast(x.data.device.type, enabled=False):
            logits = self._geometry(x, r) if self.geometry else torch.zeros((), device=x.data.device)
            if self.appearance_weight is not None:
                logits = logits + self._appearance(x)[r.image]
        logits = logits.expand(r.boxes.shape[0], -1, *x.size).flatten(2).masked_fill(~inside, -torch.inf)
        return logits.softmax(2).masked_fill(~inside, 0.0).unflatten(2, x.size)[:, None]

    def terms(self, x: FeatureMap, r: Regions) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits as a column term [R, K, W] and a row term [R, K, H], whose sum is G, and A [N, K, H, W] or None.

        In float32 (float64 for float64 features), also under autocast: they are the arguments of an exponential.
        """
        height, width = x.size
        with torch.autocast(x.data.device.type, enabled=False):
            appearance = self._appearance(x) if self.appearance_weight is not None else None
            if not self.geometry:
                zero = x.data.new_zeros((r.boxes.shape[0], prod(self.bins), 1), dtype=coordinate_dtype(x.data))
                return zero.expand(-1, -1, width), zero.expand(-1, -1, height), appearance
            u, v = (self._embedded_centres(x, length) for length in (width, height))
            for_columns, for_rows = self.position_weight.to(u.dtype).chunk(2, 1)
            logits = self._inner_products(self._box_code(x, r), torch.cat([u @ for_columns.t(), v @ for_rows.t()]))
        return logits[:, :, :width], logits[:, :, width:], appearance

    def _inner_products(self, code: Tensor, keys: Tensor) -> Tensor:
        """<part_weight_k code_r, keys_l> for code [R, C_E] and keys [L, C_g]: [R, K, L], in the cheaper order of the
        two."""
        part_weight = self.part_weight.to(code.dtype)
        parts, c_g, c_e = part_weight.shape
        boxes, positions = code.shape[0], keys.shape[0]
        compiling = torch.compiler.is_compiling()  # then the choice must not depend on the number of boxes
        if compiling or positions * c_e * (c_g + boxes) < boxes * c_g * (c_e + positions):  # multiplications, by part
            probes = keys @ part_weight  # [K, L, C_E]
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
        data = x.data.to(coordinate_dtype(x.data))
        return F.conv2d(data, self.appearance_weight.to(data.dtype)[:, :, None, None])

    def _box_code(self, x: FeatureMap, r: Regions) -> Tensor:
        """V E(b), [R, C_E]."""
        boxes = r.boxes.to(coordinate_dtype(x.data)) / (self.unit or x.stride)
        return embed(self.box_numbers(boxes), self.embedding_channels).flatten(1) @ self.box_weight.to(boxes.dtype).t()

    def _embedded_centres(self, x: FeatureMap, length: int) -> Tensor:
        """E of the centres of the first `length` cells along an axis, [length, C_E]."""
        at = torch.arange(length, dtype=coordinate_dtype(x.data), device=x.data.device)
        return embed((at + 0.5) * (x.stride / (self.unit or x.stride)), self.embedding_channels)

    @torch.no_grad()
    def initialise_as_grid(self, deviation: float = 0.5, reach: float = 96.0) -> Self:
        """Set the geometric term so that part k starts as a Gaussian about the centre of bin k; returns the module.

        Let a bin centre be c = (1 - t) x1 + t x2. Since

            (1 - t) (u - x1)^2 + t (u - x2)^2 = (u - c)^2 + t (1 - t) (x2 - x1)^2

        and the last term is the same for all u, the softmax of minus the left side over 2 deviation^2 is that Gaussian.
        A square is a sum of cosines up to a constant, z^2 / 2 = -sum_i a_i cos(w_i z) for |z| < reach, and the cosine
        of w (u - x) is an inner product of embeddings: Eq. 8 holds all of it, and only that sum is an approximation.

        deviation, reach: in units of the embedded coordinates (cells by default); reach should be the longer side of
        the map at least. The start is not the paper's: from N(0, 0.01) all parts begin alike and a short training leads
        them to scattered cells, from here each begins at its bin. The matrices W_im and V, shared by all parts, then
        only select frequencies and are fixed (``requires_grad`` is False): a sum of large cosines that nearly cancel is
        upset by any step of an optimizer that moves the three factors together. W_k_box, one matrix a part, is learned.

        Raises ValueError without a geometric term or with box numbers other than `corners`, and where there are fewer
        than 8 embedding or 4 key channels.
        """
        frequencies = min(self.embedding_channels // 8, self.key_channels // 4)
        if not self.geometry or self.box_numbers is not corners or frequencies == 0:
            raise ValueError(
                "initialise_as_grid: expected a geometric term with box_numbers=corners, "
                "at least 8 embedding channels and 4 key channels"
            )
        chosen, amplitude = _parabola(self.embedding_channels, frequencies, reach)
        wave = torch.stack([2 * chosen, 2 * chosen + 1], 1).flatten()  # the channels of E in use: sines and cosines
        used = torch.arange(len(wave))
        for matrix, coordinates in ((self.position_weight, 2), (self.box_weight, 4)):
            matrix.zero_().requires_grad_(False)
            for i in range(coordinates):
                matrix[i * len(wave) + used, i * self.embedding_channels + wave] = _GAIN
        strength = (amplitude / (_GAIN * deviation) ** 2).repeat_interleave(2).to(self.part_weight)
        down, across = ((torch.arange(n).to(strength) + 0.5) / n for n in self.bins)
        shares = across.repeat(self.bins[0]), down.repeat_interleave(self.bins[1])  # t of each part along x and y
        self.part_weight.zero_()
        for axis, t in enumerate(shares):
            keys = axis * len(wave) + used
            self.part_weight[:, keys, axis * len(wave) + used] = (1 - t)[:, None] * strength
            self.part_weight[:, keys, (axis + 2) * len(wave) + used] = t[:, None] * strength
        return self


_GAIN = (
    0.2  # of the fixed matrices: by its square a step in W_k_box moves the logits; that of the random start is alike
)


def _parabola(channels: int, count: int, reach: float) -> tuple[Tensor, Tensor]:
    """`count` of the frequencies w of `embed` and amplitudes a with ``sum_i a_i cos(w_i z) = const - z^2 / 2``, |z| <
    reach.

    Least squares of the relative error, with small amplitudes preferred.
    """
    w = _frequencies(channels, torch.empty(0, dtype=torch.float64))
    chosen = torch.linspace(0, len(w) - 1, count).round().to(torch.int64)
    z = torch.linspace(0, reach, 512, dtype=torch.float64)
    target = -(z**2) / 2
    weight = 1 / (1 - target)
    waves = (torch.cos(z[:, None] * w[chosen]) - 1) * weight[:, None]
    normal = waves.t() @ waves + 1e-4 * torch.eye(count, dtype=torch.float64)
    return chosen, torch.linalg.solve(normal, waves.t() @ (target * weight))
