"""Trained detectors as files that run without this library's Python code.

    export_onnx(detector, file)     for ONNX Runtime, OpenVINO and whatever else reads ONNX
    export_torch(detector, file)    for `torch.export.load`

Both hold one graph, `DetectorGraph`: images as bytes and their sizes in, boxes in pixels of these images out; or
`SegmentationGraph`: the class of every pixel out.
"""

from regio.export.files import export_onnx, export_torch
from regio.export.graph import DetectorGraph
from regio.export.segmentation import SegmentationGraph

__all__ = ["DetectorGraph", "SegmentationGraph", "export_onnx", "export_torch"]
