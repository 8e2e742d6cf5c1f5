"""Measuring predictions: COCO's and Pascal VOC's metrics, recall of proposals, and models run over a data set."""

from regio.evaluate.boxes import BoxEvaluator
from regio.evaluate.classification import ClassAccuracy
from regio.evaluate.coco import ClassAP, CocoMetrics, coco_metrics, detections_to_coco
from regio.evaluate.confusion import confusion_matrix
from regio.evaluate.instances import MaskEvaluator
from regio.evaluate.proposals import ProposalRecall, Recalled
from regio.evaluate.run import Evaluation, Evaluator, Predict, evaluate, evaluation_mode, predict
from regio.evaluate.voc import VocClass, VocMetrics, all_point_ap, eleven_point_ap, voc_metrics

__all__ = [
    "BoxEvaluator",
    "ClassAP",
    "ClassAccuracy",
    "CocoMetrics",
    "Evaluation",
    "Evaluator",
    "MaskEvaluator",
    "Predict",
    "ProposalRecall",
    "Recalled",
    "VocClass",
    "VocMetrics",
    "all_point_ap",
    "coco_metrics",
    "confusion_matrix",
    "detections_to_coco",
    "eleven_point_ap",
    "evaluate",
    "evaluation_mode",
    "predict",
    "voc_metrics",
]
