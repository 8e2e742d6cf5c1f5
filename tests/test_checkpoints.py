"""Checkpoints: whole or not at all, clear about what is wrong, and never executed."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from regio.checkpoints import Card, load_weights, read_card, read_resume, save, save_resume
from regio.config import load_detector, model_from_dict, model_to_dict
from regio.config.extractors import Learned, RoIAlign
from regio.config.systems import FasterRCNN, FasterRCNNOnFPN
from regio.regions.learned import as_given
from regio.types import FeatureMap, Regions
from regio.whole_files import write_json

SAME = {"seed": "3"}
CARD = Card(("cat", "dog"), (17, 18), {"channels": 8}, {"mean": [0.5]}, 12, {"ap": 0.25})


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_weights_and_card_come_back(tmp_path: Path) -> None:
    first, second = model(), model()
    save(tmp_path / "a.safetensors", first, CARD)
    assert (
        load_weights(tmp_path / "a.safetensors", second, ("cat", "dog"))
        == CARD
        == read_card(tmp_path / "a.safetensors")
    )
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)


def test_a_shared_tensor_is_saved_once_and_comes_back_under_both_names(tmp_path: Path) -> None:
    first, second = model(), model()
    first[2].bias = second[2].bias = nn.Parameter(torch.ones(2))
    first.also = first[2]
    second.also = second[2]
    save(tmp_path / "a.safetensors", first, CARD)
    load_weights(tmp_path / "a.safetensors", second)
    assert torch.equal(second.also.weight, first[2].weight)
    names = load_file(tmp_path / "a.safetensors").keys()
    assert {"2.weight", "2.bias"} <= names and not {"also.weight", "also.bias"} & names
    optimizer = torch.optim.SGD(first.parameters(), 0.1, momentum=0.9)
    save_resume(tmp_path / "r.safetensors", {"model": first}, optimizer, {"step": 1}, SAME)
    third = model()
    third.also = third[2]
    read_resume(tmp_path / "r.safetensors", {"model": third}, torch.optim.SGD(third.parameters(), 0.1), SAME)
    assert torch.equal(third.also.bias, first[2].bias) and third.also.bias is third[2].bias


def test_other_classes(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", model(), CARD)
    with pytest.raises(ValueError, match=r"a checkpoint of 2 classes \(cat, dog\), expected these 1: bird"):
        load_weights(tmp_path / "a.safetensors", model(), ("bird",))


def test_another_detector(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", model(), CARD)
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"3\.weight is missing, 3\.bias is missing, 0\.weight has shape \[4, 3\]"):
        load_weights(tmp_path / "a.safetensors", other)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors: no such checkpoint"):
        read_card(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text: not a safetensors file, or damaged"):
        read_card(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not written by regio"):
        read_card(tmp_path / "other.safetensors")
    save(tmp_path / "whole.safetensors", model(), CARD)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.safetensors: not a safetensors file, or damaged"):
        read_card(tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="expected a file with a 'resume' entry, got one with"):
        read_resume(tmp_path / "whole.safetensors", {}, torch.optim.SGD(model().parameters()), {})


@pytest.mark.parametrize("entry", ["{", "[1]", '{"card": {}}', '{"version": "2", "card": {}}'])
def test_a_damaged_entry(tmp_path: Path, entry: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"regio": entry})
    with pytest.raises(ValueError, match=r"bad\.safetensors: damaged, its 'regio' entry"):
        read_card(tmp_path / "bad.safetensors")


def test_a_newer_format(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", {"regio": json.dumps({"version": 99, "card": {}})})
    with pytest.raises(ValueError, match="format 99, this version of regio reads up to 3"):
        read_card(tmp_path / "new.safetensors")


def test_loading_executes_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    (tmp_path / "trap.safetensors").write_bytes(pickle.dumps(Trap()))
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    for name in ("trap.safetensors", "trap.pth"):
        with pytest.raises(ValueError, match=name):
            load_weights(tmp_path / name, model())
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(path, model(), CARD)
    before = path.read_bytes()
    real = Path.open

    class Full:
        """A file on a disk that is full after 100 bytes."""

        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def write(self, content: bytes) -> int:
            self.file.write(content[:100])  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode="r", *a, **k: Full(real(self, mode, *a, **k)))
    with pytest.raises(OSError, match=r"a\.safetensors: could not be written .*No space left on device.* untouched"):
        save(path, model(), CARD)
    with pytest.raises(OSError, match=r"b\.json: could not be written"):
        write_json(tmp_path / "b.json", [1])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


class CountedSGD(torch.optim.SGD):
    """Its steps become shorter by a count that is a number, and no tensor."""

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                parameter.grad /= state["count"]
        super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor, CountedSGD])
def test_a_resumed_optimizer_goes_on_exactly(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        data = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(data).square().sum().backward()
        optimizer.step()

    options = {"lr": 0.01} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    straight = model()
    optimizer = kind(straight.parameters(), **options)
    step(straight, optimizer, 0)
    save_resume(tmp_path / "r.safetensors", {"model": straight}, optimizer, {"step": 1, "best": float("-inf")}, SAME)
    step(straight, optimizer, 1)

    resumed = model()
    optimizer = kind(resumed.parameters(), **options)
    state = read_resume(tmp_path / "r.safetensors", {"model": resumed}, optimizer, SAME)
    assert state == {"step": 1, "best": float("-inf")}
    step(resumed, optimizer, 1)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_an_optimizer_whose_state_cannot_be_kept(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(TypeError, match="optimizer: expected a state of tensors and numbers, got a list as "):
        save_resume(tmp_path / "r.safetensors", {"model": net}, optimizer, {"step": 1}, SAME)
    assert not (tmp_path / "r.safetensors").exists()


def test_resuming_another_model(tmp_path: Path) -> None:
    first, path = model(), tmp_path / "r.safetensors"
    save_resume(path, {"model": first}, torch.optim.SGD(first.parameters()), {"step": 1}, SAME)
    other = model()
    with pytest.raises(ValueError, match=r"r\.safetensors: a run can only be resumed as it was: seed 3, got 4; flip"):
        read_resume(path, {"model": other}, torch.optim.SGD(other.parameters()), {"seed": "4", "flip": "0.5"})
    wide = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="does not fit this run's model: size mismatch for 2.weight"):
        read_resume(path, {"model": wide}, torch.optim.SGD(wide.parameters()), SAME)


def test_resuming_with_other_parameters_trained(tmp_path: Path) -> None:
    """Their number and shapes may well fit: `a` and `b` have parameters of the same shapes."""

    def trained(*frozen: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        for name in frozen:
            net[name].requires_grad_(False)
        return net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])

    net, optimizer = trained("a")
    save_resume(tmp_path / "r.safetensors", {"model": net}, optimizer, {"step": 1}, SAME)
    other, optimizer = trained("b")
    weights = [parameter.clone() for parameter in other.parameters()]
    expected = (
        "optimizer: model.b.bias is trained no more, model.b.weight is trained no more, model.a.bias was not trained"
    )
    with pytest.raises(ValueError, match=expected):
        read_resume(tmp_path / "r.safetensors", {"model": other}, optimizer, SAME)
    assert all(torch.equal(a, b) for a, b in zip(weights, other.parameters(), strict=True))


def test_a_resume_file_of_an_earlier_version(tmp_path: Path) -> None:
    header = {"regio": json.dumps({"version": 1, "resume": {"step": 1, "groups": []}})}
    save_file({"a": torch.zeros(1)}, tmp_path / "r.safetensors", header)
    with pytest.raises(ValueError, match="written by an earlier version of regio"):
        read_resume(tmp_path / "r.safetensors", {}, torch.optim.SGD(model().parameters()), SAME)


@torch.no_grad()
@pytest.mark.slow
def test_format_1_is_read(tmp_path: Path) -> None:
    """Before there were RoI heads, the extractor and the one head were parts of the detector; the geometric term of
    learned region features had no factor, and their grid was a start of the parameters."""
    extractor = Learned(terms="both", prior="none", feature_encoding="as-given")
    settings = FasterRCNNOnFPN(channels=16, hidden=32, extractor=extractor)
    detector = settings.build(2)
    own = detector.state_dict()
    old = {
        name.replace("roi_heads.0.extractor.", "extractor.")
        .replace("roi_heads.0.trunk.", "head.")
        .replace("roi_heads.0.", "head."): tensor.contiguous().clone()
        for name, tensor in own.items()
    }
    assert {"head.fc6.weight", "head.class_logits.bias", "extractor.extractors.0.part_weight"} <= old.keys()
    model = {
        "backbone": "efficientnet_lite0", "backbone_weights": None, "frozen": 2, "neck": "fpn", "levels": [3, 4, 5],
        "channels": 16, "extractor": "learned-grid", "hidden": 32, "short_side": 320, "long_side": 480,
        "anchor_sizes": [32.0, 64.0, 128.0, 256.0], "sampled_regions": 128, "score_threshold": 0.05,
        "nms_threshold": 0.5, "detections": 100,
    }  # fmt: skip
    header = {"version": 1, "card": {"class_names": ["cat", "dog"], "category_ids": [1, 2], "model": model}}
    save_file(old, tmp_path / "old.safetensors", {"regio": json.dumps(header)})
    other, card = load_detector(tmp_path / "old.safetensors")
    assert card.class_names == ("cat", "dog") and model_from_dict(card.model) == settings
    back = other.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in back.items() if not name.endswith("part_weight"))
    as_it_was, now = (each.roi_heads[0].extractor.extractors[0] for each in (detector, other))
    as_it_was.scale = 1.0
    x = FeatureMap(torch.randn(1, 16, 12, 17), 8)
    r = Regions(torch.tensor([[8.0, 9, 80, 70]]), torch.tensor([0]))
    torch.testing.assert_close(now(x, r), as_it_was(x, r))
    header["version"] = 2
    save_file(old, tmp_path / "mixed.safetensors", {"regio": json.dumps(header)})
    with pytest.raises(ValueError, match="is missing"):
        load_weights(tmp_path / "mixed.safetensors", detector)


@torch.no_grad()
def test_format_2_is_read(tmp_path: Path) -> None:
    """The appearance term of learned region features read features as they are."""
    was = FasterRCNNOnFPN(channels=16, hidden=32, extractor=Learned(feature_encoding="as-given"))
    detector = was.build(2)
    card = {"class_names": ["cat", "dog"], "category_ids": [1, 2], "model": model_to_dict(was)}
    del card["model"]["extractor"]["feature_encoding"]
    header = {"version": 2, "card": card}
    state = {name: tensor.contiguous().clone() for name, tensor in detector.state_dict().items()}
    save_file(state, tmp_path / "old.safetensors", {"regio": json.dumps(header)})
    assert model_from_dict(read_card(tmp_path / "old.safetensors").model) == was
    other, _ = load_detector(tmp_path / "old.safetensors")
    assert other.roi_heads[0].extractor.extractors[0].feature_encoding is as_given
    aligned = FasterRCNN(extractor=RoIAlign())
    header = {"version": 2, "card": card | {"model": model_to_dict(aligned)}}
    save_file(state, tmp_path / "aligned.safetensors", {"regio": json.dumps(header)})
    assert model_from_dict(read_card(tmp_path / "aligned.safetensors").model) == aligned
