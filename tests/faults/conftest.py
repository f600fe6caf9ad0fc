"""Runs in which something goes wrong, and the table of what came of it (`docs/faults.md`)."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.faults.table import Row, check

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 10, 2
COMMAND = Path(__file__).with_name("command.py")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    output: str
    out: Path
    steps: int = 0
    """Optimizer steps in the log at that time."""

    def __post_init__(self) -> None:
        path = self.out / "sft/metrics.csv"
        if path.exists():
            with open(path, encoding="utf-8") as file:
                self.steps = max((int(row["step"]) for row in csv.DictReader(file) if row["step"]), default=0)

    @property
    def error(self) -> str:
        """The last line that tells of an error; of a run that could tell nothing, none."""
        told = [line for line in self.output.splitlines() if line.startswith(("cogalign: ", "warning: "))]
        return told[-1] if told else ""

    @property
    def going_on(self) -> str:
        """The line of a run that goes on."""
        return next((line for line in self.output.splitlines() if "going on after" in line), "")

    @property
    def went_on_after(self) -> int:
        """The step after which it went on; 0 from the start."""
        found = re.search(r"going on after step (\d+)", self.output)
        return int(found[1]) if found else 0

    @property
    def stage(self) -> dict[str, Any]:
        """The content of `stage.json`."""
        return json.loads((self.out / "sft/stage.json").read_text(encoding="utf-8"))


@dataclass
class Runs:
    """Starts the same SFT again and again; `of` a folder, with a fault or without."""

    data: Path
    zygote: subprocess.Popen[str]
    environment: dict[str, str] = field(default_factory=dict)

    def recipe(self, out: Path, **changed: Any) -> list[str]:
        """The command line; the recipe lies beside the run folder."""
        content = {
            "name": "faults",
            "stages": ["sft"],
            "model": {"name": "tiny-random", "dtype": "float32"},
            "data": {"case_set": str(self.data), "cache_gb": 0.0},
            "sft": {
                "steps": STEPS, "batch_size": 2, "learning_rate": 0.005, "validate_every": 0, "workers": 0,
                "checkpoint_every": EVERY, "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            },
            "trainer": {"accelerator": "cpu", "precision": "32-true", "devices": 1, "timeout": 60.0},
            "tracking": {"wandb": False, "sample_every": 0},
        }  # fmt: skip
        for key, value in changed.items():
            part, _, name = key.partition("__")
            content[part][name] = value  # type: ignore[index]
        path = out.with_name(f"{out.name}.yaml")
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return ["run", str(path), "--out", str(out)]

    def of(self, out: Path, fault: str | None = None, **changed: Any) -> Ended:
        """Run to the end, whatever that is."""
        log = out.with_name(f"{out.name}.log")
        job = {"argv": self.recipe(out, **changed), "fault": fault, "log": str(log), "environment": self.environment}
        assert self.zygote.stdin is not None and self.zygote.stdout is not None
        self.zygote.stdin.write(json.dumps(job) + "\n")
        self.zygote.stdin.flush()
        self.zygote.stdout.readline()  # the process
        return Ended(int(self.zygote.stdout.readline()), log.read_text(errors="replace"), out)

    def on_two(self, out: Path, fault: str | None = None, **changed: Any) -> Ended:
        """The same on two ranks, which Lightning starts by running the script again."""
        argv = self.recipe(out, trainer__devices=2, trainer__strategy="ddp", **changed)
        done = subprocess.run(
            [sys.executable, str(COMMAND), fault or "-", *argv],
            env=environment() | self.environment, stderr=subprocess.PIPE, text=True, timeout=280, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stderr, out)


def environment() -> dict[str, str]:
    """One thread, and `tests` importable."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


@pytest.fixture(scope="session")
def runs(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The starter of runs, with cases of its own: faults damage them for a while."""
    data = shutil.copytree(phantom_set, tmp_path_factory.mktemp("faults") / "data")
    zygote = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert zygote.stdin is not None and zygote.stdout is not None
    assert zygote.stdout.readline() == "ready\n"
    yield Runs(data, zygote)
    zygote.stdin.close()
    zygote.wait(30)


@pytest.fixture(scope="session")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    ended = runs.of(tmp_path_factory.mktemp("faults") / "whole")
    assert ended.code == 0, ended.output[-3000:]
    return ended.out


@pytest.fixture(scope="session")
def whole_on_two(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    ended = runs.on_two(tmp_path_factory.mktemp("faults") / "two")
    assert ended.code == 0, ended.output[-3000:]
    return ended.out


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    one, other = (load_file(out / "sft/adapter/adapter_model.safetensors") for out in (first, second))
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def row(runs: Runs) -> Callable[..., None]:
    """Checks a row of the table, or writes it."""

    def tell(fault: str, detected: str, first: Ended, second: Ended | None, reference: Path | None) -> None:
        lost = "-" if second is None else str(first.steps - second.went_on_after)
        resumed = "-"
        if second is not None and reference is not None:
            assert second.code == 0, second.output[-3000:]
            resumed = "yes, same weights" if same(second.out, reference) else "yes, other weights"
        message = first.error or (second.going_on if second is not None else "")
        check(Row(fault, detected, message, lost, resumed), {first.out: "RUN", runs.data: "DATA"})

    return tell
