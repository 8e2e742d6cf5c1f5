"""Fully connected layers made smaller by truncated SVD (Girshick: Fast R-CNN, ICCV 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regio.checkpoints import save
from regio.config import load_detector, model_from_dict, model_to_dict
from regio.config.systems import FullyConnectedHead
from regio.roi_heads import FullyConnected

__all__ = ["TruncatedLayer", "compress_checkpoint", "low_rank", "truncate", "truncated_svd"]


def low_rank(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """Two linear layers in place of one, the first without a bias, nothing between them: ``rank * (inputs + outputs)``
    weights. Raises ValueError unless the rank is in 1 .. min(inputs, outputs)."""
    if not 1 <= rank <= min(inputs, outputs):
        most = min(inputs, outputs)
        raise ValueError(f"rank: expected 1 to {most} for {inputs} inputs and {outputs} outputs, got {rank}")
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


@torch.no_grad()
def truncated_svd(linear: nn.Linear, rank: int) -> nn.Sequential:
    """The best approximation of `linear` by two layers with `rank` numbers between them: of W = U S V^T the `rank`
    largest singular values, S V^T in the first layer, U and the bias in the second.

    The squared error of the weights is the sum of the squares of the singular values left out; with all of them the two
    layers are `linear` but for rounding. Raises ValueError for a rank above the number of singular values.
    """
    pair = low_rank(linear.in_features, linear.out_features, rank).to(linear.weight)
    weight = linear.weight.to(torch.float64)
    # U are the eigenvectors of W W^T, and S V^T is U^T W: for the 25088 inputs of VGG's fc6, ten times less work.
    u = torch.linalg.eigh(weight @ weight.T).eigenvectors.flip(1)[:, :rank]
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
    pair.load_state_dict({"0.weight": u.T @ weight, "1.weight": u, "1.bias": bias})
    return pair


@dataclass(frozen=True)
class TruncatedLayer:
    """What became of a layer. weights: before and after. kept: the share of the squares of its singular values."""

    name: str
    rank: int
    weights: tuple[int, int]
    kept: float


def truncate(trunk: nn.Module, ranks: Mapping[str, float]) -> list[TruncatedLayer]:
    """Replace layers of `trunk` by their truncated SVD, in place. ranks: of the layers by name, "fc6" and "fc7"; below
    1, a share of the outputs of the layer.

    Raises TypeError for a trunk that is not `FullyConnected`, ValueError for a layer that it does not have, that is
    truncated already, or a rank that it cannot have, before anything is changed.
    """
    if not isinstance(trunk, FullyConnected):
        raise TypeError(f"trunk: expected fully connected layers fc6 and fc7, got {type(trunk).__name__}")
    wanted = {}
    for name, rank in ranks.items():
        if name not in ("fc6", "fc7"):
            raise ValueError(f"svd: expected fc6 or fc7, got '{name}'")
        layer = getattr(trunk, name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"svd: {name} is truncated already, to rank {layer[0].out_features}")
        count = round(rank * layer.out_features) if rank < 1 else int(rank)
        largest = min(layer.in_features, layer.out_features)
        if not 1 <= count <= largest:
            raise ValueError(f"svd: {name}: expected a rank of 1 to {largest}, or a share of it, got {rank:g}")
        wanted[name] = count
    made = []
    for name, count in wanted.items():
        layer = getattr(trunk, name)
        pair = truncated_svd(layer, count)
        setattr(trunk, name, pair)
        kept = _energy(pair[0]) / _energy(layer)
        weights = [sum(p.numel() for p in each.parameters()) for each in (layer, pair)]
        made.append(TruncatedLayer(name, count, (weights[0], weights[1]), kept))
    return made


def _energy(layer: nn.Module) -> float:
    """The sum of the squares of the singular values of the weights of a linear layer."""
    return float(layer.get_parameter("weight").detach().to(torch.float64).square().sum())


def compress_checkpoint(source: Path | str, target: Path | str, ranks: Mapping[str, float]) -> list[TruncatedLayer]:
    """Write the checkpoint `source` with layers fc6 and fc7 truncated, see `truncate`, to `target`, a file that is
    loaded like any other: the ranks are settings of its system. Its card has no metrics, since those were of the whole
    layers.

    Raises FileNotFoundError or ValueError naming the file, also where `target` exists.
    """
    if Path(target).exists():
        raise ValueError(f"{target}: expected a new file, this one exists")
    detector, card = load_detector(source)
    system = model_from_dict(card.model)
    if not isinstance(system, FullyConnectedHead):
        raise ValueError(f"{source}: expected a system with the layers fc6 and fc7, got {card.model['name']}")
    try:
        head: Any = detector.roi_heads[0]
        made = truncate(head.trunk, ranks)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    settings: dict[str, Any] = {f"{each.name}_rank": each.rank for each in made}
    save(target, detector, replace(card, model=model_to_dict(replace(system, **settings)), metrics={}))
    return made
