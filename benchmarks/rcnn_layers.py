"""R-CNN's table 2 on data of one's own: which layer the SVMs read, with and without fine-tuning and box regression.

    python benchmarks/rcnn_layers.py DATA PROPOSALS VALIDATION_PROPOSALS --classes person,bus --images 150,60 ...

Features of all layers are computed once for each network and kept on disk; all rows of the table are fitted to them and
measured with them. Resumable: what is in --folder is not made again.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from regio.config.systems import RCNN
from regio.data import HorizontalFlip, open_dataset, read_proposals
from regio.data.dataset import DetectionDataset
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator, detections_to_coco
from regio.fitting import BoxRegression, FeatureStore, HardNegativeMining, label_regions
from regio.fitting.extraction import open_store, store_features
from regio.fitting.thresholds import score_thresholds
from regio.optimisation import AdamW
from regio.processes import launch
from regio.recipes import StagedRun
from regio.roi_heads import SVMHead
from regio.systems.rcnn import fine_tuning
from regio.train import TrainConfig

LAYERS = ("pool5", "fc6", "fc7")


def subset(path: str, split: str, classes: list[str], count: int, proposals: Path, most: int) -> DetectionDataset:
    """`count` images, half of them with an object of a class other than the first, as far as there are such."""
    boxes = read_proposals(proposals, most)
    data = open_dataset(path, split)
    data = data.keep_classes(classes) if classes else data
    known = [i for i, record in enumerate(data.records) if record.id in boxes]
    rare = [i for i in known if (data.records[i].labels > 1).any()]
    others = [i for i in known if i not in set(rare)]
    generator = np.random.default_rng(0)
    generator.shuffle(rare)
    generator.shuffle(others)
    chosen = rare[: count // 2]
    return data.subset(sorted(chosen + others[: count - len(chosen)])).with_proposals(boxes)


def stored(folder: Path, detector: TwoStageDetector, data: DetectionDataset, name: str) -> FeatureStore:
    store = open_store(folder, detector, data, layers=LAYERS)
    print(f"{name}: {store}, {len(store.missing)} images to do", flush=True)
    began = time.perf_counter()
    store_features(store, detector, data)
    print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return store


def measured(head: SVMHead, store: FeatureStore, data: DetectionDataset) -> dict[str, float]:
    """What the head finds, from stored features."""
    evaluator, records = BoxEvaluator(data), []
    scores_of = store.layer(head.layer)
    moves_of = None if head.box_layer is None else store.layer(head.box_layer)
    for index, record in enumerate(data.records):
        regions = label_regions(data, index)
        objects = len(regions.labels)
        boxes = regions.boxes[objects:]
        with torch.no_grad():
            scores = head.class_logits(torch.from_numpy(scores_of.of_image(index)[objects:]))
            deltas = torch.zeros(len(boxes), 1, 4)
            if moves_of is not None and head.box_deltas is not None:
                moved = head.box_deltas(torch.from_numpy(moves_of.of_image(index)[objects:]))
                deltas = torch.nn.functional.pad(moved.unflatten(1, (-1, 4)), (0, 0, 1, 0))
            (found,) = head.detect(scores, deltas, [boxes], [record.size])
        records.append(detections_to_coco(found, record.id, data.category_ids, record.size))
    return evaluator.measure(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("proposals", type=Path)
    parser.add_argument("validation_proposals", type=Path)
    parser.add_argument("--classes", default="")
    parser.add_argument("--images", default="150,60")
    parser.add_argument("--per-image", type=int, default=300)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--context", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--regions", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--class-rate", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/rcnn-layers"))
    options = parser.parse_args()
    classes = [name for name in options.classes.split(",") if name]
    train_count, val_count = (int(n) for n in options.images.split(","))
    train = subset(options.data, "train", classes, train_count, options.proposals, options.per_image)
    val = subset(options.data, "val", classes, val_count, options.validation_proposals, options.per_image)
    settings = RCNN(crop=options.crop, context=options.context)
    rows = []
    for tuned in (False, True):
        torch.manual_seed(options.seed)
        detector = settings.build(len(train.class_names))
        if tuned:
            config = TrainConfig(
                steps=options.steps,
                batch_size=2,
                optimizer=AdamW(options.lr),
                evaluate_every=1e9,
                workers=0,
                seed=options.seed,
                device="cpu",
            )
            network = fine_tuning(detector, regions_per_image=options.regions, rate=options.class_rate)
            run = StagedRun(
                launch("cpu"),
                options.folder / f"seed-{options.seed}",
                train,
                BoxEvaluator(val.subset([0])),  # the table is measured from features, not here
                config,
                transform=HorizontalFlip(),
                resume=True,
                say=print,
            )
            began = time.perf_counter()
            run.stage("1-fine-tuning", network)
            print(f"fine-tuning: {time.perf_counter() - began:.0f} s", flush=True)
        features = stored(options.folder / "features", detector, train, "training")
        unseen = stored(options.folder / "features", detector, val, "validation")
        regression = BoxRegression()(features.layer("pool5"), lambda i: label_regions(train, i), train.class_names)
        for layer in LAYERS:
            began = time.perf_counter()
            machines = HardNegativeMining()(features.layer(layer), lambda i: label_regions(train, i), train.class_names)
            thresholds = score_thresholds(features.layer(layer), lambda i: label_regions(train, i), machines)
            seconds = time.perf_counter() - began
            for boxes in (False, True):
                own = replace(settings, layer=layer, box_regression=boxes)
                head = cast(SVMHead, own.build(len(train.class_names), pretrained=False).roi_heads[0])
                with torch.no_grad():
                    head.class_logits.weight.copy_(machines.weight)
                    head.class_logits.bias.copy_(machines.bias)
                    head.thresholds.copy_(thresholds)
                    if head.box_deltas is not None:
                        head.box_deltas.weight.copy_(regression.weight.flatten(0, 1))
                        head.box_deltas.bias.copy_(regression.bias.flatten())
                numbers = measured(head, unseen, val)
                what = f"{layer}{' + FT' if tuned else ''}{' + BB' if boxes else ''}"
                rows.append((what, numbers["voc_ap"], numbers["voc_ap_11_points"], numbers["ap"], seconds))
                print(
                    f"| {what} | {' | '.join(f'{value:.3f}' for value in rows[-1][1:4])} | {seconds:.0f} |", flush=True
                )
    print("\n| | mAP, area | mAP, 11 points | COCO AP | SVM fit, s |\n|---|---|---|---|---|")
    for what, *values, seconds in rows:
        print(f"| {what} | {' | '.join(f'{value:.3f}' for value in values)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
