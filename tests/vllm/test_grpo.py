"""A short GRPO run whose completions come from a real vLLM server."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cogalign.grpo.stage import run
from cogalign.models.adapt import save_checkpoint
from cogalign.models.load import LoadedModel
from cogalign.recipe import (
    CustomReward,
    DataSettings,
    GrpoSettings,
    ModelSettings,
    Recipe,
    TrackingSettings,
    TrainerSettings,
)
from cogalign.recipe_grpo import VllmSettings
from cogalign.training.context import StageContext

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
STEPS = 3


def test_a_run_learns_from_what_the_server_sampled_with_the_newest_adapter(
    tiny: LoadedModel, policy: LoadedModel, vllm_settings: VllmSettings, phantom_set: Path, tmp_path: Path
) -> None:
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.processor.save_pretrained(tmp_path / "base")
    before = load_file(save_checkpoint(policy, tmp_path / "sft") / "adapter_model.safetensors")
    settings = GrpoSettings(
        steps=STEPS,
        prompts_per_step=2,
        num_generations=4,
        micro_batch=2,
        max_completion_length=16,
        learning_rate=1e-2,  # the next policy is clearly another one
        sampler="vllm",
        vllm=vllm_settings,
        custom_rewards=[CustomReward("tests.grpo.longer.longer_reward")],
    )
    recipe = Recipe(
        out=str(tmp_path),
        model=ModelSettings(name=str(tmp_path / "base"), dtype="float32"),
        data=DataSettings(case_set=str(phantom_set)),
        grpo=settings,
        trainer=TrainerSettings(accelerator="cpu", precision="32-true"),
        tracking=TrackingSettings(wandb=False),
    )
    assert run(StageContext(recipe, tmp_path, "grpo"))["steps"] == STEPS
    with open(tmp_path / "grpo/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    apart = [float(row["sampling/sampling_logp_difference/max"]) for row in rows]
    moved = [abs(float(row["kl"])) for row in rows]
    print(f"\nlargest differences of the log-probabilities: {apart}; KL from the SFT model: {moved}")
    assert len(rows) == STEPS and max(apart) < 1e-3
    assert moved[-1] > 1e-3  # far more than `apart`: a server that kept the first adapter would show
    after = load_file(tmp_path / "grpo/adapter/adapter_model.safetensors")
    assert any(not after[name].equal(value) for name, value in before.items())
    log = (tmp_path / "grpo/vllm.log").read_text(encoding="utf-8")
    assert log.count("Loaded new LoRA adapter") == STEPS
    assert not list((tmp_path / "grpo/vllm").rglob("*.safetensors"))
