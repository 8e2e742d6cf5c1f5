"""Annotated images: reading them in any format, augmenting them, and forming batches."""

from regio.data.class_images import object_crops, read_class_folders
from regio.data.coco import read_coco
from regio.data.convert import Conversion, convert, write_coco, write_voc, write_yolo
from regio.data.dataset import DetectionDataset, Sample
from regio.data.doctor import Examination, examine
from regio.data.images import read_image
from regio.data.loading import Batch, EpochBatches, TrainingSet, collate
from regio.data.masks import decode_masks, encode_mask
from regio.data.open import divide, open_dataset, open_undivided
from regio.data.proposals import read_proposals, write_proposals
from regio.data.records import Problem, Record
from regio.data.shapes import SHAPE_CLASSES, Shapes
from regio.data.transforms import (
    Compose,
    HorizontalFlip,
    PhotometricJitter,
    RandomCrop,
    RandomResize,
    Resize,
    Transform,
)
from regio.data.voc import VOC_CLASSES, read_voc
from regio.data.yolo import read_yolo

__all__ = [
    "SHAPE_CLASSES",
    "VOC_CLASSES",
    "Batch",
    "Compose",
    "Conversion",
    "DetectionDataset",
    "EpochBatches",
    "Examination",
    "HorizontalFlip",
    "PhotometricJitter",
    "Problem",
    "RandomCrop",
    "RandomResize",
    "Record",
    "Resize",
    "Sample",
    "Shapes",
    "TrainingSet",
    "Transform",
    "collate",
    "convert",
    "decode_masks",
    "divide",
    "encode_mask",
    "examine",
    "object_crops",
    "open_dataset",
    "open_undivided",
    "read_class_folders",
    "read_coco",
    "read_image",
    "read_proposals",
    "read_voc",
    "read_yolo",
    "write_coco",
    "write_proposals",
    "write_voc",
    "write_yolo",
]
