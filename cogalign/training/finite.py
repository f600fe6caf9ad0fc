"""Steps with a loss or gradient that is not finite: skipped by all ranks alike, the batch saved, ended after too many.

One bad batch (a damaged image, an overflow in bf16) must not cost a run, and weights with a NaN in them are of no use
to anybody. The batch is kept so that one can look at what did it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cogalign.training.atomic import write_bytes, write_json
from cogalign.training.progress import say
from cogalign.training.ranks import everyone, is_distributed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

FOLDER = "nonfinite"
KEEP = 5
"""Saved batches of a rank; older ones are deleted."""

Agree = Callable[[bool], bool]
"""Whether a statement is true on all ranks; all ranks call it and get the same answer."""


class NonFinite(ValueError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True)
class Count:
    """Skipped steps so far.

    Attributes:
        skipped: of the whole stage.
        in_a_row: since the last step that was taken.
    """

    skipped: int = 0
    in_a_row: int = 0

    def after(self, finite: bool) -> Count:
        """The count after one more step."""
        return Count(self.skipped, 0) if finite else Count(self.skipped + 1, self.in_a_row + 1)


class FiniteGuard:
    """Decides for each optimizer step, on all ranks alike, whether it is taken.

    `limit` steps in a row may be skipped; the next one ends the stage. A skipped step counts as a step: the schedule
    and the sampler go on.

    Args:
        folder: the stage's folder; batches go to `nonfinite/` in it.
        limit: `trainer.nonfinite_limit`.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.count = Count()

    def judge(
        self,
        trainer: Trainer | Agree,
        step: int,
        norm: float | torch.Tensor,
        loss: float | torch.Tensor,
        save: Callable[[], Mapping[str, Any]],
    ) -> bool:
        """Whether the optimizer may take this step. All ranks call it at the same place.

        Args:
            trainer: its strategy lets the ranks agree; or a function that does.
            step: the step in question, from 1.
            norm: norm of the gradient before clipping.
            loss: this rank's loss.
            save: gives the batch to be kept: tensors (also in nested mappings) and plain values such as ids and texts.
                Called only if the step is skipped.

        Returns:
            True: take the step. False: skip it, and drop its gradients.

        Raises:
            NonFinite: more than `limit` steps in a row; the batch has been saved.
        """
        agree = trainer if callable(trainer) else trainer.strategy.reduce_boolean_decision
        mine = {"loss": float(loss), "norm": float(norm)}
        finite = bool(agree(all(map(math.isfinite, mine.values()))))
        self.count = self.count.after(finite)
        if finite:
            return True
        found = everyone(mine)
        where = self._save(step, mine, save)
        values = told(found)
        if self.count.in_a_row > self.limit:
            raise NonFinite(self._ended(step, values, where))
        if rank() == 0:
            say(
                f"warning: {self.folder.name} step {step}: {values}: skipped ({self.count.in_a_row} in a row, "
                f"{self.limit} allowed); its batch is in {where}"
            )
        return False

    def metrics(self) -> dict[str, float]:
        """What goes into the log of every step: skipped steps so far."""
        return {"nonfinite_steps": float(self.count.skipped)}

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"skipped": self.count.skipped, "in_a_row": self.count.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take the counts back."""
        self.count = Count(int(state["skipped"]), int(state["in_a_row"]))

    def _ended(self, step: int, values: str, where: Path) -> str:
        return (
            f"{self.folder.name} step {step}: {values}, and the steps before were no better (trainer.nonfinite_limit is "
            f"{self.limit}); none of them was taken. Look at the batch in {where}; if it is a good one, lower the "
            "learning rate or take trainer.precision 32-true. The same command goes on after the last checkpoint"
        )

    def _save(self, step: int, mine: Mapping[str, float], save: Callable[[], Mapping[str, Any]]) -> Path:
        """Write this rank's batch; a full disk is no reason to end a run that goes on without it."""
        path = self.folder / FOLDER / f"step-{step:08d}-rank-{rank()}.safetensors"
        values = {"step": step, "rank": rank(), "time": datetime.now(UTC).isoformat(timespec="seconds"), **mine}
        try:
            write_batch(path, {**save(), **values})
            clean(path.parent, rank())
        except OSError as error:
            say(f"warning: {path} could not be written ({error})")
        return path


def write_batch(path: Path, content: Mapping[str, Any]) -> None:
    """Write a batch without pickle: its tensors to `path`, all else to the `.json` beside it.

    Args:
        path: ends in `.safetensors`.
        content: tensors and plain values, also in nested mappings, whose keys are joined by a dot.
    """
    from safetensors.torch import save

    flat = dict(flattened(content))
    tensors = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}
    # a clone each: safetensors refuses tensors that share memory
    write_bytes(path, save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}))
    write_json(path.with_suffix(".json"), {name: plain(value) for name, value in flat.items() if name not in tensors})


def flattened(content: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Names and values of nested mappings, the names joined by dots."""
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        found += flattened(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return found


def plain(value: Any) -> Any:
    """A value that JSON has: numbers that are not finite, and what is unknown, become text."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def clean(folder: Path, of_rank: int, keep: int = KEEP) -> None:
    """Delete a rank's saved batches but the newest."""
    for path in sorted(folder.glob(f"step-*-rank-{of_rank}.safetensors"))[:-keep]:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def told(found: list[dict[str, float]]) -> str:
    """Loss and norm of the ranks in one line; of several ranks only those whose own loss is not finite."""
    if len(found) == 1:
        return f"loss {found[0]['loss']:.6g}, gradient norm {found[0]['norm']:.6g}"
    bad = [f"loss {one['loss']:.6g} on rank {k}" for k, one in enumerate(found) if not math.isfinite(one["loss"])]
    return ", ".join([*(bad or ["all losses finite"]), f"gradient norm {found[0]['norm']:.6g}"])


def rank() -> int:
    """This process's number among all of the run."""
    return torch.distributed.get_rank() if is_distributed() else 0
