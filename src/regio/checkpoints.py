"""Checkpoints in safetensors: written whole or not at all, and read without executing anything.

Two kinds of file. A *checkpoint* (`best.safetensors`, `last.safetensors`, `step-00200.safetensors`) holds the weights
of a detector and its `Card`: what is needed to build and use it. A *resume file* holds the whole state of a training:
weights, their moving average, the optimizer and the step, so that a killed run continues bit for bit. Random state is
not in it: training draws each step's random numbers from (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from regio import format_1, format_2
from regio.identity import differences
from regio.state_dicts import load_exactly
from regio.whole_files import write_whole

if TYPE_CHECKING:
    from regio.data import DetectionDataset

__all__ = [
    "Card",
    "kept_checkpoints",
    "kept_name",
    "load_all_but_classes",
    "load_weights",
    "read_card",
    "read_resume",
    "read_weights",
    "save",
    "save_resume",
]

FORMAT = 3


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself.

    model: the configuration that builds the detector (`regio.config.model_to_dict`), empty for a detector put together
    by hand. class_names: without the background; class_names[l - 1] is the name of label l. category_ids: the
    ids of the data set trained on. normalisation: mean and std per channel for values in [0, 1], and the resize.
    metrics: those of the last evaluation. proposals: what found the boxes that it was trained on, where these were
    given: see `regio.data.DetectionDataset.proposal_source`.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    normalisation: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    proposals: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, dataset: DetectionDataset, settings: Mapping[str, Any] | None) -> Card:
        """The card of `model`, trained on `dataset`; `settings` build it again."""
        preprocess = getattr(model, "preprocess", None)
        normalisation = asdict(preprocess) if is_dataclass(preprocess) and not isinstance(preprocess, type) else {}
        names, ids = dataset.class_names, dataset.category_ids
        return Card(names, ids, dict(settings or {}), normalisation, proposals=dataset.proposal_source)


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Tensors that share memory, as those of a module that is in two places, are written once."""
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            where = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            if first.setdefault(where, name) != name:
                tied[name] = first[where]
    metadata = {"format": "pt", "regio": json.dumps({"version": FORMAT, "tied": tied, **header})}
    write_whole(path, to_bytes(_own({name: t for name, t in tensors.items() if name not in tied}), metadata))


def _read_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `_write`."""
    tensors: dict[str, Tensor] = load_file(path)
    return tensors | {name: tensors[same] for name, same in header.get("tied", {}).items()}


def _read_header(path: Path, kind: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from error
    if "regio" not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not written by regio (no 'regio' entry in its metadata)")
    try:
        header: dict[str, Any] = json.loads(metadata["regio"])
        newer = header["version"] > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, its 'regio' entry is not one that regio writes ({error!r})") from error
    if newer:
        raise ValueError(f"{path}: format {header['version']}, this version of regio reads up to {FORMAT}")
    if kind not in header:
        raise ValueError(f"{path}: expected a file with a '{kind}' entry, got one with {sorted(header)}")
    return header


def save(path: Path | str, detector: nn.Module, card: Card) -> None:
    """Write the weights of `detector` and its card to `path`, whole or not at all. Raises OSError naming the file."""
    _write(Path(path), detector.state_dict(), {"card": asdict(card)})


def kept_name(step: int) -> str:
    """The name of the file that a training keeps of `step`."""
    return f"step-{step:05d}.safetensors"


def kept_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints that the run in `folder` has kept (`keep_every` of `regio.config.TrainConfig`), by step, the
    first first; the last is `last.safetensors` where that is of a later step. In place of a folder, a checkpoint: that
    one alone.

    Raises ValueError, naming the folder, where there is none.
    """
    if folder.is_file():
        return {read_card(folder).step: folder}
    weights = folder / "weights"
    kept = {int(path.stem.removeprefix("step-")): path for path in weights.glob("step-[0-9]*.safetensors")}
    if not kept:
        stages = folder / "stages"
        where = f"; a training in stages has them in {stages}/*/weights" if stages.is_dir() else ""
        raise ValueError(f"{weights}: no checkpoint of a step; train with keep_every=N, the steps between them{where}")
    last = weights / "last.safetensors"
    if last.is_file() and (step := read_card(last).step) > max(kept):
        kept[step] = last
    return dict(sorted(kept.items()))


def read_card(path: Path | str) -> Card:
    """The card of a checkpoint. Raises FileNotFoundError or ValueError naming the file and what is wrong with it."""
    header = _read_header(Path(path), "card")
    fields = header["card"]
    if header["version"] < 2:
        fields["model"] = format_1.settings(fields.get("model", {}))
    if header["version"] < 3:
        fields["model"] = format_2.settings(fields.get("model", {}))
    fields["class_names"] = tuple(fields["class_names"])
    fields["category_ids"] = tuple(fields["category_ids"])
    return Card(**fields)


