"""The graph of a detector written to a file."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim

from regio import __version__
from regio.augmented import AugmentedDetector
from regio.detector import TwoStageDetector
from regio.export.graph import DetectorGraph
from regio.export.onnx_forms import OPSET, forms, require_onnx_forms, translations, with_onnx_pooling
from regio.export.segmentation import SegmentationGraph
from regio.masks import GridMasks
from regio.roi_heads import MaskHead
from regio.segmentation import SegmentationNetwork

__all__ = ["INPUTS", "export_onnx", "export_torch", "onnx_program"]

Network = TypeVar("Network", bound=nn.Module)
Shapes = tuple[dict[int, Any], ...]
"""For each input its sizes, by axis, that are not fixed."""

INPUTS = ("images", "sizes")


def export_onnx(detector: TwoStageDetector | SegmentationNetwork, file: Path | str, labels: Sequence[str] = ()) -> None:
    """Write `detector`, or a segmentation network, as ONNX (operator set 18) to `file`, in one piece.

    Inputs and outputs: see `DetectorGraph.forward` and `SegmentationGraph.forward`. labels: the names of the labels 1,
    2, ... They, the preprocessing and how masks become pixels are in the metadata of the file.

    Raises FileExistsError for a file that exists, OSError for one that cannot be written, and ValueError for a part of
    the detector that has no form in ONNX, and where the packages onnx and onnxscript are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'{error.name}: is not installed, which ONNX needs; pip install ".[export]" in the folder of regio'
        ) from error
    path = _new(file)
    require_onnx_forms(detector)
    own = _own(detector)
    with_onnx_pooling(own)
    graph = _graph(own)
    program = onnx_program(graph, *_inputs(), INPUTS, graph.outputs)
    model, free = program.model.graph, graph.free_axes
    named = [(model.inputs[0], ["images", 3, "height", "width"]), (model.inputs[1], ["images", 2])]
    for value, shape in named + [(each, [*free, *(each.shape or ())[len(free) :]]) for each in model.outputs]:
        value.shape = onnx_ir.Shape(shape)
    program.model.metadata_props.update(
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in _about(own, graph.scales, labels)
        }
    )
    _write(path, lambda temporary: program.save(temporary, external_data=False))


@torch.no_grad()
def onnx_program(
    graph: nn.Module, example: tuple[Tensor, ...], shapes: Shapes, inputs: Sequence[str], outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """`graph`, whose pooling is that of `with_onnx_pooling`, in operators of ONNX.

    example, shapes: inputs of it, and which of their sizes may be others, see `torch.export.export`. inputs, outputs:
    their names.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of what PyTorch and onnxscript use
        warnings.filterwarnings("ignore", category=FutureWarning)
        program = torch.onnx.export(
            torch.export.export(graph.eval(), example, dynamic_shapes=shapes, strict=False).run_decompositions(forms()),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None
    return program


def export_torch(
    detector: TwoStageDetector | SegmentationNetwork, file: Path | str, labels: Sequence[str] = ()
) -> None:
    """Write `detector`, or a segmentation network, as an exported program of PyTorch to `file`, by custom ``.pt2``.

    ``torch.export.load(file).module()(images, sizes)`` runs it, see `export_onnx`, after ``import
    regio.export``: region features and suppression are operations of this library. Gradients are not recorded. The
    extra file `regio.json` holds what the metadata of an ONNX file does.

    Raises FileExistsError for a file that exists, OSError for one that cannot be written, and ValueError for a part of
    the detector that cannot be recorded.
    """
    path = _new(file)
    with torch.no_grad():
        example, shapes = _inputs()
        graph = _graph(_own(detector)).eval()
        about = json.dumps(dict(_about(detector, graph.scales, labels)))
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
        _write(path, lambda temporary: torch.export.save(program, temporary, extra_files={"regio.json": about}))


def _inputs() -> tuple[tuple[Tensor, ...], Shapes]:
    """An example of `DetectorGraph`'s inputs, and which of their sizes may be others."""
    images, height, width = Dim("images"), Dim("height"), Dim("width")
    example = (torch.zeros((2, 3, 100, 90), dtype=torch.uint8), torch.tensor([[100, 90], [70, 80]]))
    return example, ({0: images, 2: height, 3: width}, {0: images})


def _graph(model: nn.Module) -> DetectorGraph | SegmentationGraph:
    """Raises ValueError for a network that has no graph, or a part of a detector that has none."""
    if isinstance(model, SegmentationNetwork):
        return SegmentationGraph(model)
    if not isinstance(model, TwoStageDetector) or isinstance(model, AugmentedDetector):
        raise ValueError(f"detector: expected one, or a segmentation network, got {type(model).__name__}")
    return DetectorGraph(model)


def _own(detector: Network) -> Network:
    """A copy on the CPU whose tensors are contiguous and share no memory, as files of exported programs want them."""
    own = copy.deepcopy(detector).cpu().requires_grad_(False)
    for tensor in (*own.parameters(), *own.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return own


def _about(
    detector: TwoStageDetector | SegmentationNetwork, scales: bool, labels: Sequence[str]
) -> list[tuple[str, Any]]:
    """What the file says of itself, by name: words, and other values to be written as JSON."""
    about: list[tuple[str, Any]] = [
        ("regio_version", __version__),
        ("opset", OPSET),
        ("labels", list(labels)),
        ("preprocess", detector.preprocess.normalisation()),
        ("scaled_by", "graph" if scales else "caller"),
    ]
    for head in detector.modules():
        if isinstance(head, MaskHead):
            empty = GridMasks(torch.zeros((0, 1, 1)), head.pasting)
            about += [("mask_pasting", type(head.pasting).__name__), ("mask_threshold", empty.threshold)]
    return about


def _new(file: Path | str) -> Path:
    """The path, of a file that does not exist, in a folder that does."""
    path = Path(file)
    if path.exists():
        raise FileExistsError(f"{path}: exists already; name another file, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: its folder cannot be written to")
    return path


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """`write` a file beside `path`, then move it there, so that no half of it is left."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
