"""What learned region features cost: table 1 of Gu et al. 2018, and the same for the exact form of regio.

One operation is a multiplication with its addition; biases, embeddings and the softmax are not counted. The paper's
giga is 2^30: its P2 is 2.09 of those, printed as 2.1, but 2.24 billions.

The paper's numbers are not of one set of inputs. With N = 300, K = 49, C_E = 512, C_g = C_f = 256:

* 0.59 G for P1 fits H W from 2397 to 2437 cells; 7.2 G for P3 fits 2041 to 2068; the row of table 3 without sampling
  has 1737 + 282 = 2019 cells, for which P3 is 7.08 G.
* 0.72 G for P3 of the sampled form fits 205 and 206 cells, where table 3 has 114 + 86 = 200 (0.70 G).
* With H W = 2400 and the cells that table 3 states, all eight of its totals come out 1.0 to 1.5 % below those
  printed: 4.10 G for 4.16 G, 16.85 G for 17.1 G.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

__all__ = ["LearnedFlops", "LearnedSize", "published_flops", "separable_flops"]


@dataclass(frozen=True)
class LearnedSize:
    """The numbers that the cost depends on; the defaults are the paper's.

    height, width: of the map (H, W). cells: the mean number that enter the sum of a box (|Omega_b|); H W for the
    whole image without sampling. boxes: N. parts: K. embedding_channels, key_channels, channels: C_E, C_g, C_f.

    Raises ValueError unless all are positive.
    """

    height: int
    width: int
    cells: float
    boxes: int = 300
    parts: int = 49
    embedding_channels: int = 512
    key_channels: int = 256
    channels: int = 256

    def __post_init__(self) -> None:
        if min(astuple(self)) <= 0:
            raise ValueError(f"expected positive numbers, got {self}")


@dataclass(frozen=True)
class LearnedFlops:
    """Operations by the rows of table 1.

    positions: P1, the embedding of the cells. boxes: P2, that of the boxes. geometry: P3, inner products of the two.
    appearance: P4, the 1 x 1 convolution. aggregation: P5, the weighted sum of features.
    """

    positions: float
    boxes: float
    geometry: float
    appearance: float
    aggregation: float

    @property
    def total(self) -> float:
        """The sum of all rows."""
        return self.positions + self.boxes + self.geometry + self.appearance + self.aggregation


def published_flops(size: LearnedSize) -> LearnedFlops:
    """The formulas of table 1, with ``W_k_box = W'_k V`` as there."""
    c_e, c_g = size.embedding_channels, size.key_channels
    by_part_and_cell = size.boxes * size.parts * size.cells
    return LearnedFlops(
        positions=2 * size.height * size.width * c_e * c_g,
        boxes=size.boxes * c_e * (size.parts * c_g + 4 * c_e),
        geometry=by_part_and_cell * c_g,
        appearance=size.height * size.width * size.parts * size.channels,
        aggregation=by_part_and_cell * size.channels,
    )


def separable_flops(size: LearnedSize) -> LearnedFlops:
    """The same numbers, to rounding, from logits that are a column term plus a row term.

    G_k(b, (u, v)) = <q, W_u E(u)> + <q, W_v E(v)> with q = W'_k V E(b): the inner products are with H + W keys in
    place of |Omega|, and for each cell remain two additions of logits, counted under `geometry`. The product
    ``E(b) V W'_k keys`` is formed from the side that is cheaper, as `LearnedRegionFeatures` does where it has no use
    for a table (see there), and all of it but ``V E(b)`` (`boxes`) counts as `geometry`. With
    `regio.analysis.count_cells` for `cells` these are the operations after cells below rounding are left out.
    """
    c_e, c_g, length = size.embedding_channels, size.key_channels, size.height + size.width
    from_boxes = size.boxes * c_g * (c_e + length)
    from_keys = length * c_e * (c_g + size.boxes)
    return LearnedFlops(
        positions=length * c_e * c_g,
        boxes=size.boxes * 4 * c_e**2,
        geometry=size.parts * (min(from_boxes, from_keys) + 2 * size.boxes * size.cells),
        appearance=size.height * size.width * size.parts * size.channels,
        aggregation=size.boxes * size.parts * size.cells * size.channels,
    )
