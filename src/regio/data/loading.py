"""From a dataset to batches, reproducibly.

Which images form step n, and how each is augmented, follows from (seed, n) alone: not from the number of worker
processes, nor from where a run was interrupted. `EpochBatches` names images as (epoch, index), and `TrainingSet` seeds
the augmentation of an image from (seed, epoch, index).

    batches = EpochBatches(len(data), batch_size=4, seed=0, sizes=data.sizes, start=step)
    loader = DataLoader(TrainingSet(data, transform, seed=0), batch_sampler=batches, collate_fn=collate, num_workers=2,
                        persistent_workers=True)
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from regio.data.dataset import DetectionDataset, Sample
from regio.data.transforms import Transform
from regio.types import Targets

__all__ = ["Batch", "EpochBatches", "TrainingSet", "collate", "without_worker_tracebacks"]


@dataclass(frozen=True)
class Batch:
    """N samples: images are uint8 [3, H_i, W_i] of their own sizes, and entry i of each list belongs to image i.

    proposals: boxes [P_i, 4] in pixels of the images, or None where the samples have none.
    """

    images: list[Tensor]
    targets: list[Targets]
    names: list[str]
    ids: list[int]
    proposals: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        proposals = None if self.proposals is None else [boxes.to(device) for boxes in self.proposals]
        return Batch(images, [target.to(device) for target in self.targets], self.names, self.ids, proposals)

    def pin_memory(self) -> Batch:
        """The same batch with images in page-locked memory; `DataLoader(pin_memory=True)` calls it."""
        images = [image.pin_memory() for image in self.images]
        return Batch(images, self.targets, self.names, self.ids, self.proposals)

    @property
    def given(self) -> tuple[list[Tensor], ...]:
        """What a model is given beside images and targets: the proposals, where there are any."""
        return () if self.proposals is None else (self.proposals,)


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of these samples, in their order. Raises ValueError where some have proposals and others have none."""
    proposals = [s.proposals for s in samples if s.proposals is not None]
    if proposals and len(proposals) < len(samples):
        lacking = next(s.name for s in samples if s.proposals is None)
        raise ValueError(f"proposals: expected boxes of all images of a batch or of none, got none of {lacking}")
    return Batch(
        [s.image for s in samples],
        [s.targets for s in samples],
        [s.name for s in samples],
        [s.id for s in samples],
        proposals or None,
    )


def _generator(*key: int) -> torch.Generator:
    """A generator seeded from these integers; neighbouring keys give unrelated streams."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class TrainingSet(Dataset[Sample]):
    """`dataset` augmented: item (epoch, index) is sample `index` as `transform` makes it in that epoch.

    transform: called with the sample and a generator seeded from (seed, epoch, index); None leaves samples as they are.
    """

    def __init__(self, dataset: DetectionDataset, transform: Transform | None = None, seed: int = 0) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        sample = self.dataset[index]
        return sample if self.transform is None else self.transform(sample, _generator(self.seed, epoch, index))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a training, each a list of `batch_size` pairs (epoch, index); `batch(step)` is any of them.

    size: images in the dataset. Each epoch takes every image once, in an order drawn from (seed, epoch), and is cut
    into batches. In step n rank r of `world_size` gets batch n x world_size + r of that one sequence: all ranks take
    equally many steps, and what is trained on does not depend on how many processes share it.

    sizes: (height, width) of each image; given, a batch holds landscape or portrait images where possible, so that
    less is lost to padding. drop_last: leave out what does not fill a batch (other images in each epoch); False: fill
    the last batch with images from the start of the epoch's order, which then come twice.

    start, stop: the first step to yield, and the step to end before (None: never end). A sampler that starts at step
    n yields what an uninterrupted one would from there.

    Raises ValueError for counts below 1, a rank outside the world, `sizes` of another length, and when drop_last
    leaves no batch at all.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        for name, value in (("size", size), ("batch_size", batch_size), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < {world_size}, got {rank}")
        if sizes is not None and len(sizes) != size:
            raise ValueError(f"sizes: expected {size}, one an image, got {len(sizes)}")
        if drop_last and size < batch_size:
            raise ValueError(
                f"batch_size: {batch_size} is more than the {size} images; take smaller batches, or drop_last=False to "
                "repeat images"
            )
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"start: expected 0 <= start <= stop, got start {start}, stop {stop}")
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self._rank, self._world_size = rank, world_size
        self._count = size // batch_size if drop_last else -(-size // batch_size)
        self._portrait = torch.tensor([h > w for h, w in sizes] if sizes is not None else [False] * size)
        self._current: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch, of all ranks together."""
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps = itertools.count(self.start) if self.stop is None else range(self.start, self.stop)
        return (self.batch(step) for step in steps)

    def __len__(self) -> int:
        """Batches that iterating yields. Raises TypeError when there is no end."""
        if self.stop is None:
            raise TypeError("EpochBatches without stop has no length")
        return self.stop - self.start

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of this rank in step `step`, counted from 0 at the start of the training."""
        epoch, position = divmod(step * self._world_size + self._rank, self._count)
        if self._current is None or self._current[0] != epoch:
            self._current = (epoch, self._order(epoch))
        return [(epoch, index) for index in self._current[1][position].tolist()]

    def _order(self, epoch: int) -> Tensor:
        """Image indices [batches, batch_size] of an epoch."""
        generator, size = _generator(self.seed, epoch), self.batch_size
        order = torch.randperm(len(self._portrait), generator=generator)
        # Whole batches of each orientation first; what is left of both comes last, in batches of mixed orientation.
        groups = [order[self._portrait[order] == portrait] for portrait in (False, True)]
        grouped = torch.cat([group[: len(group) // size * size] for group in groups])
        rest = order[torch.isin(order, grouped, invert=True)]
        short = self._count * size - len(grouped) - len(rest)
        filled = torch.cat([grouped, rest, order.repeat(-(-max(short, 0) // len(order)))[: max(short, 0)]])
        batches = filled[: self._count * size].view(self._count, size)
        return batches[torch.randperm(self._count, generator=generator)]


@contextmanager
def without_worker_tracebacks() -> Iterator[None]:
    """Within, an error of a process that reads images has its own message alone.

    PyTorch raises such an error again with the traceback of the process as the text of its message, of which the last
    line is the message that was meant.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error).strip()
        if not text.startswith(f"Caught {type(error).__name__} in DataLoader worker"):
            raise
        raise type(error)(text.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")) from error
