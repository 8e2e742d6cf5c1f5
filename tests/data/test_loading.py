"""Batches follow from (seed, step) alone."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from regio.data import (
    Batch,
    Compose,
    EpochBatches,
    HorizontalFlip,
    PhotometricJitter,
    RandomCrop,
    Sample,
    Shapes,
    TrainingSet,
    collate,
)

_AUGMENT = Compose([HorizontalFlip(), RandomCrop(), PhotometricJitter()])


def _epoch(batches: EpochBatches, epoch: int = 0) -> list[list[int]]:
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    rows = [batches.batch(step) for step in steps]
    assert all(e == epoch for row in rows for e, _ in row)
    return [[index for _, index in row] for row in rows]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 2**40))
def test_an_epoch_takes_every_image_once(
    size: int, batch_size: int, world_size: int, drop_last: bool, grouped: bool, seed: int
) -> None:
    if drop_last and size < batch_size:
        return
    sizes = [(3 + i % 3, 4) for i in range(size)] if grouped else None
    ranks = [
        EpochBatches(size, batch_size, seed, sizes=sizes, drop_last=drop_last, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    count = ranks[0].batches_per_epoch
    drawn = [[rank.batch(step) for rank in ranks] for step in range(3 * count)]  # all ranks take equally many steps
    rows = [batch for step in drawn for batch in step][2 * count : 3 * count]  # the third epoch
    assert all(len(batch) == batch_size and all(epoch == 2 for epoch, _ in batch) for batch in rows)
    taken = [index for batch in rows for _, index in batch]
    if drop_last:
        assert len(set(taken)) == len(taken) == size // batch_size * batch_size
    else:
        assert set(taken) == set(range(size))
        assert len(taken) == -(-size // batch_size) * batch_size


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 50), st.booleans())
def test_starting_late_gives_what_an_uninterrupted_run_would_see(start: int, grouped: bool) -> None:
    sizes = [(5, 4) if i % 3 else (4, 5) for i in range(23)] if grouped else None
    whole = list(EpochBatches(23, 4, 9, sizes=sizes, stop=60))
    assert list(EpochBatches(23, 4, 9, sizes=sizes, start=start, stop=60)) == whole[start:]
    assert (
        list(islice(EpochBatches(23, 4, 9, sizes=sizes, start=start), 5))
        == (list(EpochBatches(23, 4, 9, sizes=sizes, stop=60 + 5))[start : start + 5])
    )


def test_iterating_twice_gives_the_same() -> None:
    batches = EpochBatches(10, 3, 0, stop=7)
    assert list(batches) == list(batches)
    assert len(batches) == 7
    with pytest.raises(TypeError, match="no length"):
        len(EpochBatches(10, 3))


def test_epochs_and_seeds_differ() -> None:
    batches = EpochBatches(50, 5, 0)
    assert _epoch(batches, 0) != _epoch(batches, 1)
    assert _epoch(batches, 0) != _epoch(EpochBatches(50, 5, 1), 0)


def test_what_is_trained_on_does_not_depend_on_the_number_of_processes() -> None:
    """Also where an epoch ends in the middle of a step, as after the third of these batches."""
    alone = list(EpochBatches(10, 3, 3, stop=12))
    ranks = [list(EpochBatches(10, 3, 3, rank=rank, world_size=2, stop=6)) for rank in range(2)]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == alone


def test_groups_by_orientation() -> None:
    sizes = [(30, 20) if i % 2 else (20, 30) for i in range(42)]
    mixed = [{i % 2 for i in batch} for batch in _epoch(EpochBatches(42, 4, 0, sizes=sizes))]
    assert len(mixed) == 10
    assert sum(len(kinds) == 2 for kinds in mixed) == 0  # 21 = 5 x 4 + 1 of each; the two left over are dropped
    assert mixed != sorted(mixed, key=min)  # and the orientations alternate


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        EpochBatches(0, 1)
    with pytest.raises(ValueError, match="batch_size: 16 is more than the 15 images"):
        EpochBatches(15, 16, world_size=2)
    with pytest.raises(ValueError, match="rank: expected 0 <= rank < 2, got 2"):
        EpochBatches(15, 2, rank=2, world_size=2)
    with pytest.raises(ValueError, match="sizes: expected 3, one an image, got 1"):
        EpochBatches(3, 2, sizes=[(1, 1)])
    with pytest.raises(ValueError, match="start: expected 0 <= start <= stop, got start 5, stop 4"):
        EpochBatches(3, 2, start=5, stop=4)


def test_augmentation_depends_on_seed_epoch_and_index() -> None:
    data = Shapes(3)

    def image(seed: int, epoch: int, index: int) -> Sample:
        return TrainingSet(data, _AUGMENT, seed)[epoch, index]

    first = image(0, 0, 1)
    assert (image(0, 0, 1).image == first.image).all()
    for other in (image(1, 0, 1), image(0, 1, 1), image(0, 0, 2)):
        assert other.image.shape != first.image.shape or (other.image != first.image).any()
    assert (TrainingSet(data)[4, 1].image == data[1].image).all()
    assert len(TrainingSet(data)) == 3


def _load(workers: int) -> list[Batch]:
    data = Shapes(10, seed=4).with_masks()
    return list(
        DataLoader(
            TrainingSet(data, _AUGMENT, seed=1),
            batch_sampler=EpochBatches(len(data), 3, seed=1, sizes=data.sizes, stop=5),
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
        )
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    expected, loaded = _load(0), _load(workers)
    assert [batch.ids for batch in loaded] == [batch.ids for batch in expected]
    for ours, theirs in zip(loaded, expected, strict=True):
        for a, b in zip(ours.images, theirs.images, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(ours.targets, theirs.targets, strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.masks, b.masks)


def test_persistent_workers_yield_the_same_again() -> None:
    data = Shapes(6)
    loader = DataLoader(
        TrainingSet(data, _AUGMENT, seed=2),
        batch_sampler=EpochBatches(len(data), 2, seed=2, stop=3),
        collate_fn=collate,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    first, second = list(loader), list(loader)
    for a, b in zip(first, second, strict=True):
        assert a.ids == b.ids
        assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_collate_keeps_order_and_names() -> None:
    data = Shapes(3)
    batch = collate([data[2], data[0]])
    assert len(batch) == 2
    assert batch.ids == [3, 1]
    assert batch.names == [data.records[2].name, data.records[0].name]
    assert batch.images[0].shape[1:] == data.records[2].size
    assert batch.targets[1].labels.tolist() == data.records[0].labels.tolist()
    moved = batch.to("cpu")
    assert torch.equal(moved.images[1], batch.images[1])
    assert (moved.names, moved.ids) == (batch.names, batch.ids)
