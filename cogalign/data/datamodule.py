"""The loaders of SFT: batches whose order is a pure function of the seed, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.sampler import StepSampler


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


class PositionedData(LightningDataModule):
    """Loaders without end whose position is part of every checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """Batches consumed so far (`consumed` is kept up to date by the module)."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that were consumed."""
        self.consumed = int(state_dict["consumed"])

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks; (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class SftData(PositionedData):
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
        lengths: Sequence[int] | None = None,
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
        """
        super().__init__()
        self.train, self.validation, self.collate = train, validation, collate
        self.batch_size, self.batches, self.seed, self.workers = batch_size, batches, seed, workers
        self.lengths = lengths

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the position on."""
        size = len(self.train)  # type: ignore[arg-type]
        sampler = StepSampler(size, self.batch_size, self.batches, self.seed, self.consumed, *self.ranks, self.lengths)
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=self.collate, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """All validation batches."""
        if self.validation is None:
            return []
        return DataLoader(
            self.validation, batch_size=self.batch_size, collate_fn=self.collate, num_workers=self.workers
        )
