"""A short GRPO run whose completions come from a real vLLM server."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cogalign.grpo.module import GrpoModule
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
from tests.faults.table import Row, check

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
STEPS = 3


def prepared(
    tiny: LoadedModel, policy: LoadedModel, vllm_settings: VllmSettings, phantom_set: Path, tmp_path: Path
) -> StageContext:
    """A run whose first stage is done, and whose steps change the policy clearly."""
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.processor.save_pretrained(tmp_path / "base")
    save_checkpoint(policy, tmp_path / "sft")
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
    return StageContext(recipe, tmp_path, "grpo")


def test_a_run_learns_from_what_the_server_sampled_with_the_newest_adapter(
    tiny: LoadedModel, policy: LoadedModel, vllm_settings: VllmSettings, phantom_set: Path, tmp_path: Path
) -> None:
    context = prepared(tiny, policy, vllm_settings, phantom_set, tmp_path)
    before = load_file(tmp_path / "sft/adapter/adapter_model.safetensors")
    assert run(context)["steps"] == STEPS
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


def test_a_server_that_is_killed_in_a_run_is_started_again(
    tiny: LoadedModel,
    policy: LoadedModel,
    vllm_settings: VllmSettings,
    phantom_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its worker is killed after the first step; the second generation samples from a new server with the new policy."""
    context = prepared(tiny, policy, vllm_settings, phantom_set, tmp_path)
    real, killed = GrpoModule._update, []

    def update(self: GrpoModule, *arguments: Any) -> dict[str, float]:
        if self.optimizer_step_count == 0:
            assert self.rollouts is not None and self.rollouts.server is not None
            group = self.rollouts.server.group
            assert group is not None
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and entry.name != str(group):
                    try:
                        same = os.getpgid(int(entry.name)) == group
                    except ProcessLookupError:
                        continue
                    if same:
                        os.kill(int(entry.name), signal.SIGKILL)
                        killed.append(entry.name)
        return real(self, *arguments)

    monkeypatch.setattr(GrpoModule, "_update", update)
    assert run(context)["steps"] == STEPS and killed
    with open(tmp_path / "grpo/metrics.csv", encoding="utf-8") as file:
        apart = [float(row["sampling/sampling_logp_difference/max"]) for row in csv.DictReader(file)]
    assert len(apart) == STEPS and max(apart) < 1e-3
    told = next(line for line in capfd.readouterr().err.splitlines() if "it is started once more" in line)
    check(Row("the vLLM server dies", "the next request to it", told, "0", "the run goes on"), {tmp_path: "RUN"})
