"""The laws of transforms: boxes and masks follow the pixels, flips are involutions, draws come from the generator."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from regio.data import (
    Compose,
    HorizontalFlip,
    PhotometricJitter,
    RandomCrop,
    RandomResize,
    Resize,
    Sample,
    Shapes,
    Transform,
)
from regio.types import Targets


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _lit(size: tuple[int, int], box: tuple[int, int, int, int]) -> Sample:
    """A black image with one white rectangle, which is the only object."""
    x1, y1, x2, y2 = box
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = 255
    targets = Targets(torch.tensor([box], dtype=torch.float32), torch.tensor([1]), masks=image[:1] > 0)
    return Sample(image, targets, 1, "lit")


def _extent(lit: torch.Tensor) -> list[float]:
    y, x = torch.nonzero(lit, as_tuple=True)
    return [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)]


@st.composite
def lit_samples(draw: st.DrawFn) -> Sample:
    height, width = draw(st.integers(8, 40)), draw(st.integers(8, 40))
    x1, y1 = draw(st.integers(0, width - 4)), draw(st.integers(0, height - 4))
    x2, y2 = draw(st.integers(x1 + 3, width)), draw(st.integers(y1 + 3, height))
    return _lit((height, width), (x1, y1, x2, y2))


@settings(deadline=None, max_examples=50)
@given(lit_samples())
def test_flip_moves_the_box_with_the_pixels(sample: Sample) -> None:
    flipped = HorizontalFlip(1.0)(sample, _generator())
    assert _extent(flipped.image[0] > 0) == flipped.targets.boxes[0].tolist()
    assert flipped.targets.masks is not None
    assert (flipped.targets.masks[0] == (flipped.image[0] > 0)).all()


@settings(deadline=None, max_examples=25)
@given(lit_samples())
def test_flipping_twice_is_the_identity(sample: Sample) -> None:
    again = HorizontalFlip(1.0)(HorizontalFlip(1.0)(sample, _generator()), _generator())
    assert (again.image == sample.image).all()
    assert (again.targets.boxes == sample.targets.boxes).all()
    assert again.targets.masks is not None
    assert (again.targets.masks == sample.targets.masks).all()


def test_flip_probability() -> None:
    sample, generator = _lit((8, 8), (0, 0, 4, 4)), _generator(1)
    assert HorizontalFlip(0.0)(sample, generator) is sample
    flips = sum(HorizontalFlip(0.3)(sample, generator) is not sample for _ in range(500))
    assert 110 < flips < 190


@settings(deadline=None, max_examples=50)
@given(lit_samples(), st.integers(4, 60), st.integers(0, 40))
def test_resize_moves_the_box_with_the_pixels(sample: Sample, short_side: int, more: int) -> None:
    resized = Resize(short_side, short_side + more)(sample, _generator())
    assert min(resized.size) <= short_side
    assert max(resized.size) <= short_side + more
    assert min(resized.size) == short_side or max(resized.size) == short_side + more
    assert resized.targets.masks is not None
    assert resized.targets.masks.shape == (1, *resized.size)
    x1, y1, x2, y2 = resized.targets.boxes[0].tolist()
    inside = resized.image[0, round(y1) : round(y2), round(x1) : round(x2)].float().sum()
    light = resized.image[0].float().sum()
    # Anti-aliasing keeps the light, and smears it by less than a new pixel or an old one, whichever is larger.
    blur = 2 * max(1.0, resized.size[0] / sample.size[0], resized.size[1] / sample.size[1])
    assert float(light) / 255 == pytest.approx((x2 - x1) * (y2 - y1), abs=blur * (x2 - x1 + y2 - y1 + blur))
    if inside > 0 and resized.targets.masks[0].any():
        assert _extent(resized.targets.masks[0]) == pytest.approx([x1, y1, x2, y2], abs=0.51)


def test_resize_by_hand() -> None:
    sample = _lit((100, 300), (30, 20, 90, 50))
    by_short = Resize(50, 1000)(sample, _generator())
    assert by_short.size == (50, 150)
    assert by_short.targets.boxes.tolist() == [[15, 10, 45, 25]]
    assert (by_short.image[0, 11:24, 16:44] == 255).all()
    by_long = Resize(140, 150)(sample, _generator())
    assert by_long.size == (50, 150)
    assert Resize(100, 300)(sample, _generator()) is sample


def test_resize_is_antialiased() -> None:
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    sample = replace(_lit((64, 64), (0, 0, 4, 4)), image=stripes)
    small = Resize(16, 16)(sample, _generator()).image[:, :, 2:-2].float()
    assert (small - 127.5).abs().max() < 10  # without it, stripes would alias to black or white


@settings(deadline=None, max_examples=50)
@given(lit_samples(), st.integers(0, 1000))
def test_crop_moves_the_box_with_the_pixels(sample: Sample, seed: int) -> None:
    cropped = RandomCrop((0.3, 1.0), min_visible=0.5)(sample, _generator(seed))
    lit = cropped.image[0] > 0
    assert len(cropped.targets) == int(lit.any())
    assert cropped.targets.masks is not None
    assert cropped.targets.masks.shape == (len(cropped.targets), *cropped.size)
    if lit.any():
        assert _extent(lit) == cropped.targets.boxes[0].tolist()
        assert (cropped.targets.masks[0] == lit).all()
        visible = int(lit.sum()) / int((sample.image[0] > 0).sum())
        assert bool(cropped.targets.crowd[0]) == (visible < 0.5)


def test_whole_crop_is_the_identity() -> None:
    sample = _lit((20, 30), (5, 5, 9, 9))
    cropped = RandomCrop((1.0, 1.0))(sample, _generator())
    assert (cropped.image == sample.image).all()
    assert cropped.targets.boxes.tolist() == sample.targets.boxes.tolist()


def test_random_resize_stays_in_range() -> None:
    sample = _lit((40, 60), (4, 4, 20, 20))
    heights = [RandomResize((0.5, 2.0))(sample, _generator(seed)).size[0] for seed in range(60)]
    assert 20 <= min(heights) < 25
    assert 65 < max(heights) <= 80


def test_no_jitter_is_the_identity() -> None:
    image = Shapes(1)[0].image
    sample = replace(_lit((8, 8), (0, 0, 4, 4)), image=image)
    assert (PhotometricJitter(0, 0, 0, 0)(sample, _generator()).image.int() - image.int()).abs().max() <= 1
    assert PhotometricJitter(p=0.0)(sample, _generator()) is sample


@pytest.mark.parametrize(
    "jitter, change",
    [
        (PhotometricJitter(0.5, 0, 0, 0), reference.adjust_brightness),
        (PhotometricJitter(0, 0.5, 0, 0), reference.adjust_contrast),
        (PhotometricJitter(0, 0, 0.5, 0), reference.adjust_saturation),
    ],
)
def test_jitter_as_in_torchvision(jitter: PhotometricJitter, change: Transform) -> None:
    image = (Shapes(1)[0].image.float() / 2 + 40).to(torch.uint8)  # mid-tones: nothing saturates on the way
    sample = replace(_lit((8, 8), (0, 0, 4, 4)), image=image)
    for seed in range(5):
        generator = _generator(seed)
        draws = [float(torch.rand((), generator=generator)) for _ in range(4)]  # whether; three factors
        used = next(i for i, name in enumerate(("brightness", "contrast", "saturation")) if getattr(jitter, name))
        factor = 0.5 + draws[1 + used]
        expected = change(image, factor)
        assert (jitter(sample, _generator(seed)).image.int() - expected.int()).abs().max() <= 2


def test_hue_turns_colours_and_leaves_grey_and_luma() -> None:
    image = torch.full((3, 4, 4), 90, dtype=torch.uint8)
    image[0, :2] = 140
    sample = replace(_lit((8, 8), (0, 0, 4, 4)), image=image)
    luma = torch.tensor([0.299, 0.587, 0.114])
    changes = []
    for seed in range(10):
        turned = PhotometricJitter(0, 0, 0, 90)(sample, _generator(seed)).image
        assert (turned[:, 2:].int() - 90).abs().max() <= 1
        assert float(luma @ turned[:, 0, 0].float()) == pytest.approx(float(luma @ image[:, 0, 0].float()), abs=1)
        changes.append(int((turned[:, 0, 0].int() - image[:, 0, 0].int()).abs().max()))
    assert max(changes) > 30


@pytest.mark.parametrize(
    "transform",
    [
        HorizontalFlip(),
        PhotometricJitter(),
        Resize(64, 100),
        RandomResize(),
        RandomCrop(),
        Compose([HorizontalFlip(), RandomResize((0.8, 1.2)), RandomCrop(), PhotometricJitter()]),
    ],
)
def test_draws_come_from_the_generator_alone(transform: Transform) -> None:
    sample = Shapes(1).with_masks()[0]
    before = sample.image.clone()
    torch.manual_seed(0)
    first = transform(sample, _generator(7))
    torch.manual_seed(1)
    second = transform(sample, _generator(7))
    assert (first.image == second.image).all()
    assert (first.targets.boxes == second.targets.boxes).all()
    assert (sample.image == before).all()  # what was given is not changed
    assert first.image.dtype == torch.uint8
    assert (first.id, first.name) == (sample.id, sample.name)


@pytest.mark.parametrize("transform", [HorizontalFlip(1.0), Resize(64, 100), RandomCrop(), PhotometricJitter()])
def test_image_without_objects(transform: Transform) -> None:
    sample = replace(
        _lit((40, 50), (0, 0, 4, 4)),
        targets=Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 40, 50) > 0),
    )
    changed = transform(sample, _generator())
    assert changed.targets.boxes.shape == (0, 4)
    assert changed.targets.masks is not None
    assert changed.targets.masks.shape == (0, *changed.size)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"p: expected a probability in \[0, 1\], got 1.5"):
        HorizontalFlip(1.5)
    with pytest.raises(ValueError, match=r"contrast: expected a value in \[0, 1\], got -0.1"):
        PhotometricJitter(contrast=-0.1)
    with pytest.raises(ValueError, match="short_side: expected 1 <= short_side <= long_side, got 10, 5"):
        Resize(10, 5)
    with pytest.raises(ValueError, match="scale: expected 0 < least <= most"):
        RandomResize((0.0, 1.0))
    with pytest.raises(ValueError, match="share: expected 0 < least <= most <= 1"):
        RandomCrop((0.5, 1.5))
    with pytest.raises(ValueError, match="min_visible: expected a value in"):
        RandomCrop(min_visible=2)
