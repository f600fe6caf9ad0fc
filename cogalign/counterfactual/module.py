"""Lightning `predict` over the plan: each rank makes its share of the counterfactuals, in worker processes if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader

from cogalign.counterfactual.located import Located
from cogalign.counterfactual.make import Entry, Makers
from cogalign.counterfactual.parts import Finished, Parts
from cogalign.counterfactual.plan import Plan
from cogalign.counterfactual.workers import Failed, loader, raise_failed, sound
from cogalign.data.caseset import CaseSet
from cogalign.recipe import CounterfactualSettings
from cogalign.training.progress import track

BATCH = 8
"""Source cases between two writes of lines."""


class CounterfactualModule(LightningModule):
    """Makes the counterfactuals of a plan; it has no weights.

    Args:
        case_set: the factual cases.
        plan: what is made of which.
        finished: what an earlier run made.
        settings: fill, widths, area limits, seed, workers.
        located: masks by case id, for cases whose mask is not the case set's own.
        root: folder of the case set of pairs.
    """

    def __init__(
        self,
        case_set: CaseSet,
        plan: Plan,
        finished: Finished,
        settings: CounterfactualSettings,
        located: Mapping[str, Located],
        root: Path,
    ) -> None:
        super().__init__()
        self.case_set = case_set
        self.plan = plan
        self.finished = finished
        self.settings = settings
        self.located = located
        self.root = root

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every `world_size`-th task, from this rank's on."""
        tasks = self.plan.tasks[self.trainer.global_rank :: self.trainer.world_size]
        makers = Makers(self.case_set, tasks, self.finished, self.settings, self.located, self.root)
        workers = self.settings.workers
        # Single tasks share the work evenly among the processes.
        return loader(makers, workers, BATCH if workers == 0 else 1, prefetch=4)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lines stay where they are."""
        return batch

    def predict_step(self, batch: list[list[Entry] | Failed], batch_idx: int) -> list[Entry]:
        """The lines of a batch of tasks."""
        return [entry for made in sound(batch) for entry in made]


class CounterfactualWriter(BasePredictionWriter):
    """Writes this rank's part file after every batch; the pictures are on the disk by then.

    Args:
        parts: the part files.
        plan: for the progress bar.
        progress: folder of `progress.json`.
    """

    def __init__(self, parts: Parts, plan: Plan, progress: Path) -> None:
        super().__init__(write_interval="batch")
        self.parts = parts
        self.plan = plan
        self.progress = progress
        self._progress: Iterator[int] = iter(())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the progress bar of the first rank."""
        if trainer.is_global_zero:
            tasks = len(self.plan.tasks[:: trainer.world_size])
            self._progress = iter(track(range(tasks), "counterfactuals of cases", folder=self.progress))
            next(self._progress, None)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Entry],
        batch_indices: Sequence[int] | None,
        batch: list[list[Entry] | Failed],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Note what was made.

        Raises:
            OSError, ValueError: what stopped a task of this batch; the lines of the others are kept.
        """
        if prediction:
            self.parts.append(trainer.global_rank, prediction)
        raise_failed(batch)
        for _ in batch:
            next(self._progress, None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until all ranks are done."""
        trainer.strategy.barrier("counterfactuals made")
