"""`regio export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["export"]


class Format(StrEnum):
    """The formats there are writers of."""

    ONNX = "onnx"
    TORCH = "torch"


def export(
    weights: Annotated[
        str,
        typer.Argument(
            help="Checkpoint, or torchvision:NAME such as torchvision:maskrcnn_resnet50_fpn_v2; torchvision:NAME=FILE "
            "where its weights lie in a file."
        ),
    ],
    *,
    format: Annotated[
        Format, typer.Option(help="onnx for ONNX Runtime, OpenVINO and others; torch for torch.export.load.")
    ] = Format.ONNX,
    output: Annotated[
        Path | None, typer.Option(help="File to write (default: beside the checkpoint, or NAME here).")
    ] = None,
    score: Annotated[
        float | None, typer.Option(help="Lowest score of a detection (default: the detector's own).")
    ] = None,
) -> None:
    """Write a trained model as one file that other programs run: ONNX, or an exported program of PyTorch.

    Both take images of any size and number. docs/export.md has inputs, outputs and an example without PyTorch.
    """
    from regio.export import export_onnx, export_torch
    from regio.weights import load_trained

    write, suffix = {Format.ONNX: (export_onnx, ".onnx"), Format.TORCH: (export_torch, ".pt2")}[format]
    trained = load_trained(weights, score_threshold=score)
    model: Any = trained.model
    name = weights if Path(weights).exists() else weights.partition(":")[2].partition("=")[0]
    file = Path(name).with_suffix(suffix) if output is None else output
    write(model, file, trained.labels)
    Console(soft_wrap=True).print(
        f"{len(trained.labels)} labels, {file.stat().st_size / 1e6:.0f} MB, in [bold]{escape(str(file))}[/]",
        highlight=False,
    )
