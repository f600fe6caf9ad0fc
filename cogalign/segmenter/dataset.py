"""The loaders: images with lesions, normal images as negatives, each draw with random numbers of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.datamodule import PositionedData, start_worker
from cogalign.data.images import resize_image, resize_mask
from cogalign.data.sampler import StepSampler
from cogalign.data.spread import spread_evenly
from cogalign.recipe import SegmenterSettings
from cogalign.segmenter.augment import augment, build_augmentation
from cogalign.training.seeding import derive_seed

ROOM = 1.15
"""Images are kept this much larger than the net's input, so that a crop does not enlarge."""
KEEP_BYTES = 2**30
"""At most so many bytes of decoded images are kept in memory."""

Draw = tuple[int, int]
"""Item, and its place in the endless sequence of draws."""


@dataclass(frozen=True)
class Split:
    """The usable cases of a split."""

    lesions: list[Case]
    """With a mask."""
    normals: list[Case]
    """Without a finding."""


def cases_of(case_set: CaseSet, name: str, settings: SegmenterSettings) -> Split:
    """The cases of a split: those with masks of the chosen data sets, and all normal ones; counterfactuals are left out.

    Raises:
        ValueError: the case set has no such split, or the split has no mask.
    """
    real = [case for case in case_set.split(name) if case.counterfactual_of is None]
    wanted = settings.datasets
    lesions = [
        case
        for case in real
        if case.mask_file_name is not None and not case.is_normal and (not wanted or case.dataset in wanted)
    ]
    if not lesions:
        of = f" of the data sets {', '.join(wanted)}" if wanted else ""
        known = ", ".join(sorted({case.dataset for case in real if case.mask_file_name})) or "none with masks"
        raise ValueError(
            f"{case_set.root}: split {name!r} has no image with a mask{of} (data sets with masks: {known})"
        )
    return Split(spread_evenly(lesions, settings.limit), [case for case in real if case.is_normal])


def read_small(case_set: CaseSet, case: Case, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (uint8 [side, side, 3]) and mask (bool [side, side], empty for a normal case)."""
    image = resize_image(np.asarray(case_set.image(case)), side)
    mask = None if case.is_normal else case_set.mask(case)
    return image, np.zeros((side, side), bool) if mask is None else resize_mask(mask, side)


class TrainImages(Dataset[tuple[Tensor, Tensor]]):
    """An epoch's items: every image with a lesion, then the places of the negatives.

    A place of a negative holds another normal image each epoch. Small images stay in memory.
    """

    def __init__(self, case_set: CaseSet, split: Split, settings: SegmenterSettings, seed: int) -> None:
        self.case_set, self.split, self.seed = case_set, split, seed
        self.negatives = min(round(settings.negatives * len(split.lesions)), len(split.normals))
        self.side = round(ROOM * settings.side)
        self.transform = build_augmentation(settings.augmentation, settings.side)
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEEP_BYTES

    def __len__(self) -> int:
        """Items of an epoch."""
        return len(self.split.lesions) + self.negatives

    def case(self, item: int, epoch: int) -> Case:
        """The case of an item in an epoch."""
        place = item - len(self.split.lesions)
        if place < 0:
            return self.split.lesions[item]
        first = epoch * self.negatives + place
        count = len(self.split.normals)
        order = np.random.default_rng([self.seed, first // count]).permutation(count)
        return self.split.normals[int(order[first % count])]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Image (uint8 [3, side, side]) and mask (float32 [1, side, side]) of a draw."""
        item, place = draw
        image, mask = self._read(self.case(item, place // len(self)))
        return augment(self.transform, image, mask, derive_seed(self.seed, "augment", place))

    def _read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        found = self._kept.get(case.id)
        if found is None:
            found = read_small(self.case_set, case, self.side)
            size = found[0].nbytes + found[1].nbytes
            if size <= self._room:
                self._kept[case.id] = found
                self._room -= size
        return found


class PlainImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks at the net's side, unchanged."""

    def __init__(self, case_set: CaseSet, cases: Sequence[Case], side: int) -> None:
        self.case_set, self.cases, self.side = case_set, list(cases), side

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (uint8 [3, side, side]) and mask (float32 [1, side, side])."""
        image, mask = read_small(self.case_set, self.cases[index], self.side)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)[None].float()


class DrawSampler(StepSampler):
    """Batches of draws: the items of `StepSampler` with their places in the endless sequence."""

    def __iter__(self) -> Iterator[list[Draw]]:  # type: ignore[override]
        """Batches from `start` on."""
        for index in range(self.start, self.start + self.left):
            yield self.draws(index)

    def draws(self, index: int) -> list[Draw]:
        """The draws of batch `index` of this rank."""
        first = self.place(index)
        return [(item, first + place) for place, item in enumerate(self.batch(index))]


class SegmenterData(PositionedData):
    """Training batches without end, validation batches in order. The position is part of every checkpoint."""

    def __init__(
        self, train: TrainImages, validation: PlainImages, settings: SegmenterSettings, batches: int, seed: int
    ) -> None:
        """Keep what the loaders are made of; `batches` counts those of a rank over the whole training."""
        super().__init__()
        self.train, self.validation, self.settings = train, validation, settings
        self.batches, self.seed = batches, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the position on."""
        workers = self.settings.workers
        begin = start_worker if workers else None
        return DataLoader(self.train, batch_sampler=self.sampler(), num_workers=workers, worker_init_fn=begin)

    def sampler(self) -> DrawSampler:
        """The training draws from the position on."""
        size = self.settings.batch_size
        return DrawSampler(len(self.train), size, self.batches, self.seed, self.position, *self.ranks)

    def last_cases(self) -> list[str]:
        """Ids of the cases of this rank's newest batch."""
        sampler = self.sampler()
        draws = sampler.draws(sampler.start - 1)
        return [self.train.case(item, place // len(self.train)).id for item, place in draws]

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation images, on every rank: there are few, and all ranks must agree on the best weights."""
        size = self.settings.batch_size
        # a generator of its own: else each pass would draw from the one that training uses
        return DataLoader(self.validation, batch_size=size, generator=torch.Generator())
