"""SFT with one global batch on any number of ranks, for `test_ranks`; as a script two ranks do all that it tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from cogalign.recipe import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    Recipe,
    SftSettings,
    TrackingSettings,
    TrainerSettings,
)
from cogalign.sft.module import SftModule
from cogalign.sft.stage import run
from cogalign.training.checkpoints import path_of
from cogalign.training.context import StageContext

GLOBAL, STEPS, HALF = 8, 3, 1


def train(out: Path, data: Path, ranks: int, batch_size: int) -> dict[str, Any]:
    """Train, or go on, and leave every step's gradient (before clipping) and the weights of each rank in `out`."""
    recipe = Recipe(
        out=str(out),
        model=ModelSettings(name="tiny-random", dtype="float32"),
        data=DataSettings(case_set=str(data)),
        sft=SftSettings(
            steps=STEPS, batch_size=batch_size, global_batch=GLOBAL, learning_rate=5e-3, validate_every=2,
            lora=LoraSettings(r=4, alpha=8), validation_limit=3, checkpoint_every=1, group_by_length=True,
        ),
        trainer=TrainerSettings(accelerator="cpu", precision="32-true", devices=ranks, keep_checkpoints=9),
        tracking=TrackingSettings(wandb=False, sample_every=0),
    )  # fmt: skip
    clip = SftModule.configure_gradient_clipping

    def noting(self: SftModule, *args: Any, **kwargs: Any) -> None:
        gradient = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
        torch.save(gradient, out / f"gradient-{self.trainer.global_step + 1}-of-rank-{self.global_rank}.pt")
        clip(self, *args, **kwargs)

    out.mkdir(parents=True, exist_ok=True)
    SftModule.configure_gradient_clipping = noting  # type: ignore[method-assign]
    try:
        return run(StageContext(recipe, out, "sft"))
    finally:
        SftModule.configure_gradient_clipping = clip  # type: ignore[method-assign]


def take_over(done: Path, out: Path) -> Path:
    """A run folder that holds the first half of another's: its checkpoint, its metrics."""
    target = path_of(out / "sft", HALF)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path_of(done / "sft", HALF), target)
        shutil.copy(done / "sft" / "metrics.csv", out / "sft" / "metrics.csv")
    return out


if __name__ == "__main__":
    base, data = Path(sys.argv[1]), Path(sys.argv[2])
    train(base / "2x2", data, 2, 2)
    train(base / "2x4", data, 2, 4)
    train(base / "1-then-2", data, 2, 2)
