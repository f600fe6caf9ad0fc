"""One process and two give the same steps, stop and go on with the same completions, and take over from each other."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogalign.training.checkpoints import latest_checkpoint, read
from tests.grpo.jobs import do

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
"""`bnpo` averages over each rank's own tokens, by its definition."""
CYCLE = {"num_iterations": 2, "steps_per_generation": 2, "steps": 5}
EVEN: dict[str, Any] = {
    "dynamic_sampling": 2, "num_generations": 2, "steps": 2, "aggregation": "gdpo", "scale_rewards": "batch",
    "steps_per_generation": 2, "prompts_per_step": 6, "micro_batch": 6, "max_completion_length": 3,
}  # fmt: skip
TIMES = ("time", "images_encoded")
"""Columns that tell how the work was done: an image of both ranks is encoded by both."""

Job = Callable[..., dict[str, Any]]


@pytest.fixture
def job(base_folder: Path, phantom_set: Path, sft_folder: Path, counterfactuals: Path, tmp_path: Path) -> Job:
    """Makes a job in a folder of its own name."""

    def make(
        name: str, stop: int | None = None, strategy: str | None = None, even: bool = False, **fields: Any
    ) -> dict[str, Any]:
        out = tmp_path / name
        if not out.exists():
            shutil.copytree(sft_folder, out / "sft")
            shutil.copytree(counterfactuals, out / "counterfactual")
        same = {"out": str(out), "base": str(base_folder), "data": str(phantom_set)}
        return {**same, "fields": fields, "stop": stop, "strategy": strategy, "even": even}

    return make


def on_two(jobs: list[dict[str, Any]], folder: Path) -> str:
    """Do jobs on two processes; gives back what they said."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.grpo.jobs", "2", str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def table(job: dict[str, Any]) -> list[dict[str, float]]:
    """Metrics of a run, without times."""
    with open(Path(job["out"]) / "grpo/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if not any(t in name for t in TIMES)} for row in rows]


def adapter(job: dict[str, Any]) -> bytes:
    return (Path(job["out"]) / "grpo/adapter/adapter_model.safetensors").read_bytes()


def assert_same(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    """Equal but for rounding: 1e-6, of the gradient's norm as a part of it."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=2e-6, abs=1e-6, nan_ok=True), (name, one["step"])


def test_two_ranks_take_the_steps_of_one(job: Job, tmp_path: Path) -> None:
    """Objectives, batch scaling, replaced groups: loss, gradient and metrics agree within rounding."""
    names = {**{name: {"objective": name, "scale_rewards": "batch"} for name in OBJECTIVES}, "even": EVEN}
    tiny_step: dict[str, Any] = {"learning_rate": 1e-9, "checkpoint_every": 100, "steps": 2}  # rounding does not grow
    both = []
    for ranks in (1, 2):
        both.append(
            [job(f"{name}-{ranks}", even=fields is EVEN, **tiny_step | fields) for name, fields in names.items()]
        )
    for alone in both[0]:
        do(alone, 1)
    on_two(both[1], tmp_path)
    for alone, together in zip(*both, strict=True):
        assert_same(table(together), table(alone))
    assert sum(row["dynamic_sampling/replaced"] for row in table(both[0][-1])) > 0


def test_two_ranks_stopped_at_any_step_go_on_bit_for_bit(job: Job, tmp_path: Path) -> None:
    """Inside a generation, between two, and at the last step; then both ways over another number of ranks."""
    whole = job("whole", **CYCLE)
    jobs = [whole]
    for step in range(5):
        jobs += [job(f"stopped-{step}", step, **CYCLE), job(f"stopped-{step}", **CYCLE)]
    jobs.append(job("begun-by-two", 1, **CYCLE))
    begun, wanted = job("begun-by-one", 0, **CYCLE), job("one", **CYCLE)
    do(begun, 1)
    do(wanted, 1)
    written = checkpoint(begun)
    assert len(written["grpo"]["experience"]) == 1
    said = on_two([*jobs, job("begun-by-one", **CYCLE)], tmp_path)
    assert "dropped" not in said
    for step in range(5):
        stopped = job(f"stopped-{step}")
        assert adapter(stopped) == adapter(whole), step
        assert table(stopped) == table(whole), step
    by_two = checkpoint(job("begun-by-two"))
    assert len(by_two["grpo"]["experience"]) == 2 and by_two["grpo"]["experience"][0]["used"] == 2
    do(job("begun-by-two", **CYCLE), 1)
    # the policy has moved by real steps, in which rounding grows: what was sampled is the same all the same
    for name in ("begun-by-two", "begun-by-one"):
        for found, other in zip(table(job(name)), table(wanted), strict=True):
            assert found["num_tokens"] == other["num_tokens"] and found["reward"] == pytest.approx(other["reward"])
            assert found["loss"] == pytest.approx(other["loss"], abs=1e-4), (name, found["step"])
            assert found["kl"] == pytest.approx(other["kl"], rel=1e-2, abs=1e-6), (name, found["step"])


def test_sharded_weights_take_the_steps_of_whole_ones(job: Job, tmp_path: Path) -> None:
    """fsdp2: sampled with gathered weights, stopped inside a generation, gone on with."""
    fields: dict[str, Any] = {"num_iterations": 2, "steps": 4, "learning_rate": 1e-6}
    alone = job("whole-weights", **fields)
    do(alone, 1)
    sharded = job("sharded", strategy="fsdp2", **fields)
    on_two([sharded, job("sharded-stopped", 0, "fsdp2", **fields), job("sharded-stopped", None, "fsdp2", **fields)],
           tmp_path)  # fmt: skip
    for found, wanted in zip(table(sharded), table(alone), strict=True):
        for name in ("reward", "loss", "entropy", "num_tokens", "completions/mean_length"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-5), (name, found["step"])
        assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
    assert adapter(job("sharded-stopped")) == adapter(sharded)
    assert table(job("sharded-stopped")) == table(sharded)


def checkpoint(job: dict[str, Any]) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    path = latest_checkpoint(Path(job["out"]) / "grpo")
    assert path is not None
    return read(path)
