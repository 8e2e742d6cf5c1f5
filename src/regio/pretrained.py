"""Weights of backbones: from a local file, or a clear word on where they were looked for."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = [
    "existing",
    "load_by_name",
    "load_in_order",
    "published_file",
    "published_state",
    "read_state",
    "require_taken",
    "require_timm_weights",
    "torchvision_classifier",
]


def existing(file: Path, what: str) -> Path:
    """`file`; FileNotFoundError naming it and `what` it should hold if there is none."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: {what}: no such file")
    return file


def _read(file: Path) -> dict[str, Tensor]:
    try:
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over
        raise ValueError(f"{file}: not a file of weights that PyTorch can read ({type(error).__name__})") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: expected a state dict, a mapping of names to tensors")
    return state


def load_in_order(body: nn.Module, file: Path) -> None:
    """Copy the tensors of `file` into those of `body`, the first to the first and so on; a classifier at its end stays.

    Raises FileNotFoundError or ValueError naming the file and the tensor.
    """
    given = list(_read(existing(file, "weights of efficientnet_lite0")).values())
    own = body.state_dict()
    for i, (name, tensor) in enumerate(own.items()):
        if i >= len(given) or given[i].shape != tensor.shape:
            got = "none" if i >= len(given) else f"shape {list(given[i].shape)}"
            raise ValueError(f"{file}: tensor {i}, for {name}: expected shape {list(tensor.shape)}, got {got}")
    body.load_state_dict(dict(zip(own, given, strict=False)))


def load_by_name(model: nn.Module, file: Path) -> None:
    """Load a state dict of the whole model or of its `features`. Only the classifier may be missing or another, and the
    counts of batches of its norms may be missing, as they are in files older than them.

    Raises ValueError naming the file and the tensor.
    """
    state = _read(file)
    own = model.state_dict()
    if not any(name in own for name in state):
        state = {f"features.{name}": tensor for name, tensor in state.items()}
    for name, tensor in own.items():
        if name in state and state[name].shape == tensor.shape:
            continue
        if name.startswith(("fc.", "classifier.")) or (name.endswith("num_batches_tracked") and name not in state):
            state[name] = tensor
            continue
        got = f"shape {list(state[name].shape)}" if name in state else "nothing"
        raise ValueError(f"{file}: {name}: expected shape {list(tensor.shape)}, got {got}")
    model.load_state_dict({name: state[name] for name in own})


def require_taken(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError, its message beginning with `what`, unless each parameter of `model` has the numbers of some
    tensor of `state`, whatever names and shapes a library has given them."""
    sums: dict[int, list[float]] = {}
    for value in state.values():
        sums.setdefault(value.numel(), []).append(float(value.double().sum()))
    for name, own in model.named_parameters():
        total = float(own.detach().double().sum())
        if not any(math.isclose(total, each, rel_tol=1e-6, abs_tol=1e-6) for each in sums.get(own.numel(), ())):
            raise ValueError(f"{what}: no tensor for {name}, of shape {list(own.shape)}")


def read_state(file: Path, what: str) -> dict[str, Tensor]:
    """The state dict in `file`. Raises FileNotFoundError or ValueError naming it and `what` it should hold."""
    return _read(existing(file, what))


def published_state(url: str, what: str) -> dict[str, Tensor]:
    """The state dict published at `url`, from torch.hub's cache or downloaded to it; FileNotFoundError, naming the file
    and where it is wanted, where neither is possible."""
    cached = _cached(url)
    if cached.is_file():
        return _read(cached)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except urllib.error.URLError as error:
        raise _unreachable(url, what, error) from error


def published_file(url: str, what: str) -> Path:
    """The file published at `url`, in torch.hub's cache or downloaded to it; errors as of `published_state`."""
    cached = _cached(url)
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(cached))
        except urllib.error.URLError as error:
            raise _unreachable(url, what, error) from error
    return cached


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _unreachable(url: str, what: str, error: urllib.error.URLError) -> FileNotFoundError:
    cached = _cached(url)
    return FileNotFoundError(
        f"{cached.name}: weights of {what}, not in {cached.parent} and could not be downloaded from {url} "
        f"({error.reason}); put the file there"
    )


def require_timm_weights(name: str) -> None:
    """Raise FileNotFoundError when the weights of a timm model are neither in the cache nor within reach.

    At once: left to itself, the client of the hub tries for a minute.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise FileNotFoundError(
            f"{name}: timm publishes no weights for it; give a file of them, or start from random ones"
        )
    if not config.hf_hub_id:
        return
    file = config.hf_hub_filename or "model.safetensors"
    if isinstance(try_to_load_from_cache(config.hf_hub_id, file), str):
        return
    try:
        urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise FileNotFoundError(
            f"{config.hf_hub_id}/{file}: weights of {name}, not in {hub.HF_HUB_CACHE} and could not be downloaded from "
            f"{hub.ENDPOINT} ({error}); put them there or give the path of a copy"
        ) from error


def torchvision_classifier(name: str, pretrained: bool, weights: Path | str | None, **options: Any) -> nn.Module:
    """torchvision's classifier `name`, with the weights of the file `weights` if given, else published or random ones.

    Raises FileNotFoundError naming a file that is missing or could not be downloaded, ValueError for one that does not
    fit.
    """
    if weights is not None:
        model = torchvision.models.get_model(name, weights=None, **options)
        load_by_name(model, existing(Path(weights), f"weights of {name}"))
        return model
    choice = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    try:
        return torchvision.models.get_model(name, weights=choice, **options)
    except urllib.error.URLError as error:
        assert choice is not None
        file = Path(choice.url).name
        raise FileNotFoundError(
            f"{file}: weights of {name}, not in {torch.hub.get_dir()}/checkpoints and could not be downloaded from "
            f"{choice.url} ({error.reason}); put the file there or give the path of a copy"
        ) from error
