"""Stage 3 as a recipe runs it: metrics under TRL's names, and a stopped run goes on bit for bit."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cogalign.data.caseset import read_case_set
from cogalign.grpo.module import GrpoModule
from cogalign.grpo.stage import open_cases, run
from cogalign.models.load import load_model
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
from cogalign.training.checkpoints import latest_checkpoint, read
from cogalign.training.context import StageContext
from cogalign.training.interrupt import Interrupted

TRL_NAMES = {
    "reward", "reward_std", "frac_reward_zero_std", "rewards/format/mean", "rewards/format/std",
    "rewards/cognition/mean", "rewards/diagnosis/mean", "kl", "entropy", "num_tokens", "step_time", "loss",
    "grad_norm", "learning_rate", "completions/mean_length", "completions/min_length", "completions/max_length",
    "completions/clipped_ratio", "completions/mean_terminated_length", "completions/min_terminated_length",
    "completions/max_terminated_length", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
}  # fmt: skip
REWARDS = ("format", "cognition", "diagnosis", "longer_reward")
PHASES = ("sampling", "rewards", "scoring", "forward", "backward", "optimizer")
MIX = MixSettings(factual=0.5, removal=0.2, control=0.2, transplant=0.1)


@pytest.fixture
def make(base_folder: Path, phantom_set: Path, sft_folder: Path, counterfactuals: Path) -> Any:
    """A function that puts a run whose first stages are done into a folder."""

    def context(out: Path, sample_every: int = 0, **fields: Any) -> StageContext:
        if not (out / "sft").exists():
            shutil.copytree(sft_folder, out / "sft")
            shutil.copytree(counterfactuals, out / "counterfactual")
        chosen = {
            "steps": 5,
            "prompts_per_step": 5,
            "num_generations": 3,
            "micro_batch": 2,
            "num_iterations": 2,
            "learning_rate": 2e-3,
            "max_completion_length": 6,
            "top_p": 0.95,
            "mix": MIX,
            "custom_rewards": [CustomReward("tests.grpo.longer.longer_reward")],
            "checkpoint_every": 1,
        } | fields
        recipe = Recipe(
            out=str(out),
            model=ModelSettings(name=str(base_folder), dtype="float32"),
            data=DataSettings(case_set=str(phantom_set)),
            grpo=GrpoSettings(**chosen),
            trainer=TrainerSettings(accelerator="cpu", precision="32-true"),
            tracking=TrackingSettings(wandb=False, sample_every=sample_every),
        )
        return StageContext(recipe, out, "grpo")

    return context


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "grpo/metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_rows(a: Path, b: Path) -> bool:
    def timeless(out: Path) -> list[dict[str, str]]:
        return [{name: value for name, value in row.items() if "time" not in name} for row in rows(out)]

    return timeless(a) == timeless(b)


def adapter(out: Path) -> bytes:
    return (out / "grpo/adapter/adapter_model.safetensors").read_bytes()


def stop_at(patch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """Let the next run end in a signal or a crash in its optimizer step `step` (from 0)."""
    real = GrpoModule._update

    def update(self: GrpoModule, *arguments: Any) -> dict[str, float]:
        if self.optimizer_step_count == step:
            if how == "crash":
                raise RuntimeError("the power is gone")
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    patch.setattr(GrpoModule, "_update", update)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_iterations": 2},
        {"num_iterations": 2, "steps_per_generation": 2, "objective": "gspo", "scale_rewards": "batch"},
        {"steps_per_generation": 2, "dynamic_sampling": 2, "aggregation": "gdpo", "objective": "dapo"},
    ],
    ids=["mu", "mu and slices", "dynamic sampling"],
)
def test_a_run_stopped_inside_a_generation_goes_on_bit_for_bit(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    metrics = run(make(tmp_path / "whole", **fields))
    assert metrics["steps"] == 5 and metrics["kl"] > 0 and metrics["frac_reward_zero_std"] < 1
    for how, step in (("signal", 0), ("crash", 3)):
        out = tmp_path / how
        with monkeypatch.context() as patch:
            stop_at(patch, step, how)
            with pytest.raises(Interrupted if how == "signal" else RuntimeError):
                run(make(out, **fields))
        torch.manual_seed(99)
        assert run(make(out, **fields)) == metrics
        assert adapter(out) == adapter(tmp_path / "whole")
        assert same_rows(out, tmp_path / "whole")
    assert adapter(tmp_path / "whole") != (tmp_path / "whole/sft/adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("objective", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_steps_per_generation_and_micro_batches_change_no_loss_and_no_gradient(
    make: Any, tmp_path: Path, objective: str
) -> None:
    """Where the policy hardly moves, sampling several steps' prompts together is the same as one step at a time."""
    fields = {"num_iterations": 1, "steps": 4, "learning_rate": 1e-12, "objective": objective, "scale_rewards": "batch"}
    run(make(tmp_path / "alone", **fields))
    run(make(tmp_path / "together", **fields, steps_per_generation=2))
    alone, together = rows(tmp_path / "alone"), rows(tmp_path / "together")
    assert len(alone) == len(together) == 4 and len({row["reward"] for row in alone}) > 1
    for name in ("reward", "reward_std", "completions/mean_length", "loss", "grad_norm", "entropy"):
        found, wanted = ([float(row[name]) for row in table] for table in (together, alone))
        assert found == pytest.approx(wanted, rel=2e-5, abs=1e-7), name


