"""Studies as data: the arms of each table have the settings that they should, and files that are wrong are refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from regio.compare import Arm
from regio.compare.study import COCO_METRICS, Study, read_study, study_names
from regio.config import RunConfig
from regio.config.extractors import DeformableRoIPool, Learned, RoIAlign, RoIPool
from regio.config.systems import RFCN, ClassAwareRPN, FasterRCNN, FasterRCNNOnFPN
from regio.optimisation import SGD, AdamW, Cosine, Step

SHARED = RunConfig("shapes", images=20)
STUDY = read_study("region-features")
TABLE = {"title": "", "about": "", "reference": "a", "rows": [{"arm": "a", "name": ""}]}


def arms(
    tables: Sequence[str], words: Sequence[str] = (), *, full: bool = False, images: int = 0
) -> tuple[dict[str, Arm], dict[str, Arm]]:
    """Networks and arms by label."""
    first, found = STUDY.plan_arms(tables, SHARED, words, full=full, images=images)
    return {arm.label: arm for arm in first}, {arm.label: arm for arm in found}


def learned(**options: Any) -> Learned:
    """As all arms have it that say nothing else."""
    return Learned(**{"terms": "both", "feature_encoding": "as-given", "prior": "roi-align", **options})


def extractor(arm: Arm) -> Any:
    return arm.config.model.extractor  # type: ignore[attr-defined]


def test_studies_by_name() -> None:
    assert study_names() == ("deformable-convnets", "region-features")
    assert tuple(STUDY.tables) == ("2", "3", "4", "5", "start", "rate", "moved", "normalised")


def test_all_arms_of_the_short_form_train_the_same_head_on_the_same_maps_and_proposals() -> None:
    first, found = arms(STUDY.chosen_tables(None))
    assert list(first) == ["rpn", "rpn-fpn"]
    for label, arm in found.items():
        model: Any = arm.config.model
        assert (model.backbone, model.frozen, arm.config.keep_maps) == ("efficientnet_lite0", 5, True)
        assert (model.short_side, model.long_side, model.channels, model.hidden) == (240, 320, 128, 512)
        assert (model.regions_per_image, model.background_low, model.nms_threshold) == (64, 0.0, 0.5)
        assert (arm.config.training.steps, arm.config.training.batch_size) == (1000, 4)
        fpn = label.startswith("fpn-")
        assert (arm.config.proposals, arm.config.proposals_per_image) == ("<rpn-fpn>" if fpn else "<rpn>", 300)
        assert arm.first == (("rpn-fpn",) if fpn else ("rpn",))
        if label.endswith("-sgd"):
            assert arm.config.training.optimizer == SGD(0.01, 0.9, 1e-4)
            assert arm.config.training.schedule == Step(milestones=(0.6666667,))
        else:
            assert (arm.config.training.optimizer, arm.config.training.schedule) == (AdamW(4e-4), Cosine())
    for arm in first.values():
        model = arm.config.model
        assert (model.backbone, model.frozen, arm.config.keep_maps) == ("efficientnet_lite0", 5, True)
        assert (arm.config.training.steps, model.short_side) == (1000, 240)


@pytest.mark.parametrize("words", [(), ("extractor.support=2x",), ("extractor.support=box",)])
def test_arms_of_table_2(words: Sequence[str]) -> None:
    """What a row is named for, no setting of the whole study changes."""
    first, found = arms(["2"], words)
    assert list(first) == ["rpn"]
    assert {label: extractor(arm) for label, arm in found.items()} == {
        "regular": RoIPool(),
        "regular-2x": RoIPool(support="2x"),
        "aligned": RoIAlign(),
        "aligned-2x": RoIAlign(support="2x"),
        "ours": learned(support="image", mode="exact"),
        "ours-box": learned(support="box"),
        "ours-2x": learned(support="2x"),
    }


def test_arms_of_table_3() -> None:
    """The maxima of the paper on its maps of some 2000 cells, and a 6.7th of them on maps of 300."""
    everything = 1_000_000
    maxima = {  # inside, outside: of the long form and of the short one
        "in-7": ((49, everything), (7, everything)),
        "in-14": ((196, everything), (29, everything)),
        "in-21": ((441, everything), (66, everything)),
        "out-100": ((196, 100), (29, 15)),
        "out-196": ((196, 196), (29, 29)),
        "out-400": ((196, 400), (29, 60)),
        "out-625": ((196, 625), (29, 93)),
    }
    for short in (False, True):
        _, found = arms(["3"], full=not short, images=4)
        assert list(found) == ["ours", *maxima]
        for label, pairs in maxima.items():
            own = extractor(found[label])
            assert (own.mode, own.support, own.prior) == ("sampled", "image", "roi-align")
            assert (own.inside, own.outside) == pairs[short]


def test_short_maxima_have_the_strides_of_the_paper() -> None:
    """Eq. 11 on 38 x 53 and on 15 x 20 cells."""
    _, short = arms(["3"])
    _, full = arms(["3"], full=True, images=4)
    strides = []
    for label in ("out-100", "out-196", "out-400", "out-625", "in-14"):
        pair = [
            -(-((height * width / extractor(found[label]).outside) ** 0.5) // 1)
            for found, (height, width) in ((full, (38, 53)), (short, (15, 20)))
        ]
        assert pair[0] == pair[1], label
        strides.append(pair[0])
    assert strides == [5, 4, 3, 2, 1]


def test_arms_of_table_4_5_the_start_and_the_rate() -> None:
    _, found = arms(["4"])
    assert {label: extractor(arm) for label, arm in found.items()} == {
        "regular": RoIPool(),
        "aligned": RoIAlign(),
        "deformable": DeformableRoIPool(gamma=0.1),
        "ours": learned(),
        "geometry": learned(terms="geometry"),
        "appearance": learned(terms="appearance", prior="none", support="box"),
    }
    first, found = arms(["5"])
    assert list(first) == ["rpn", "rpn-fpn"]
    kinds = [RoIPool(), RoIAlign(), DeformableRoIPool(), learned()]
    assert [extractor(arm) for arm in found.values()] == kinds * 2
    assert [type(arm.config.model).__name__ for arm in found.values()] == ["FastRCNN"] * 4 + ["FastRCNNOnFPN"] * 4
    _, found = arms(["start"])
    assert {label: extractor(arm) for label, arm in found.items()} == {
        "aligned": RoIAlign(),
        "ours": learned(),
        "half-cell": learned(prior="grid"),
        "no-grid": learned(prior="none"),
        "printed": learned(prior="none", scale=1.0),
        "printed-sgd": learned(prior="none", scale=1.0),
        "aligned-sgd": RoIAlign(),
    }
    _, found = arms(["rate"])
    assert {label: extractor(arm) for label, arm in found.items()} == {
        "aligned": RoIAlign(),
        "rate-0": learned(rate=0.0),
        "rate-third": learned(rate=0.3),
        "ours": learned(),
        "rate-3": learned(rate=3.0),
    }
    _, found = arms(["moved"])
    assert [extractor(arm) for arm in found.values()] == [*kinds[1:], learned(prior="deformable")] * 2
    _, found = arms(["normalised"])
    one_map = {
        "aligned": RoIAlign(),
        "ours": learned(),
        "normalised": learned(feature_encoding="normalised"),
        "normalised-moved": learned(feature_encoding="normalised", prior="deformable"),
        "moved-appearance": learned(terms="appearance", feature_encoding="normalised", prior="deformable"),
    }
    assert {label: extractor(arm) for label, arm in found.items()} == {
        "geometry": learned(terms="geometry"),
        **one_map,
        **{f"fpn-{label}": own for label, own in one_map.items()},
    }


@pytest.mark.slow
def test_the_long_form_is_the_paper() -> None:
    """16 epochs of 115,000 images in steps of 4, 6 for the proposals; 12 on a pyramid."""
    first, found = arms(STUDY.chosen_tables(None), full=True, images=115_000)
    assert found["aligned"].config.training.steps == 460_000
    assert found["fpn-aligned"].config.training.steps == 345_000
    assert {label: arm.config.training.steps for label, arm in first.items()} == {"rpn": 172_500, "rpn-fpn": 345_000}
    model: Any = found["aligned"].config.model
    assert (model.backbone, model.frozen, model.level, model.output_stride) == ("torchvision:resnet50", 2, 5, 16)
    assert (model.short_side, model.long_side, model.channels, model.hidden) == (600, 1000, 256, 1024)
    assert found["aligned"].config.training.optimizer == SGD(2e-3, 0.9, 1e-4)
    assert not found["aligned"].config.keep_maps
    network: Any = first["rpn"].config.model
    assert (network.level, network.anchor_sizes) == (4, (64.0, 128.0, 256.0, 512.0))
    pyramid: Any = found["fpn-ours"].config.model
    assert (pyramid.short_side, pyramid.long_side, pyramid.levels) == (800, 1333, (2, 3, 4, 5))
    assert found["fpn-ours"].config.training.optimizer == SGD(5e-3, 0.9, 1e-4)
    assert found["r101-ours"].config.model.backbone == "torchvision:resnet101"  # type: ignore[attr-defined]
    assert not {"printed-sgd", "aligned-sgd"} & found.keys()  # SGD is what all have


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_every_arm_and_network_builds(full: bool) -> None:
    words = ["channels=16", "hidden=16", "backbone_weights=none", "backbone=efficientnet_lite0"]
    first, found = arms([name for name in STUDY.tables if not full or name in ("2", "5")], words, full=full, images=4)
    for arm in (*first.values(), *found.values()):
        detector = arm.config.model.build(2)
        assert (detector.proposals is None) == (arm.label in found)


def test_words_of_the_user_win_over_the_study_but_not_over_an_arm() -> None:
    first, found = arms(["4"], ["steps=7", "channels=32", "extractor=roi-pool", "optimizer.lr=1e-3"])
    assert {arm.config.training.steps for arm in (*first.values(), *found.values())} == {7}
    assert extractor(found["aligned"]) == RoIAlign()
    assert found["aligned"].config.model.channels == 32  # type: ignore[attr-defined]
    assert found["aligned"].config.training.optimizer == AdamW(1e-3)
    first, found = arms(["4"], ["proposals=selective-search"])
    assert not first and {arm.config.proposals for arm in found.values()} == {"selective-search"}


def test_every_line_of_the_paper() -> None:
    """Mean AP of some, by hand, and that COCO's AP lies between AP75 and AP50 but for the misprint."""
    rows = [row for table in STUDY.tables.values() for row in table.rows if row.paper]
    assert len(rows) == 7 + 9 + 5 + 12
    for row in rows:
        assert row.paper is not None and len(row.paper) == len(COCO_METRICS)
        ap, ap50, ap75, small, medium, large = row.paper
        assert ap < ap50 and small < medium < large
        assert ap75 > ap - 1 or row.arm == "r101-regular"
    paper = {(name, row.arm): row.paper[0] for name, table in STUDY.tables.items() for row in table.rows if row.paper}
    assert paper["2", "ours"] == 34.3 and paper["4", "geometry"] == 33.2 and paper["5", "fpn-ours"] == 37.8
    cells = [row.also for row in STUDY.tables["3"].rows]
    assert cells[3] == {"cells outside": 1737, "cells inside": 282, "GFLOP": 17.1}


