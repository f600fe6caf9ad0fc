"""A small copy of the quickstart, and how the tests of this folder submit it, signal it and look at what it left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cogalign.cluster.jobs_file import read_jobs

if TYPE_CHECKING:
    from tests.slurm.conftest import Cluster

ROOT = Path(__file__).resolve().parents[2]
RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "stages": ["sft", "counterfactual", "grpo", "evaluate"],
    "model": {"name": "tiny"},
    "data": {"phantom": {"train": 80, "validation": 4, "test": 8, "size": 64, "seed": 3}},
    "sft": {
        "steps": 24, "batch_size": 4, "global_batch": 16, "learning_rate": 2e-3, "lora": {"r": 4, "alpha": 8},
        "max_length": 256, "validate_every": 12, "validation_limit": 4, "checkpoint_every": 4, "workers": 0,
    },
    "counterfactual": {
        "splits": ["train"], "interventions": ["removal", "control"], "fill": "texture", "per_case": 3, "workers": 0,
        "gallery": 2, "quality": {"enabled": False},
    },
    "grpo": {
        "steps": 12, "prompts_per_step": 4, "num_generations": 4, "micro_batch": 2, "steps_per_generation": 2,
        "num_iterations": 2, "learning_rate": 2e-4, "max_completion_length": 16, "length_target": 16,
        "mix": {"factual": 1, "removal": 1, "control": 1, "transplant": 0}, "checkpoint_every": 1,
    },
    "evaluate": {
        "models": ["sft", "aligned"], "limit": 8, "batch_size": 8, "max_completion_length": 16, "bootstrap": 20,
    },
    "trainer": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
    "tracking": {"wandb": True, "sample_every": 0},
}  # fmt: skip
CYCLE = 4
"""Optimizer steps of a batch of completions: steps_per_generation x num_iterations."""
SECONDS = 900
"""Patience with one job and those before it, also where two cores do a lot besides."""


def write_recipe(folder: Path) -> Path:
    """The recipe as a file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


def write_profile(folder: Path) -> Path:
    """`slurm/mini.yaml` with two shards, both at once."""
    content = yaml.safe_load((ROOT / "slurm" / "mini.yaml").read_text())
    content["counterfactual"] = {"shards": 2, "max_running": 2}
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def submit(cluster: Cluster, folder: Path, run: Path, *options: str) -> dict[str, str]:
    """Submit the recipe by the command line: job → its number."""
    cluster.run("cogalign", "submit", write_recipe(folder), "--cluster", write_profile(folder), "--out", run, *options)
    return read_jobs(run)


def metrics(run: Path) -> dict[str, float]:
    """All numbers of `summary.json` that a result is, by their path; no times and rates."""
    found: dict[str, float] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else name)
        elif isinstance(value, int | float) and not re.search(r"second|time|per_s|memory", path):
            found[path] = float(value)

    summary = json.loads((run / "summary.json").read_text())
    walk({stage: content["metrics"] for stage, content in summary["stages"].items()}, "")
    return found


def weights(run: Path, stage: str) -> bytes:
    """The adapter that a stage has written."""
    return (run / stage / "adapter" / "adapter_model.safetensors").read_bytes()


def pictures(run: Path) -> dict[str, bytes]:
    """The counterfactual images, by their path in the run."""
    folder = run / "counterfactual"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("images/**/*.png")}
    assert found, f"no pictures in {folder}"
    return found


def steps_saved(run: Path, stage: str) -> int:
    """The newest step of which a checkpoint lies in the run; 0 if there is none."""
    names = [path.name for path in (run / stage / "checkpoints").glob("step-*")]
    return max((int(re.sub(r"\D", "", name)) for name in names), default=0)


def until(cluster: Cluster, job: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition while a job waits or runs; the job's log is shown if it ends before or the time is over."""
    end = time.monotonic() + SECONDS
    while not condition():
        for _ in range(20):  # a look at a file costs less than a question to SLURM
            time.sleep(0.02)
            if condition():
                return
        found = cluster.tasks(job)
        states = {task["JobState"] for task in found}
        waits = states & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}
        assert waits and time.monotonic() < end, f"{states}\n{cluster.log(found)}"
