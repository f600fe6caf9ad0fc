"""Two processes: the same weights on both after every step, and no rank runs ahead of the files of a stage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path

import torch

from cogalign.grpo.module import GrpoModule
from cogalign.grpo.stage import run as grpo
from cogalign.recipe import *
from cogalign.sft.stage import run as sft
from cogalign.training.context import StageContext


def update(self, *arguments):
    result = real(self, *arguments)
    total = sum(p.double().abs().sum().item() for p in self.parameters() if p.requires_grad)
    with open(Path(out) / f"rank{self.global_rank}.txt", "a") as file:
        print(self.optimizer_step_count, repr(total), result["grad_norm"], result["kl"], file=file)
    return result


real, GrpoModule._update = GrpoModule._update, update
data, out = sys.argv[1:]
if __name__ == "__main__":  # the workers that compute rewards import this file too
    recipe = Recipe(
        out=out,
        model=ModelSettings(name="tiny-random", dtype="float32"),
        data=DataSettings(case_set=data),
        sft=SftSettings(steps=1, batch_size=2, validate_every=1, validation_limit=4),
        grpo=GrpoSettings(
            steps=3, prompts_per_step=6, num_generations=3, micro_batch=2, num_iterations=2, learning_rate=2e-3,
            max_completion_length=5, custom_rewards=[CustomReward("tests.grpo.longer.longer_reward")],
        ),
        trainer=TrainerSettings(accelerator="cpu", devices=2, strategy="ddp", precision="32-true"),
        tracking=TrackingSettings(wandb=False, sample_every=0),
    )
    for stage, run in (("sft", sft), ("grpo", grpo)):
        run(StageContext(recipe, Path(out), stage))
"""


@pytest.mark.slow
def test_two_ranks_take_the_same_steps_through_both_stages(phantom_set: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(script), str(phantom_set), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (tmp_path.joinpath(f"run/rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second and len(first.splitlines()) == 3
    assert (tmp_path / "run/grpo/adapter/adapter_model.safetensors").is_file()
