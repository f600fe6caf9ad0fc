"""GRPO runs on several processes, one after the other: `python -m tests.grpo.jobs DEVICES JOBS.json`.

A job is `{"out", "base", "data", "fields", "stop", "strategy", "even"}`: a run folder whose first stages are done, the base
model, the case set, fields of `grpo`, the optimizer step in which a signal comes (from 0; null: none), the strategy, and
whether the reward is one by which completions of a group often agree.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cogalign.recipe import (
    CustomReward,
    DataSettings,
    GrpoSettings,
    MixSettings,
    ModelSettings,
    Recipe,
    RewardWeights,
    TrackingSettings,
    TrainerSettings,
)
from cogalign.training.context import StageContext

MIX = {"factual": 0.5, "removal": 0.2, "control": 0.2, "transplant": 0.1}


def context(job: dict[str, Any], devices: int) -> StageContext:
    """The stage `grpo` of a job."""
    fields: dict[str, Any] = {
        "steps": 4,
        "prompts_per_step": 4,
        "num_generations": 3,
        "micro_batch": 4,
        "learning_rate": 2e-3,
        "max_completion_length": 6,
        "checkpoint_every": 1,
    }
    reward = "even" if job.get("even") else "longer"
    weights = RewardWeights(format=0.0, cognition=0.0, diagnosis=0.0) if job.get("even") else RewardWeights()
    recipe = Recipe(
        out=job["out"],
        model=ModelSettings(name=job["base"], dtype="float32"),
        data=DataSettings(case_set=job["data"]),
        grpo=GrpoSettings(
            **fields | job.get("fields", {}),
            mix=MixSettings(**MIX),
            reward_weights=weights,
            custom_rewards=[CustomReward(f"tests.grpo.longer.{reward}_reward")],
        ),
        trainer=TrainerSettings(
            accelerator="cpu",
            devices=devices,
            strategy=job.get("strategy") or ("auto" if devices == 1 else "ddp"),
            precision="32-true",
        ),
        tracking=TrackingSettings(wandb=False, sample_every=0),
    )
    return StageContext(recipe, Path(job["out"]), "grpo")


def stopped_in(step: int) -> Any:
    """`GrpoModule._update` as it is, but that rank 0 gets a signal in an optimizer step."""
    from cogalign.grpo.module import GrpoModule

    real = GrpoModule._update

    def update(self: GrpoModule, *arguments: Any) -> dict[str, float]:
        if self.optimizer_step_count == step and self.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    return real, update


def do(job: dict[str, Any], devices: int) -> None:
    """Run a job until it ends or is stopped."""
    import torch

    from cogalign.grpo.module import GrpoModule
    from cogalign.grpo.stage import run
    from cogalign.training.interrupt import Interrupted

    torch.manual_seed(len(job["out"]))  # what came before must not matter
    real = GrpoModule._update
    try:
        if job.get("stop") is not None:
            GrpoModule._update = stopped_in(job["stop"])[1]  # type: ignore[method-assign]
        run(context(job, devices))
        assert job.get("stop") is None
    except Interrupted:
        assert job.get("stop") is not None
    finally:
        GrpoModule._update = real  # type: ignore[method-assign]


if __name__ == "__main__":  # the workers that compute rewards import this file too
    for one in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
        do(one, int(sys.argv[1]))
