"""Pictures with boxes, plots of a training, and the page that reports it."""

from regio.visualize.class_maps import class_map_image, draw_class_map, legend, with_legend
from regio.visualize.colours import class_colour
from regio.visualize.contact_sheet import comparison_sheet, contact_sheet
from regio.visualize.draw import draw_detections, draw_targets, enlarged
from regio.visualize.plots import (
    confusion_figure,
    divergence_figure,
    offset_length_figure,
    precision_recall_figure,
    recall_comparison_figure,
    recall_figure,
    training_figure,
)
from regio.visualize.report import write_report

__all__ = [
    "class_colour",
    "class_map_image",
    "comparison_sheet",
    "confusion_figure",
    "contact_sheet",
    "divergence_figure",
    "draw_class_map",
    "draw_detections",
    "draw_targets",
    "enlarged",
    "legend",
    "offset_length_figure",
    "precision_recall_figure",
    "recall_comparison_figure",
    "recall_figure",
    "training_figure",
    "with_legend",
    "write_report",
]
