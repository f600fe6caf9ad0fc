"""The scripts that measure ranks, checkpoints and requeues run, and their JSON has what their readers ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(script: str, *options: str, folder: Path) -> Any:
    target = folder / "result.json"
    command = [sys.executable, str(HERE / script), *options, "--json", str(target)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| --- |" in done.stdout
    return json.loads(target.read_text())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")
def test_one_rank_beside_two(tmp_path: Path) -> None:
    options = ["--steps", "2", "--warmup", "1", "--rounds", "1", "--batch", "4", "--prompts", "2",
               "--completion-tokens", "4", "--side", "64"]  # fmt: skip
    result = run("ddp_efficiency.py", *options, folder=tmp_path)
    for stage in ("sft", "grpo"):
        found = result["stages"][stage]
        assert {ranks: len(steps) for ranks, steps in found["seconds"].items()} == {"1": 2, "2": 2}
        one, two = found["median_seconds"]["1"], found["median_seconds"]["2"]
        assert found["efficiency"] == pytest.approx(one / two / 2, abs=1e-3)


def test_a_checkpoint_is_little_larger_than_what_it_must_hold(tmp_path: Path) -> None:
    options = ["--repeats", "1", "--hidden", "192", "--layers", "2", "--rank", "8"]
    result = run("checkpoint_cost.py", *options, folder=tmp_path)
    for name, model in result["models"].items():
        assert 1.0 < model["ours"]["size_ratio"] <= result["goal_size_ratio"], name
        assert model["ours"]["bytes"] < model["transformers"]["bytes"], name
