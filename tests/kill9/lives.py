"""A command that is killed at chosen moments of its life, and what it leaves behind."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Marker = Literal["start", "step", "saving", "adapter", "renamed"]
MARK = "COGALIGN_KILL9"
"""Environment variable by which the processes of a life are found, whatever they have become."""
POLL = {"step": 0.02}
"""Seconds between two looks; 0.001 for what is there for a moment only."""
PATIENCE = 240.0
"""Seconds after which a life that does not come to its moment is an error."""


@dataclass(frozen=True)
class Moment:
    """When a life ends: some seconds after something was seen.

    Attributes:
        marker: what is waited for: the process has been started; `steps` more rows of metrics than at its start; the
            file of a checkpoint is being written; so is the adapter; the adapter has its name.
        steps: see `marker`.
        delay: seconds after it.
        group: whether the whole process group is killed, or the main process alone, whose children must end by themselves.
    """

    marker: Marker
    steps: int
    delay: float
    group: bool


@dataclass
class Life:
    """What was seen of a life."""

    moment: Moment
    seconds: float
    resumed: int | None
    """Optimizer step after which it went on; None if it did not come so far, or began anew."""
    last_row: int
    """Last step in metrics.csv when it ended."""
    orphans: float
    """Seconds until the last of its processes was gone."""


def schedule(seed: int, startup: float, step: float) -> list[Moment]:
    """Twenty moments: imports and loading, steps, writing of checkpoints, and the end of the stage, which comes last.

    Args:
        seed: of the random numbers.
        startup: seconds from the start to the first step, as measured.
        step: seconds of an optimizer step, as measured.
    """
    draw = random.Random(seed)
    early = [Moment("start", 0, draw.uniform(0.02, 1.0) * startup, True) for _ in range(5)]
    steps = [Moment("step", draw.randint(1, 3), draw.uniform(0.0, 1.5) * step, True) for _ in range(8)]
    saving = [Moment("saving", 0, draw.uniform(0.0, 0.01), True) for _ in range(5)]
    moments = [*early, *steps, *saving]
    draw.shuffle(moments)
    moments += [Moment("adapter", 0, draw.uniform(0.0, 0.01), True), Moment("renamed", 0, 0.0, True)]
    return [Moment(m.marker, m.steps, m.delay, group=number % 3 != 2) for number, m in enumerate(moments)]


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    """The real command."""
    return [sys.executable, "-m", "cogalign", "grpo", str(recipe), "--out", str(out), *more]


def started(arguments: list[str], log: Path, mark: str) -> subprocess.Popen[bytes]:
    """Start a command as the leader of its own process group; what it says goes to `log`."""
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with log.open("wb") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment, start_new_session=True)


def lived(arguments: list[str], out: Path, log: Path, moment: Moment) -> Life:
    """Let a command live until its moment, and kill it with SIGKILL.

    Raises:
        AssertionError: it ended by itself before, or never came so far.
    """
    mark, began, before, now = f"{log.name}-{os.getpid()}", time.monotonic(), last_step(out), time.time()
    process = started(arguments, log, mark)
    try:
        while not _seen(moment, out, before, now):
            assert process.poll() is None, f"it ended before {moment}: {log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() - began < PATIENCE, f"no {moment} within {PATIENCE} s"
            time.sleep(POLL.get(moment.marker, 0.001))
        time.sleep(moment.delay)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-process.pid if moment.group else process.pid, signal.SIGKILL)
        process.wait()
    killed = time.monotonic()
    while left := processes(mark):
        assert time.monotonic() - killed < 60, f"processes {left} outlived {moment}"
        time.sleep(0.05)
    return Life(moment, killed - began, going_on(log), last_step(out), time.monotonic() - killed)


def _seen(moment: Moment, out: Path, before: int, since: float) -> bool:
    stage = out / "grpo"
    if moment.marker == "start":
        return True
    if moment.marker == "step":
        return last_step(out) >= before + moment.steps
    if moment.marker == "saving":
        return any(name.startswith(".step-") for name in names(stage / "checkpoints", since))
    return (".adapter.partial" if moment.marker == "adapter" else "adapter") in names(stage, since)


def names(folder: Path, since: float) -> list[str]:
    """What is in a folder, which may not be there, and was changed after a time: an earlier life leaves things, too."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime >= since:
                    found.append(entry.name)
    return found


def going_on(log: Path) -> int | None:
    """The optimizer step after which a life went on, by its own words."""
    found = re.search(r"grpo: going on after step (\d+)", log.read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else None


def rows(out: Path) -> list[dict[str, str]]:
    """Metrics of the stage; the last row may be cut off."""
    path = out / "grpo/metrics.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def last_step(out: Path) -> int:
    """The last step that is logged."""
    found = [row["step"] for row in rows(out)]
    return int(found[-1]) if found and (found[-1] or "").isdigit() else 0


def processes(mark: str) -> list[int]:
    """Processes that live and have our mark in their environment, zombies aside."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
