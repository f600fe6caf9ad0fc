"""GRPO as a heterogeneous job with a real vLLM server in its second part, submitted by the command line."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.vllm, pytest.mark.timeout(1800)]

RECIPE = {
    "stages": ["sft", "grpo"],
    "model": {"name": "tiny-random", "dtype": "float32"},
    "data": {"phantom": {"train": 24, "validation": 4, "test": 8, "size": 64}},
    "sft": {"steps": 2, "batch_size": 4, "lora": {"r": 4}, "validate_every": 0},
    "grpo": {"steps": 3, "prompts_per_step": 2, "num_generations": 4, "micro_batch": 2, "max_completion_length": 16,
             "learning_rate": 0.01, "mix": {"factual": 1.0, "removal": 0.0}, "sampler": "vllm"},
    "trainer": {"accelerator": "cpu", "precision": "32-true"},
    "tracking": {"wandb": False},
}  # fmt: skip
PROFILE = {"nodes": 1, "time": "00:30:00", "rollout_server": {"gpus": 0, "cpus_per_task": 1, "start_timeout": 900}}


def test_grpo_samples_from_the_server_of_its_job(cluster: Any, tmp_path: Path) -> None:
    python = Path(os.environ.get("COGALIGN_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"no vLLM: {python} is not there; make setup-vllm, or set COGALIGN_VLLM_PYTHON")
    run, recipe, profile = tmp_path / "run", tmp_path / "recipe.yaml", tmp_path / "profile.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    profile.write_text(yaml.safe_dump(PROFILE))
    cluster.run("cogalign", "submit", recipe, "--cluster", profile, "--out", run, "--grpo.vllm.python", python, cwd=ROOT)  # fmt: skip
    jobs = json.loads((run / "slurm" / "jobs.json").read_text())["jobs"]
    cluster.wait(jobs["grpo"], seconds=1500)
    with open(run / "grpo" / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert (
        max(float(row["sampling/sampling_logp_difference/max"]) for row in rows) < 1e-3
    )  # the newest adapter each time
    log = (run / "slurm" / "logs" / f"grpo-{jobs['grpo']}-server.log").read_text()
    assert len(re.findall("Loaded new LoRA adapter", log)) >= 3
    assert (run / "grpo" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run / "grpo" / "vllm.log").exists()  # none was started by the training itself
