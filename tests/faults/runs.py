"""Starts commands with a fault or without, and tells how they ended."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 12, 2
GRPO_STEPS = 8
"""Two generations of four optimizer steps each."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    output: str
    out: Path
    stage_name: str = "sft"
    steps: int = 0
    """Optimizer steps in the log at that time."""

    def __post_init__(self) -> None:
        self.steps = max((int(row["step"]) for row in self.rows if row["step"]), default=0)

    @property
    def folder(self) -> Path:
        """Of the stage."""
        return self.out / self.stage_name

    @property
    def rows(self) -> list[dict[str, str]]:
        """The stage's metrics, as they are now."""
        return metrics(self.out, self.stage_name)

    @property
    def error(self) -> str:
        """The last line that tells of an error, else of a warning; of a run that could tell nothing, none."""
        for start in ("cogalign: ", "warning: "):
            if told := [line for line in self.output.splitlines() if line.startswith(start)]:
                return told[-1]
        return ""

    def line(self, part: str) -> str:
        """The first line that holds a text; empty if none does."""
        return next((line for line in self.output.splitlines() if part in line), "")

    @property
    def went_on_after(self) -> int:
        """The step after which it went on; 0 from the start."""
        found = re.search(r"going on after step (\d+)", self.output)
        return int(found[1]) if found else 0

    @property
    def stage(self) -> dict[str, Any]:
        """The content of `stage.json`."""
        content: dict[str, Any] = json.loads((self.folder / "stage.json").read_text(encoding="utf-8"))
        return content


@dataclass
class Runs:
    """Starts commands on one small recipe, in processes forked from one that has imported everything."""

    data: Path
    zygote: subprocess.Popen[str]
    environment: dict[str, str] = field(default_factory=dict)

    def recipe(self, out: Path, **changed: Any) -> Path:
        """The recipe, written beside the run folder; `sft__steps=3` changes a setting."""
        content: dict[str, Any] = {
            "name": "faults",
            "stages": ["sft"],
            "model": {"name": "tiny-random", "dtype": "float32"},
            "data": {"case_set": str(self.data), "cache_gb": 0.0},
            "sft": {
                "steps": STEPS, "batch_size": 2, "learning_rate": 0.005, "validate_every": 0, "workers": 0,
                "checkpoint_every": EVERY, "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            },
            "counterfactual": {
                "splits": ["train"], "interventions": ["removal", "control"], "fill": "surround_blur", "gallery": 0,
                "quality": {"enabled": False},
            },
            "grpo": {
                "steps": GRPO_STEPS, "prompts_per_step": 2, "num_generations": 3, "micro_batch": 2, "num_iterations": 2,
                "steps_per_generation": 2, "learning_rate": 0.002, "max_completion_length": 6,
                "checkpoint_every": EVERY, "mix": {"factual": 0.5, "removal": 0.25, "control": 0.25},
                "custom_rewards": [{"path": "tests.grpo.longer.longer_reward"}],
            },
            "evaluate": {
                "models": ["base"], "splits": ["test"], "batch_size": 1, "max_completion_length": 6, "bootstrap": 10,
            },
            "trainer": {"accelerator": "cpu", "precision": "32-true", "devices": 1, "timeout": 60.0},
            "tracking": {"wandb": False, "sample_every": 0},
        }  # fmt: skip
        for key, value in changed.items():
            part, _, name = key.partition("__")
            content[part][name] = value
        path = out.with_name(f"{out.name}.yaml")
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    def of(self, out: Path, fault: str | None = None, **changed: Any) -> Ended:
        """Run the SFT to its end, whatever that is."""
        return self.command("run", out, fault, **changed)

    def on_two(self, out: Path, fault: str | None = None, **changed: Any) -> Ended:
        """The same on two ranks; Lightning starts the second by running the script again."""
        return self.of(out, fault, trainer__devices=2, trainer__strategy="ddp", **changed)

    def command(self, name: str, out: Path, fault: str | None = None, *more: str, **changed: Any) -> Ended:
        """A command on the recipe, to its end."""
        argv = [name, str(self.recipe(out, **changed)), "--out", str(out), *more]
        return self.start(argv, out, fault, "sft" if name == "run" else name)

    def start(self, argv: list[str], out: Path, fault: str | None = None, stage: str = "sft") -> Ended:
        """Any command; it has ended when no process of it can write any more."""
        log = self.data.with_name("log")  # not beside the run: that disk may be full
        job = {"argv": argv, "fault": fault, "log": str(log), "environment": self.environment}
        assert self.zygote.stdin is not None and self.zygote.stdout is not None
        self.zygote.stdin.write(json.dumps(job) + "\n")
        self.zygote.stdin.flush()
        code = int(self.zygote.stdout.readline())
        return Ended(code, log.read_text(encoding="utf-8", errors="replace"), out, stage)


def environment() -> dict[str, str]:
    """One thread, and `tests` importable."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def metrics(out: Path, stage: str) -> list[dict[str, str]]:
    """The metrics of a stage, a row an optimizer step."""
    path = out / stage / "metrics.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def same(first: Path, second: Path, stage: str = "sft") -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    one, other = (load_file(out / stage / "adapter/adapter_model.safetensors") for out in (first, second))
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def weights(last: Ended, reference: Path) -> str:
    """The last cell of a row: whether a run that went on ended, and as the reference did."""
    assert last.code == 0, last.output[-3000:]
    return "yes, same weights" if same(last.out, reference, last.stage_name) else "yes, other weights"
