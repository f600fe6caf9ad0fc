"""The scripts that pair us with TRL run, and their JSON has what their readers ask for. Speed is not asserted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SMALL = ["--visual-tokens", "16", "--layers", "2", "--steps", "1", "--vocab", "512"]
COMMON = {"step_ratio", "step_ratio_wall", "memory_ratio", "floor_flops", "floor_seconds", "versions", "machine"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(script: str, *options: str, folder: Path) -> Any:
    target = folder / "result.json"
    command = [sys.executable, str(HERE / script), *SMALL, *options, "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(target.read_text())


def test_grpo_beside_trl(tmp_path: Path) -> None:
    options = ["--prompts", "2", "--completion-tokens", "4", "--groups", "2", "--plot", str(tmp_path / "plot.svg")]
    results = run("grpo_vs_trl.py", *options, folder=tmp_path)["groups"]
    assert set(results) == {"2"} and "<svg" in (tmp_path / "plot.svg").read_text()
    for group, result in results.items():
        assert {*COMMON, "sampling_ratio", "images_encoded_per_step", "distinct_images_per_step"} <= set(result)
        assert result["images_encoded_per_step"] == result["distinct_images_per_step"] == 2
        assert result["trl"]["per_step"]["vision_images"]["median"] == 3 * 2 * int(group)
        assert result["floor_flops"] < result["matmul_flops_per_s"] * result["ours"]["per_step"]["step_s"]["median"]
        assert result["trl"]["trainable_parameters"] == result["ours"]["trainable_parameters"]


def test_sft_beside_trl(tmp_path: Path) -> None:
    options = ["--batch", "3", "--completion-min", "4", "--completion-max", "9"]
    result = run("sft_vs_trl.py", *options, folder=tmp_path)
    assert set(result) >= COMMON
    assert result["loss_difference"] <= 1e-5
    assert result["trl"]["trainable_parameters"] == result["ours"]["trainable_parameters"]