def test_groups_that_teach_nothing_are_replaced_without_a_reference_too(make: Any, tmp_path: Path) -> None:
    """With beta 0 nothing but the update itself encodes the new prompts."""
    fields = {"steps": 3, "num_iterations": 1, "beta": 0.0, "num_generations": 2, "dynamic_sampling": 3}
    only = RewardWeights(format=0.0, cognition=0.0, diagnosis=0.0)
    rare = [CustomReward("tests.grpo.longer.even_reward")]
    run(make(tmp_path / "kept", **fields | {"dynamic_sampling": 0}, reward_weights=only, custom_rewards=rare))
    run(make(tmp_path / "replaced", **fields, reward_weights=only, custom_rewards=rare))
    kept, replaced = rows(tmp_path / "kept"), rows(tmp_path / "replaced")
    assert sum(float(row["dynamic_sampling/replaced"]) for row in replaced) > 0
    flat = [sum(float(row["frac_reward_zero_std"]) for row in table) for table in (replaced, kept)]
    assert flat[0] < flat[1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_short_types_run_on_a_cpu(make: Any, tmp_path: Path, precision: str) -> None:
    made = make(tmp_path, steps=2)
    made.recipe.trainer.precision = precision
    made.recipe.model.dtype = "bfloat16"
    metrics = run(made)
    assert metrics["steps"] == 2 and all(float(row["grad_norm"]) > 0 for row in rows(tmp_path))


def test_the_completions_of_an_unfinished_generation_are_in_the_checkpoint(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 0, "signal")
        with pytest.raises(Interrupted, match="step 1 is saved"):
            run(make(tmp_path))
    path = latest_checkpoint(tmp_path / "grpo")
    assert path is not None
    state = read(path)["grpo"]
    experience = state["experience"][0]
    assert (state["rollout_count"], experience["used"], experience["iterations"]) == (1, 1, 2)
    micros = experience["slices"][0]["micros"]
    assert sum(len(micro["rollout.ids"]) for micro in micros) == 15
    assert all(micro["old_logps"] is not None and micro["ref_logps"] is not None for micro in micros)


def test_with_one_update_a_rollout_a_stopped_run_goes_on_too(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 3, "num_iterations": 1, "checkpoint_every": 100}
    metrics = run(make(tmp_path / "whole", **fields))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, "signal")
        with pytest.raises(Interrupted, match="step 2 is saved"):
            run(make(tmp_path / "stopped", **fields))
    assert run(make(tmp_path / "stopped", **fields)) == metrics
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "whole")


def test_metrics_have_trls_names_and_the_divergence_begins_at_zero(make: Any, tmp_path: Path) -> None:
    metrics = run(make(tmp_path, sample_every=2, steps=3))
    table = rows(tmp_path)
    assert set(table[0]) == TRL_NAMES | {
        "step",
        "rewards/cognition/std",
        "rewards/diagnosis/std",
        "rewards/longer_reward/mean",
        "rewards/longer_reward/std",
        "images_encoded",
        "nonfinite_steps",
        *(f"rewards/{name}/{kind}" for name in REWARDS for kind in ("missing", "time")),
        *(f"time/{phase}" for phase in PHASES),
    }
    assert [row["step"] for row in table] == ["1", "2", "3"]
    assert float(table[0]["kl"]) == 0 and all(float(row["kl"]) > 0 for row in table[1:])
    assert all(float(row["grad_norm"]) > 0 and float(row["entropy"]) > 0 for row in table)
    assert table[0]["reward"] == table[1]["reward"] != table[2]["reward"]  # two updates on a rollout
    assert table[0]["num_tokens"] == table[1]["num_tokens"] and metrics["num_tokens"] == int(table[2]["num_tokens"])
    assert float(table[0]["completions/max_length"]) <= 6
    for step in (1, 2):
        lines = (tmp_path / f"grpo/completions/completions_{step:05d}.jsonl").read_text().splitlines()
        assert len(lines) == 5
        assert all(set(json.loads(line)) == {"id", "intervention", "findings", "completion"} for line in lines)
    assert not (tmp_path / "grpo/completions/completions_00003.jsonl").exists()


def test_full_weights_are_aligned_with_the_vision_encoder_frozen(make: Any, base_folder: Path, tmp_path: Path) -> None:
    made = make(tmp_path, steps=2)
    shutil.rmtree(tmp_path / "sft/adapter")
    shutil.copytree(base_folder, tmp_path / "sft/model")
    run(made)  # three micro-batches of which the last is smaller
    before = dict(load_model(made.recipe.model, device="cpu").model.named_parameters())
    after = dict(load_model(made.recipe.model, made.checkpoint("aligned"), device="cpu").model.named_parameters())
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("model.language_model.") for name in changed)
    table = rows(tmp_path)
    assert float(table[0]["kl"]) == 0 and float(table[1]["kl"]) > 0


def test_every_case_is_read_from_its_own_case_set(make: Any, tmp_path: Path) -> None:
    made = make(tmp_path)
    reader = open_cases(made)
    pools = reader.pools()
    assert set(pools) == {"removal", "control", "transplant"} and all(pools.values())
    pairs = read_case_set(made.counterfactual_dir)
    for part, cases in pools.items():
        assert all(case.intervention == part and case.split == "train" for case in cases)
        assert reader(cases[0]).tobytes() == pairs.image(cases[0]).tobytes()
        source = reader.factual.by_id[cases[0].counterfactual_of or ""]
        assert reader(source).tobytes() == reader.factual.image(source).tobytes() != reader(cases[0]).tobytes()


def test_what_an_earlier_stage_has_to_make_is_named(make: Any, tmp_path: Path) -> None:
    made = make(tmp_path)
    shutil.rmtree(tmp_path / "counterfactual")
    with pytest.raises(FileNotFoundError, match=r"asks for removal, control, transplant.*stage counterfactual first"):
        run(made)
    assert open_cases(make(tmp_path, mix=MixSettings())).counterfactual is None
    shutil.rmtree(tmp_path / "sft")
    with pytest.raises(FileNotFoundError, match="run the stage sft first"):
        run(made)
