"""Measuring predictions: COCO's and Pascal VOC's metrics, recall of proposals, overlap of classes of pixels, and models
run over a data set."""

from regio.evaluate.boxes import BoxEvaluator
from regio.evaluate.classification import ClassAccuracy
from regio.evaluate.coco import ClassAP, CocoMetrics, coco_metrics, detections_to_coco
from regio.evaluate.confusion import confusion_matrix
from regio.evaluate.instances import MaskEvaluator
from regio.evaluate.proposals import ProposalRecall, Recalled
from regio.evaluate.run import Evaluation, Evaluator, Predict, evaluate, predict
from regio.evaluate.segmentation import MeanIoU, Segmented, class_iou, pixel_confusion
from regio.evaluate.voc import VocClass, VocMetrics, all_point_ap, eleven_point_ap, voc_metrics
from regio.evaluation_mode import evaluation_mode

__all__ = [
    "BoxEvaluator",
    "ClassAP",
    "ClassAccuracy",
    "CocoMetrics",
    "Evaluation",
    "Evaluator",
    "MaskEvaluator",
    "MeanIoU",
    "Predict",
    "ProposalRecall",
    "Recalled",
    "Segmented",
    "VocClass",
    "VocMetrics",
    "all_point_ap",
    "class_iou",
    "coco_metrics",
    "confusion_matrix",
    "detections_to_coco",
    "eleven_point_ap",
    "evaluate",
    "evaluation_mode",
    "pixel_confusion",
    "predict",
    "voc_metrics",
]
