"""kill -9 at twenty moments of a GRPO run: each time it goes on, and it ends with the weights of a run left alone."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.kill9.lives import Life, Moment, command, last_step, lived, rows, schedule, started

pytestmark = [
    pytest.mark.kill9,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]
SEED = 6
STEPS = 48
EVERY = 2
"""Optimizer steps between two checkpoints."""
RECIPE = f"""
stages: [sft, counterfactual]
model: {{name: tiny-random, dtype: float32}}
data: {{phantom: {{train: 24, validation: 4, test: 4, size: 64, seed: 5}}}}
sft: {{steps: 2, batch_size: 2, validate_every: 2, validation_limit: 2, lora: {{r: 4}}}}
counterfactual: {{splits: [train], interventions: [removal, control], fill: surround_blur, gallery: 0}}
grpo:
  steps: {STEPS}
  prompts_per_step: 4
  num_generations: 3
  micro_batch: 2
  num_iterations: 2
  steps_per_generation: 2
  learning_rate: 0.002
  max_completion_length: 6
  checkpoint_every: {EVERY}
  reward_workers: 2
  mix: {{factual: 0.5, removal: 0.25, control: 0.25}}
  custom_rewards: [{{path: tests.grpo.longer.longer_reward}}]
trainer: {{accelerator: cpu, precision: 32-true}}
tracking: {{wandb: false}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small run."""
    path = tmp_path_factory.mktemp("kill9") / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(recipe: Path) -> Path:
    """A run folder in which sft and counterfactual are done."""
    out = recipe.parent / "prepared"
    arguments = [sys.executable, "-m", "cogalign", "run", str(recipe), "--out", str(out)]
    process = started(arguments, recipe.parent / "prepare.log", "prepare")
    assert process.wait(600) == 0, (recipe.parent / "prepare.log").read_text()[-2000:]
    return out


def finished(recipe: Path, out: Path, log: Path) -> float:
    """Let the command run to its end; gives back its seconds."""
    began = time.monotonic()
    assert started(command(recipe, out), log, "finish").wait(600) == 0, log.read_text(errors="replace")[-2000:]
    return time.monotonic() - began


def adapter(out: Path) -> bytes:
    return (out / "grpo/adapter/adapter_model.safetensors").read_bytes()


def timeless(out: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if "time" not in name} for row in rows(out)]


def leftovers(out: Path) -> list[str]:
    """Temporary files of a run; locks and the notes of its processes (`pipeline_ranks`) are none."""
    hidden = [path for path in out.rglob("*") if path.name.startswith(".") or path.name.endswith((".tmp", ".partial"))]
    return [
        str(path.relative_to(out))
        for path in hidden
        if not {".lock", ".locks", ".ranks"} & set(path.relative_to(out).parts)
    ]


def show(lives: list[Life]) -> str:
    """A table of what happened."""
    lines = ["killed at | group | after s | went on after | last row | lost | children gone after s"]
    for number, life in enumerate(lives):
        after = lives[number + 1].resumed if number + 1 < len(lives) else None
        lost = "" if after is None else str(life.last_row - after)
        moment = f"{life.moment.marker} {life.moment.steps or ''} +{life.moment.delay:.3f}"
        lines.append(f"{moment} | {life.moment.group} | {life.seconds:.1f} | {life.resumed} | {life.last_row} | {lost} | "
                     f"{life.orphans:.2f}")  # fmt: skip
    return "\n".join(lines)


def test_a_run_killed_at_twenty_moments_ends_with_the_weights_of_a_run_left_alone(recipe: Path, prepared: Path) -> None:
    whole, killed = recipe.parent / "whole", recipe.parent / "killed"
    for out in (whole, killed):
        shutil.copytree(prepared, out)
    finished(recipe, whole, recipe.parent / "whole.log")
    table = rows(whole)
    step = sum(float(row["step_time"]) for row in table) / len(table)
    startup = measured_startup(recipe, killed)
    shutil.rmtree(killed / "grpo")  # the twenty begin at the beginning

    lives: list[Life] = []
    for number, moment in enumerate(schedule(SEED, startup, step)):
        lives.append(lived(command(recipe, killed), killed, recipe.parent / f"life-{number}.log", moment))
        print(show(lives[-1:]).splitlines()[1], flush=True)
    finished(recipe, killed, recipe.parent / "last.log")
    print(f"startup {startup:.1f} s, step {step:.2f} s\n{show(lives)}")

    assert len(lives) == 20
    assert adapter(killed) == adapter(whole)
    assert [row["step"] for row in rows(killed)] == [str(number + 1) for number in range(STEPS)]
    assert timeless(killed) == timeless(whole)
    assert not leftovers(killed), leftovers(killed)
    done = 0
    for life in lives:
        if life.resumed is not None:  # what the life before had logged, and this one does again
            assert 0 <= done - life.resumed <= EVERY, life
        done = max(done if life.resumed is None else life.resumed, life.last_row)
    assert adapter(whole) != (whole / "sft/adapter/adapter_model.safetensors").read_bytes()


def measured_startup(recipe: Path, out: Path) -> float:
    """Seconds from the start of the command to the first optimizer step: a first life, which ends there."""
    life = lived(command(recipe, out), out, recipe.parent / "startup.log", Moment("step", 1, 0.0, group=True))
    assert last_step(out) >= 1
    return life.seconds


def test_the_schedule_is_the_same_each_time_and_reaches_every_part_of_a_life() -> None:
    moments = schedule(SEED, 8.0, 0.2)
    assert moments == schedule(SEED, 8.0, 0.2) != schedule(SEED + 1, 8.0, 0.2) and len(moments) == 20
    assert {moment.marker for moment in moments} == {"start", "step", "saving", "adapter", "renamed"}
    assert {moment.group for moment in moments} == {True, False}
