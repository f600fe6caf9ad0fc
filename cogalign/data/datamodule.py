"""The loaders of SFT: batches whose order is a pure function of the seed, so that a resumed run goes on exactly."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import cv2
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.lazy_image import LazyImage
from cogalign.data.mixed import MixedSampler, Mixture
from cogalign.data.packed import PackedCases
from cogalign.data.paths import inside
from cogalign.data.sampler import StepSampler
from cogalign.training.interrupt import leave_to_parent


class CaseDataset(Dataset[tuple[Case, LazyImage]]):
    """Cases of a case set with their images, which are decoded when their pixels are asked for."""

    def __init__(self, case_set: CaseSet, cases: Sequence[Case]) -> None:
        """Keep what worker processes need, without the object of every case (see `PackedCases`)."""
        self.root = case_set.root
        self.cases = PackedCases(cases)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Case, LazyImage]:
        """A case and its image (RGB)."""
        case = self.cases[index]
        return case, LazyImage(inside(self.root, case.file_name))


class MixedCases(CaseDataset):
    """Cases of several case sets, part after part."""

    def __init__(self, parts: Sequence[CaseDataset]) -> None:
        """Keep the parts' cases in one block."""
        self.roots = [part.root for part in parts]
        self.ends = list(accumulate(len(part) for part in parts))
        self.cases = PackedCases([case for part in parts for case in part.cases])

    def __getitem__(self, index: int) -> tuple[Case, LazyImage]:
        """A case and its image (RGB)."""
        case = self.cases[index]
        return case, LazyImage(inside(self.roots[bisect_right(self.ends, index)], case.file_name))


def start_worker(worker: int) -> None:
    """A worker is one of several: threads of its own would stand in the others' way, and it shares memory.

    Python's garbage collection writes into every object that it looks at; frozen ones it leaves alone, and what came
    from the main process stays shared.
    """
    leave_to_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    gc.freeze()


def batches_of(data: Dataset[Any], collate: Callable[[Any], Any], workers: int, **options: Any) -> DataLoader[Any]:
    """A loader whose items are read and made into batches in worker processes, in pinned memory where there is a GPU.

    Args:
        data: what is read.
        collate: makes a batch of items.
        workers: processes; 0 for this one.
        options: others of `DataLoader`.
    """
    return DataLoader(
        data,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


class PositionedData(LightningDataModule):
    """Loaders without end whose position is part of every checkpoint.

    Attributes:
        position: samples that all ranks together have had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position = 0

    def advance(self, samples: int) -> None:
        """Count a batch of this rank, and those of the others with it; the module calls it for every batch."""
        self.position += samples * self.ranks[1]

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"samples": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the samples that were had."""
        self.position = int(state_dict["samples"])

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks; (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class SftData(PositionedData):
    """Training batches by `StepSampler` or `MixedSampler`, validation batches in order. The position is part of every checkpoint."""

    def __init__(
        self,
        train: Dataset[Any],
        validation: Dataset[Any] | None,
        collate: Callable[[Any], Any],
        batch_size: int,
        batches: int,
        seed: int,
        workers: int = 0,
        lengths: Sequence[int] | None = None,
        passes: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        """Keep what the loaders are made of.

        Args:
            train: training items.
            validation: validation items, if there are any.
            collate: makes a batch of items.
            batch_size: items a batch and rank.
            batches: batches of the whole training and rank.
            seed: of the order.
            workers: processes that load items.
            lengths: length of every training item, to group the batches by it; None does not group.
            passes: batches a rank and optimizer step.
            mixture: parts that the training items lie in, and their shares; None takes all items once an epoch.
        """
        super().__init__()
        self.train, self.validation, self.collate = train, validation, collate
        self.batch_size, self.batches, self.seed, self.workers = batch_size, batches, seed, workers
        self.lengths, self.passes, self.mixture = lengths, passes, mixture

    def sampler(self) -> StepSampler:
        """The training batches from the position on."""
        done = None if self.trainer is None else self.trainer.global_step * self.passes
        order = (self.batch_size, self.batches, self.seed, self.position, *self.ranks, self.lengths, self.passes, done)
        if self.mixture is not None:
            return MixedSampler(self.mixture, *order)
        return StepSampler(len(self.train), *order)  # type: ignore[arg-type]

    def last_cases(self) -> list[str]:
        """Ids of the cases of this rank's newest optimizer step, pass after pass; call it when the step is complete."""
        assert isinstance(self.train, CaseDataset)
        sampler = self.sampler()
        places = range(sampler.start - self.passes, sampler.start)
        return [self.train.cases[item].id for index in places for item in sampler.batch(index)]

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the position on."""
        return batches_of(self.train, self.collate, self.workers, batch_sampler=self.sampler())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """All validation batches; the workers stay for the next validation."""
        if self.validation is None:
            return []
        stay = self.workers > 0
        return batches_of(
            self.validation, self.collate, self.workers, batch_size=self.batch_size, persistent_workers=stay
        )