def load_weights(path: Path | str, detector: nn.Module, class_names: tuple[str, ...] | None = None) -> Card:
    """Load the weights of a checkpoint into `detector`; every tensor must be there with its shape.

    class_names: the classes the detector is for, where known; ValueError if the checkpoint was trained on others.
    Raises ValueError naming the first tensors that are missing, unexpected or of another shape.
    """
    card = read_card(path)
    if class_names is not None and tuple(class_names) != card.class_names:
        raise ValueError(
            f"{path}: a checkpoint of {len(card.class_names)} classes ({_some(card.class_names)}), "
            f"expected these {len(class_names)}: {_some(class_names)}"
        )
    load_exactly(detector, read_weights(path), f"{path}: does not fit this detector")
    return card


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The state dict of a checkpoint. Raises FileNotFoundError or ValueError naming the file."""
    header = _read_header(Path(path), "card")
    state = _read_tensors(Path(path), header)
    return format_1.tensors(state) if header["version"] == 1 else state


def load_all_but_classes(state: Mapping[str, Tensor], detector: nn.Module, what: str) -> list[str]:
    """Load the state dict of a detector for other classes: the layers of `detector` that depend on the classes keep
    what they have; returns their names. A module names those of its own, or buffers, in an attribute `class_layers`.

    Raises ValueError, its message beginning with `what`, naming the first tensors that are missing, unexpected or of
    another shape.
    """
    layers = [
        f"{name}.{layer}" if name else layer
        for name, module in detector.named_modules()
        for layer in getattr(module, "class_layers", ())
    ]
    depends = {*layers}

    def layer_of(name: str) -> str:
        return name if name in depends else name.rpartition(".")[0]

    kept = {name for name in detector.state_dict() if layer_of(name) in depends}
    own = [layer for layer in layers if any(layer_of(name) == layer for name in kept)]
    given = {name: tensor for name, tensor in state.items() if layer_of(name) not in own}
    load_exactly(detector, given, what, kept)
    return own


def _some(items: tuple[str, ...] | list[str], count: int = 5) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def save_resume(
    path: Path | str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    identity: Mapping[str, str],
) -> None:
    """Write the whole state of a training to `path`, whole or not at all.

    modules: by name; the parameters of the optimizer are among theirs. state: JSON, the step and the best result.
    identity: what must be the same for a resumed run to be the run it was, in words, see `regio.identity`.

    Raises TypeError for an optimizer whose state for a parameter has other things than tensors and numbers.
    """
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    groups = _names(modules, optimizer)
    names = [name for group in groups for name in group]
    saved = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        for key, entry in entries.items():
            if isinstance(entry, Tensor):
                tensors[f"optimizer.{names[index]}.{key}"] = entry
            elif entry is None or isinstance(entry, int | float | str):
                numbers.setdefault(names[index], {})[key] = entry
            else:
                kind = type(entry).__name__
                raise TypeError(f"optimizer: expected a state of tensors and numbers, got a {kind} as {key}")
    options = [{**group, "params": members} for group, members in zip(saved["param_groups"], groups, strict=True)]
    _write(
        Path(path), tensors, {"resume": {**state, "groups": options, "numbers": numbers, "identity": dict(identity)}}
    )


def read_resume(
    path: Path | str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, str],
) -> dict[str, Any]:
    """Load what `save_resume` wrote into `modules` and `optimizer`; returns `state`.

    Raises FileNotFoundError or ValueError naming the file: for another `identity`, naming what differs; for tensors of
    other names or shapes; for an optimizer of other parameters. Nothing has been loaded then.
    """
    path = Path(path)
    header = _read_header(path, "resume")
    state: dict[str, Any] = header["resume"]
    if "identity" not in state:
        raise ValueError(f"{path}: written by an earlier version of regio; go on with that one, or start again")
    different = differences(state.pop("identity"), identity)
    if different:
        raise ValueError(f"{path}: a run can only be resumed as it was: {different}")
    groups, saved_groups = _names(modules, optimizer), state.pop("groups")
    if [group["params"] for group in saved_groups] != groups:
        was, now = (
            {name for group in each for name in group} for each in ([g["params"] for g in saved_groups], groups)
        )
        changed = [f"{name} is trained no more" for name in sorted(was - now)]
        changed += [f"{name} was not trained" for name in sorted(now - was)] or ["its groups of parameters differ"]
        raise ValueError(f"{path}: does not fit this run's optimizer: {_some(changed)}")
    tensors = _read_tensors(path, header)
    entries: dict[str, dict[str, Any]] = state.pop("numbers", {})
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, entry = key.removeprefix("optimizer.").rsplit(".", 1)
            entries.setdefault(name, {})[entry] = tensor
    for name, module in modules.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(
                f"{path}: does not fit this run's {name}: {str(error).splitlines()[-1].strip()}"
            ) from error
    names = [name for group in groups for name in group]
    current = optimizer.state_dict()["param_groups"]
    options = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()} | {"params": own["params"]}
        for saved, own in zip(saved_groups, current, strict=True)
    ]
    states = {i: entries[name] for i, name in enumerate(names) if name in entries}
    optimizer.load_state_dict({"state": states, "param_groups": options})
    return state


def _parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            yield f"{name}.{key}", parameter


def _names(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters of each group of `optimizer`."""
    name = {id(parameter): key for key, parameter in _parameters(modules)}
    return [[name[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