def written(path: Path, change: dict[str, Any]) -> str:
    values = {
        "title": "t",
        "source": "s",
        "paper_data": "d",
        "about": "a",
        "short": {"about": "", "steps": 3},
        "full": {"about": "", "epochs": 2},
        "arms": {"a": {"system": "faster-rcnn"}},
        "tables": {"1": {"title": "t", "about": "", "reference": "a", "rows": [{"arm": "a", "name": "n"}]}},
    }
    path.write_text(yaml.safe_dump({**values, **change}))
    return str(path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    study = read_study(written(tmp_path / "s.yaml", {}))
    assert isinstance(study, Study)
    first, found = study.plan_arms(("1",), SHARED, (), full=True, images=10)
    assert first == () and [(arm.label, arm.config.training.steps) for arm in found] == [("a", 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"s.yaml: colour: Unexpected keyword argument"),
        ({"short": {"about": ""}}, r"s.yaml: short: expected either steps or epochs"),
        ({"pictures": ["b"]}, r"s.yaml: pictures: expected an arm, one of a, got 'b'"),
        (
            {"tables": {"1": {"title": "", "about": "", "reference": "b", "rows": [{"arm": "a", "name": ""}]}}},
            r"s.yaml: tables.1: expected an arm, one of a, got 'b'",
        ),
        (
            {
                "tables": {
                    "1": {"title": "", "about": "", "reference": "a", "rows": [{"arm": "a", "name": "", "paper": [1]}]}
                }
            },
            r"s.yaml: tables.1.rows.0.paper: expected 6 numbers, those of ap, ap50, .*, got 1",
        ),
        (
            {"tables": {"1": TABLE | {"metrics": ["map"]}}},
            r"s.yaml: tables.1.metrics: expected some of ap, ap50, .*, got 'map'",
        ),
        ({"tables": {"1": TABLE | {"metrics": []}}}, r"s.yaml: tables.1.metrics: expected one at least"),
        (
            {
                "tables": {
                    "1": {
                        "title": "",
                        "about": "",
                        "reference": "a",
                        "analysis": "x",
                        "rows": [{"arm": "a", "name": ""}],
                    }
                }
            },
            r"s.yaml: tables.1: expected one of sampled-cells, got 'x'",
        ),
    ],
)
def test_a_file_that_is_wrong_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_study(written(tmp_path / "s.yaml", change))
    assert "\n" not in str(error.value)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"--study: expected deformable-convnets, region-features, or a file, got 'region'"
    ):
        read_study("region")
    with pytest.raises(ValueError, match=r"--tables: expected one of 2, .*, rate, moved, normalised, got '7'"):
        STUDY.chosen_tables(["2", "7"])
    with pytest.raises(ValueError, match=r"<none>: expected one of rpn, rpn-fpn"):
        arms(["4"], ["proposals=<none>"])


