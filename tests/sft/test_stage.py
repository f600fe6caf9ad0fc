"""Stage 1 as a recipe runs it: it learns, writes its metrics, and goes on bit for bit where it was stopped."""

import csv
import json
import os
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file

from cogalign.data.caseset import read_case_set
from cogalign.data.sampler import StepSampler
from cogalign.models.load import load_model
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
from cogalign.training.context import StageContext
from cogalign.training.interrupt import Interrupted
from cogalign.training.schedules import warmup_cosine
from cogalign.training.seeding import derive_seed

STEPS = 5


def context(out: Path, data: Path, sample_every: int = 0, **fields: Any) -> StageContext:
    chosen = {
        "steps": STEPS,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "warmup_share": 0.2,
        "lora": LoraSettings(r=4, alpha=8, dropout=0.1),
        "validate_every": 2,
        "validation_limit": 3,
        "checkpoint_every": 2,
    } | fields
    recipe = Recipe(
        out=str(out),
        model=ModelSettings(name="tiny-random", dtype="float32"),
        data=DataSettings(case_set=str(data)),
        sft=SftSettings(**chosen),
        trainer=TrainerSettings(accelerator="cpu", precision="32-true"),
        tracking=TrackingSettings(wandb=False, sample_every=sample_every),
    )
    return StageContext(recipe, out, "sft")


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "sft/metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stop_at(monkeypatch: pytest.MonkeyPatch, batch: int, how: str) -> None:
    """Let batch `batch` (from 0) of the next run end in a signal or a crash."""
    real = SftModule.training_step

    def step(self: SftModule, data: Any, batch_idx: int) -> Any:
        if self.trainer.datamodule.position == batch * self.settings.batch_size:  # type: ignore[attr-defined]
            if how == "crash":
                raise RuntimeError("the power is gone")
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, data, batch_idx)

    monkeypatch.setattr(SftModule, "training_step", step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path) -> tuple[Path, dict[str, Any]]:
    """A run that nothing stopped, and its metrics."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    return out, run(context(out, phantom_set))


def test_a_few_steps_reduce_the_loss(whole: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = whole
    losses = [float(row["loss"]) for row in rows(out)]
    assert losses[-1] < losses[0] - 0.05
    evaluated = [float(row["eval_loss"]) for row in rows(out) if row["eval_loss"]]
    assert evaluated[-1] < evaluated[0]
    assert metrics["loss"] == losses[-1] and metrics["eval_loss"] == evaluated[-1]


def test_there_is_one_row_a_step(whole: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = whole
    table = rows(out)
    assert [row["step"] for row in table] == [str(step) for step in range(1, STEPS + 1)]
    assert {"loss", "grad_norm", "learning_rate", "num_tokens", "eval_loss", "step_time"} <= set(table[0])
    assert [bool(row["eval_loss"]) for row in table] == [False, True, False, True, False]
    for row in table:
        assert all(float(row[name]) > 0 for name in ("loss", "grad_norm", "learning_rate"))
    tokens = [int(row["num_tokens"]) for row in table]
    assert all(a < b for a, b in pairwise(tokens)) and metrics["num_tokens"] == tokens[-1]
    assert metrics["steps"] == STEPS
    factors = [warmup_cosine(step, STEPS, 0.2) for step in range(STEPS)]
    assert [float(row["learning_rate"]) for row in table] == pytest.approx([5e-3 * factor for factor in factors])


def test_the_adapter_is_what_was_trained(whole: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = whole
    config = json.loads((out / "sft/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
    weights = load_file(out / "sft/adapter/adapter_model.safetensors")
    assert sum(value.numel() for value in weights.values()) == metrics["trainable_parameters"]
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    last = torch.load(out / "sft/checkpoints/step-00000004.ckpt", weights_only=True)
    assert sum(value.numel() for value in last["state_dict"].values()) == metrics["trainable_parameters"]


@pytest.mark.parametrize(
    ("how", "batch", "workers"), [("signal", 0, 0), ("signal", 3, 2), ("signal", 4, 0), ("crash", 3, 0)]
)
def test_a_stopped_run_goes_on_bit_for_bit(
    whole: tuple[Path, dict[str, Any]],
    phantom_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    batch: int,
    workers: int,
) -> None:
    out, metrics = whole
    with monkeypatch.context() as patch:
        stop_at(patch, batch, how)
        with pytest.raises(Interrupted if how == "signal" else RuntimeError, match=r"SIGTERM|power"):
            run(context(tmp_path, phantom_set, workers=workers))
    assert not (tmp_path / "sft/adapter").exists()
    torch.manual_seed(12345)  # the new process has another history
    again = run(context(tmp_path, phantom_set, workers=workers))
    assert again == metrics
    expected = (out / "sft/adapter/adapter_model.safetensors").read_bytes()
    assert (tmp_path / "sft/adapter/adapter_model.safetensors").read_bytes() == expected
    for row, wanted in zip(rows(tmp_path), rows(out), strict=True):
        assert {**row, "step_time": ""} == {**wanted, "step_time": ""}


def killed(*_: Any) -> None:
    raise RuntimeError("the power is gone")


@pytest.mark.parametrize("moment", ["on_train_batch_end", "on_validation_epoch_start", "on_validation_epoch_end"])
def test_a_run_killed_between_checkpoint_and_validation_still_does_and_logs_both(
    whole: tuple[Path, dict[str, Any]],
    phantom_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    out, metrics = whole
    real = getattr(SftModule, moment)

    def at_last(self: SftModule, *arguments: Any) -> None:
        (killed if self.trainer.global_step == 4 else partial(real, self))(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SftModule, moment, at_last)
        with pytest.raises(RuntimeError, match="power"):
            run(context(tmp_path, phantom_set))
    assert [path.name for path in sorted((tmp_path / "sft/checkpoints").iterdir())][-1] == "step-00000004.ckpt"
    assert run(context(tmp_path, phantom_set)) == metrics
    for row, wanted in zip(rows(tmp_path), rows(out), strict=True):
        assert {**row, "step_time": ""} == {**wanted, "step_time": ""}
    expected = (out / "sft/adapter/adapter_model.safetensors").read_bytes()
    assert (tmp_path / "sft/adapter/adapter_model.safetensors").read_bytes() == expected


def test_gradients_of_several_batches_make_one_step(
    phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 3, "accumulate": 2, "batch_size": 2, "checkpoint_every": 1, "validate_every": 2}
    metrics = run(context(tmp_path / "whole", phantom_set, **fields))
    table = rows(tmp_path / "whole")
    assert [row["step"] for row in table] == ["1", "2", "3"]
    assert [bool(row["eval_loss"]) for row in table] == [False, True, False]
    with monkeypatch.context() as patch:
        stop_at(patch, 2, "signal")  # the first of the two batches of step 2
        with pytest.raises(Interrupted, match="step 2 is saved"):
            run(context(tmp_path / "stopped", phantom_set, **fields))
    assert run(context(tmp_path / "stopped", phantom_set, **fields))["num_tokens"] == metrics["num_tokens"]
    one, two = (
        (tmp_path / name / "sft/adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert one == two


class Engine(SingleDeviceStrategy):
    """Adds up gradients itself as DeepSpeed does: Lightning calls the hooks of a step after every pass."""

    handles_gradient_accumulation = True

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **options: Any) -> Any:
        model = self.lightning_module
        last = not model.trainer.fit_loop._should_accumulate()
        zero, optimizer.zero_grad = optimizer.zero_grad, lambda *_, **__: None
        found = closure()
        optimizer.zero_grad = zero
        self.precision_plugin._after_closure(model, optimizer)
        if last:
            optimizer.step()
            optimizer.zero_grad()
        return found


def test_where_the_strategy_adds_up_gradients_a_row_is_of_all_passes(
    phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 2, "accumulate": 2, "batch_size": 2, "validate_every": 0}
    plain = run(context(tmp_path / "plain", phantom_set, **fields))
    monkeypatch.setattr("cogalign.training.trainer.strategy_of", lambda *_: Engine())
    monkeypatch.setattr("cogalign.sft.module.owns_gradients", lambda _: True)
    assert run(context(tmp_path / "engine", phantom_set, **fields))["num_tokens"] == plain["num_tokens"]
    wanted, found = rows(tmp_path / "plain"), rows(tmp_path / "engine")
    assert [row["step"] for row in found] == ["1", "2"] and found[0]["loss"] == wanted[0]["loss"]


def test_all_weights_can_be_trained_with_the_vision_encoder_frozen(phantom_set: Path, tmp_path: Path) -> None:
    made = context(tmp_path, phantom_set, steps=1, lora=None, validate_every=0)
    metrics = run(made)
    base = dict(load_model(made.recipe.model, device="cpu").model.named_parameters())
    tuned = dict(load_model(made.recipe.model, made.checkpoint("sft"), device="cpu").model.named_parameters())
    changed = {name for name, value in tuned.items() if not torch.equal(value, base[name])}
    assert changed and all(name.startswith("model.language_model.") for name in changed)
    assert metrics["trainable_parameters"] == sum(p.numel() for n, p in base.items() if "visual" not in n)
    assert metrics["eval_loss"] is None and (tmp_path / "sft/model").is_dir()


def test_samples_of_what_the_model_writes_are_kept(phantom_set: Path, tmp_path: Path) -> None:
    made = context(tmp_path, phantom_set, sample_every=1, steps=1, validate_every=1, validation_limit=2)
    made.recipe.evaluate.max_completion_length = 3
    run(made)
    lines = (tmp_path / "sft/completions/completions_00001.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 2 and all(set(sample) == {"id", "answer", "completion"} for sample in samples)


def test_a_sample_that_is_too_long_stops_the_stage_with_its_name(phantom_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"case 'phantom-a\d+': found \d+ tokens, wanted at most sft.max_length = 60"):
        run(context(tmp_path, phantom_set, max_length=60))


def test_a_checkpoint_is_little_larger_than_adapter_and_optimizer(phantom_set: Path, tmp_path: Path) -> None:
    run(context(tmp_path, phantom_set, steps=1, lora=LoraSettings(r=64), validate_every=0, checkpoint_every=1))
    path = tmp_path / "sft/checkpoints/step-00000001.ckpt"
    content = torch.load(path, weights_only=True)
    weights = sum(value.nbytes for value in content["state_dict"].values())
    moments = [value for state in content["optimizer_states"][0]["state"].values() for value in state.values()]
    assert weights > 2**20 and sum(value.nbytes for value in moments) == pytest.approx(2 * weights, rel=0.01)
    assert path.stat().st_size <= 1.1 * 3 * weights


def test_a_step_that_is_not_finite_moves_nothing_but_the_schedule_and_its_cases_are_kept(
    phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SftModule._loss
    bad = 3

    def loss(self: SftModule, batch: dict[str, Any]) -> torch.Tensor:
        value = real(self, batch)
        return value * float("nan") if self.training and self.trainer.global_step + 1 == bad else value

    monkeypatch.setattr(SftModule, "_loss", loss)
    run(context(tmp_path, phantom_set, checkpoint_every=1, validate_every=0))
    table = rows(tmp_path)
    assert [row["nonfinite_steps"] for row in table] == ["0", "0", "1", "1", "1"]
    assert table[2]["loss"] == "nan" and all(float(row["loss"]) > 0 for row in table[3:])
    rates = [float(row["learning_rate"]) for row in table]
    assert rates == pytest.approx([5e-3 * warmup_cosine(step, STEPS, 0.2) for step in range(STEPS)])
    contents = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "sft/checkpoints").iterdir())]
    assert [content["nonfinite"] for content in contents] == [{"skipped": 1, "in_a_row": 0}] * 2
    steps = {float(state["step"]) for state in contents[-1]["optimizer_states"][0]["state"].values()}
    assert steps == {STEPS - 1.0}
    assert all(value.isfinite().all() for value in contents[-1]["state_dict"].values())
    kept = load_file(tmp_path / "sft/nonfinite/step-00000003-rank-0.safetensors")
    notes = json.loads((tmp_path / "sft/nonfinite/step-00000003-rank-0.json").read_text())
    sampler = StepSampler(20, 4, STEPS, derive_seed(Recipe().seed, "sft"))
    cases = read_case_set(phantom_set).split("train")
    assert notes["cases"] == [cases[item].id for item in sampler.batch(bad - 1)]
    assert len(kept["batch.labels"]) == 4 and "batch.pixel_values" in kept
