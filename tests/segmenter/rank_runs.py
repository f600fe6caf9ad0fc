"""The segmenter on two ranks, for `test_ranks`: as a script, one run without a stop and one that goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from cogalign.data.caseset import read_case_set
from cogalign.recipe import DataSettings, Recipe, SegmenterSettings, TrackingSettings, TrainerSettings
from cogalign.segmenter import stage
from cogalign.segmenter.module import SegmenterModule
from cogalign.training.context import StageContext
from cogalign.training.interruption import Interrupt

STOP = 3


def train(folder: Path, data: Path, stop: bool = False) -> None:
    """Train on two ranks; each leaves its weights in the folder. With `stop` a signal comes to rank 1 only."""
    recipe = Recipe(
        data=DataSettings(case_set=str(data)),
        segmenter=SegmenterSettings(
            encoder="tu-test_efficientnet", decoder_channels=[16, 8, 8, 8, 8], pretrained=False, side=32, epochs=2,
            batch_size=2,
        ),
        trainer=TrainerSettings(accelerator="cpu", devices=2),
        tracking=TrackingSettings(wandb=False),
    )  # fmt: skip
    real = SegmenterModule.training_step

    def step(self: SegmenterModule, *arguments: Any) -> Any:
        if stop and self.trainer.global_step + 1 == STOP and self.global_rank == 1:
            found = next(one for one in self.trainer.callbacks if isinstance(one, Interrupt))  # type: ignore[attr-defined]
            found.signal_name = "SIGTERM"
        return real(self, *arguments)

    SegmenterModule.training_step = step  # type: ignore[method-assign]
    try:
        module, _, trainer = stage.train(StageContext(recipe, folder, "segmenter"), read_case_set(data))
        content = {"weights": dict(module.network.named_parameters()), "history": module.history}
        torch.save(content, folder / f"rank-{trainer.global_rank}.pt")
    finally:
        SegmenterModule.training_step = real  # type: ignore[method-assign]


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), stop=len(sys.argv) > 3)