def test_arms_of_deformable_convnets() -> None:
    study = read_study("deformable-convnets")
    first, found = study.plan_arms(study.chosen_tables(None), SHARED, (), full=False, images=20)
    assert first == () and len(found) == 32
    for arm in found:
        model: Any = arm.config.model
        assert (model.frozen, arm.config.keep_maps, arm.config.training.steps) == (4, True, 1000)
        system, _, what = arm.label.partition("-")
        assert type(model) is {"rpn": ClassAwareRPN, "faster": FasterRCNN, "rfcn": RFCN, "fpn": FasterRCNNOnFPN}[system]
        fixed = what.removeprefix("dilation-") if what.startswith("dilation-") else None
        layers = {"": 0, "1": 1, "2": 2, "3": 3, "6": 5, "roi": 0, "both": 3}
        assert model.deformable_layers == (layers[what] if fixed is None else 0)
        assert (model.dilation, model.dilated_layers) == (int(fixed or 0), 3)
        if what in ("roi", "both"):
            assert isinstance(model.extractor, DeformableRoIPool)
    _, full = study.plan_arms(study.chosen_tables(None), SHARED, (), full=True, images=16_000)
    deformable = {arm.label: arm.config.model.deformable_layers for arm in full}  # type: ignore[attr-defined]
    assert deformable["rfcn-6"] == 6 and all(arm.config.training.steps == 30_000 for arm in full)
    widths = {arm.label: arm.config.model.channels for arm in full}  # type: ignore[attr-defined]
    assert (widths["rfcn"], widths["rfcn-6"], widths["rfcn-both"], widths["faster"]) == (1024, 1024, 1024, 256)


def test_relative_gains_in_the_paper_of_deformable_convnets() -> None:
    """Section 4.3: 11, 13 and 12 % on COCO."""
    rows = read_study("deformable-convnets").tables["5"].rows
    pairs = zip(rows[::2], rows[1::2], strict=True)
    gains = [100 * (after.paper[0] / before.paper[0] - 1) for before, after in pairs if before.paper and after.paper]
    assert [round(gain) for gain in gains] == [11, 13, 12]
