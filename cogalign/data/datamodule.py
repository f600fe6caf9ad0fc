"""The loaders of SFT: batches whose order is a pure function of the seed, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet


class CaseDataset(Dataset[tuple[Case, Image.Image]]):
    """Cases of a case set with their images; small images stay in memory once they were read."""

    def __init__(self, case_set: CaseSet, cases: Sequence[Case], keep_bytes: int = 2**28) -> None:
        self.case_set = case_set
        self.cases = list(cases)
        self._kept: dict[int, Image.Image] = {}
        self._room = keep_bytes

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Case, Image.Image]:
        """A case and its image (RGB)."""
        case = self.cases[index]
        image = self._kept.get(index)
        if image is None:
            image = self.case_set.image(case)
            size = image.width * image.height * 3
            if size <= self._room:
                self._kept[index] = image
                self._room -= size
        return case, image


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


class StepSampler(Sampler[list[int]]):
    """Batches of indices for `total` batches in all, epoch after epoch, shuffled by (seed, epoch).

    Batch b of rank r of w holds the items `(b * w + r) * batch_size ...` of the endless shuffled
    sequence, so the order depends on nothing but the arguments, and `start` skips without reading.
    """

    def __init__(
        self, size: int, batch_size: int, total: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch_size, self.total, self.seed = size, batch_size, total, seed
        self.start, self.rank, self.world_size = start, rank, world_size

    def __len__(self) -> int:
        """Batches of the whole training (also when some are skipped, as Lightning counts them)."""
        return self.total

    def batch(self, index: int) -> list[int]:
        """The items of batch `index` of this rank."""
        first = (index * self.world_size + self.rank) * self.batch_size
        places = range(first, first + self.batch_size)
        return [int(_permutation(self.seed, place // self.size, self.size)[place % self.size]) for place in places]

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from `start` on."""
        for index in range(self.start, self.total):
            yield self.batch(index)


class SftData(LightningDataModule):
    """Training batches by `StepSampler`, validation batches in order. The position is part of every checkpoint."""

    def __init__(
        self,
        train: Dataset[Any],
        validation: Dataset[Any] | None,
        collate: Callable[[Any], Any],
        batch_size: int,
        batches: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.collate = train, validation, collate
        self.batch_size, self.batches, self.seed, self.workers = batch_size, batches, seed, workers
        self.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """Batches consumed so far (`consumed` is kept up to date by the module)."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that were consumed."""
        self.consumed = int(state_dict["consumed"])

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the position on."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = StepSampler(
            len(self.train), self.batch_size, self.batches, self.seed, self.consumed, rank, world  # type: ignore[arg-type]
        )  # fmt: skip
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=self.collate, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """All validation batches."""
        if self.validation is None:
            return []
        return DataLoader(
            self.validation, batch_size=self.batch_size, collate_fn=self.collate, num_workers=self.workers
        )
