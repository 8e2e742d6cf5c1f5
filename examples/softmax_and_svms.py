"""Softmax against support vector machines on the features of one Fast R-CNN (section 5.4 of its paper). SVMs are fitted
to what fc7 gives for all proposals of the training images, with R-CNN's hard negative mining; nothing else changes.
`python examples/softmax_and_svms.py CHECKPOINT DATA [SETTING ...]` prints AP and AP50 of both; settings are those of
regio train: proposals=FILE, images=400."""

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from regio.config import RunConfig, load_detector, model_from_dict
from regio.evaluate import evaluate
from regio.fitting import HardNegativeMining, label_regions
from regio.fitting.extraction import open_store, store_features
from regio.ready import ReadyDetector
from regio.run import open_splits
from regio.settings import override
from regio.systems import fast_rcnn_svms

weights, data, settings = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
detector, card = load_detector(weights)
run = RunConfig(
    data,
    model=model_from_dict(card.model),
    classes=card.class_names,
    proposals_per_image=card.proposals.get("per_image", 2000),
)
config = override(run, settings)
training, validation = open_splits(config, Console(), weights.parent)
evaluator = config.model.evaluator(validation)
machines = fast_rcnn_svms(detector.eval()).eval()
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    store = open_store(Path(folder), machines, training, layers=("fc7",))
    print(store)
    store_features(store, machines, training)
    found = HardNegativeMining()(
        store.layer("fc7"), lambda image: label_regions(training, image), card.class_names, print
    )
    machines.roi_heads[0].class_logits.weight.copy_(found.weight)
    machines.roi_heads[0].class_logits.bias.copy_(found.bias)
for name, each in (("softmax", detector), ("SVMs", machines)):
    numbers = evaluate(ReadyDetector(each, precision="32-true"), evaluator).numbers
    print(f"{name}: AP {numbers['ap']:.3f}, AP50 {numbers['ap50']:.3f}")
