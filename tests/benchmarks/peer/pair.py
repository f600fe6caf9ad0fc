"""Run both sides of a benchmark, each in processes of its own, and compare them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from peer.machine import machine, versions
from peer.meter import summary

HERE = Path(__file__).resolve().parents[1]
Side = dict[str, Any]


def pin(threads: int) -> None:
    """With one thread keep this process and its children on the last core that it may use."""
    if threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run_side(script: str, options: dict[str, Any]) -> Side:
    """The JSON that a side prints.

    Raises:
        RuntimeError: the side failed; with the end of what it wrote.
    """
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options["threads"])}
    command = [sys.executable, str(HERE / script), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    side: Side = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{script}: {[round(step['step_s'], 2) for step in side['steps']]} CPU s", file=sys.stderr, flush=True)
    return side


def run_rounds(scripts: dict[str, str], options: dict[str, dict[str, Any]], rounds: int) -> dict[str, Side]:
    """Both sides, one after the other, `rounds` times in turn; their steps are put together."""
    sides: dict[str, Side] = {}
    for _ in range(rounds):
        for name, script in scripts.items():
            side = run_side(script, options[name])
            if name in sides:
                sides[name]["steps"] += side["steps"]
                sides[name]["peak_over_start_mb"] = max(sides[name]["peak_over_start_mb"], side["peak_over_start_mb"])
            else:
                sides[name] = side
    for side in sides.values():
        side["per_step"] = summary(side["steps"])
    return sides


def ratio(sides: dict[str, Side], name: str, statistic: str = "median") -> float:
    """TRL's value over ours."""
    trl, ours = (sides[side]["per_step"][name][statistic] for side in ("trl", "ours"))
    return float(round(trl / ours, 3))


def compared(name: str, sides: dict[str, Side], threads: int) -> dict[str, Any]:
    """What the JSON of every pair holds: ratios in CPU seconds and in wall seconds, memory, machine, both sides."""
    memory = sides["ours"]["peak_over_start_mb"] / sides["trl"]["peak_over_start_mb"]
    return {
        "benchmark": name,
        "step_ratio": ratio(sides, "step_s"),
        "step_ratio_wall": ratio(sides, "step_wall_s"),
        "memory_ratio": round(memory, 3),
        "versions": versions(),
        "machine": machine(threads),
        **sides,
    }


def write_json(result: Any, target: Path | None) -> None:
    """Write the result to `target`, or print it."""
    text = json.dumps(result, indent=1)
    if target is None:
        print(text)
    else:
        target.write_text(text + "\n", encoding="utf-8")
