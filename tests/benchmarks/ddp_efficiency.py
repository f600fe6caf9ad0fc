"""Two ranks against one on the same two cores: `python tests/benchmarks/ddp_efficiency.py [--json FILE]`.

The same SFT and GRPO, by the command line, with one thread a rank and the same samples an optimizer step: one rank does
all of them, two ranks half of them each. Efficiency is t1 / (2 t2): 1 if two ranks take half the time. Seconds of a step
lie between the rows that wandb writes, so all that a step does is in them. Rounds alternate; medians are given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from peer.machine import machine, versions
from peer.pair import write_json

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("sft", "grpo")
RANKS = (1, 2)


def recipe_of(options: argparse.Namespace) -> dict[str, Any]:
    """A recipe whose steps only train: no validation, no samples, no checkpoint but at the end."""
    half = options.batch // 2
    total = options.steps + options.warmup
    return {
        "name": "ddp", "seed": 1, "stages": list(STAGES), "model": {"name": "tiny"},
        "data": {"phantom": {"train": 120, "validation": 2, "test": 2, "size": options.side, "seed": 3}},
        "sft": {"steps": total, "batch_size": half, "global_batch": options.batch, "lora": {"r": 8, "alpha": 16},
                "validate_every": 0, "checkpoint_every": total, "workers": 0},
        "grpo": {"steps": total, "prompts_per_step": options.prompts, "num_generations": 8,
                 "micro_batch": options.prompts // 2, "max_completion_length": options.completion_tokens,
                 "mix": {"factual": 1, "removal": 0, "control": 0, "transplant": 0}, "checkpoint_every": total},
        "trainer": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
        "tracking": {"wandb": True, "sample_every": 0},
    }  # fmt: skip


def train(options: argparse.Namespace, ranks: int, cores: set[int]) -> dict[str, list[float]]:
    """Run both stages in a folder of their own: stage → seconds of each measured step.

    Raises:
        RuntimeError: the run failed; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ddp.yaml").write_text(yaml.safe_dump(recipe_of(options)))
        command = [sys.executable, "-m", "cogalign", "run", str(folder / "ddp.yaml"), "--out", str(folder / "run"),
                   "--trainer.devices", str(ranks)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
                              preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{ranks} rank(s): exit code {done.returncode}\n{done.stderr[-3000:]}")
        found = {}
        for stage in STAGES:
            times = row_times(folder / "run", stage)
            if len(times) != options.steps + options.warmup:
                raise RuntimeError(f"{stage}: found {len(times)} rows, wanted {options.steps + options.warmup}")
            steps = [later - earlier for earlier, later in pairwise(times)]
            found[stage] = steps[options.warmup - 1 :]
        return found


def row_times(run: Path, stage: str) -> list[float]:
    """When each row of a stage was logged, in seconds."""
    sys.path.insert(0, str(ROOT))
    from tests.wandb_files import history_rows

    run_id = (run / stage / "wandb_id.txt").read_text().strip()
    return [float(row["_timestamp"]) for row in history_rows(run, run_id)]


def measure(options: argparse.Namespace, cores: set[int]) -> dict[str, dict[int, list[float]]]:
    """Stage → ranks → seconds of each step, over all rounds."""
    seconds: dict[str, dict[int, list[float]]] = {stage: {ranks: [] for ranks in RANKS} for stage in STAGES}
    for number in range(options.rounds):
        for ranks in RANKS if number % 2 == 0 else reversed(RANKS):
            for stage, steps in train(options, ranks, cores).items():
                seconds[stage][ranks] += steps
                shown = f"{ranks} rank(s), {stage}: {statistics.median(steps):.3f} s a step"
                print(shown, file=sys.stderr, flush=True)
    return seconds


def table(result: dict[str, Any]) -> str:
    """Medians and efficiency, in Markdown."""
    lines = ["| stage | 1 rank, s a step | 2 ranks, s a step | efficiency |", "| --- | --- | --- | --- |"]
    for stage, row in result["stages"].items():
        one, two = (row["median_seconds"][str(ranks)] for ranks in RANKS)
        lines.append(f"| {stage} | {one:.3f} | {two:.3f} | {row['efficiency']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="measured optimizer steps of a stage and round")
    parser.add_argument("--warmup", type=int, default=2, help="optimizer steps before the measured ones, at least 1")
    parser.add_argument("--rounds", type=int, default=2, help="times that both are run, in turn")
    parser.add_argument("--batch", type=int, default=32, help="SFT: samples of an optimizer step, an even number")
    parser.add_argument("--prompts", type=int, default=8, help="GRPO: prompts of an optimizer step, an even number")
    parser.add_argument("--completion-tokens", type=int, default=32, help="GRPO: tokens of the longest completion")
    parser.add_argument("--side", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--json", type=Path, help="file of the result; it is printed without")
    options = parser.parse_args()
    if options.warmup < 1 or options.batch % 2 or options.prompts % 2:
        parser.error("--warmup must be at least 1, --batch and --prompts even")
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        parser.error(f"two cores are needed, this process may use {len(cores)}")
    stages = {}
    for stage, seconds in measure(options, cores).items():
        medians = {str(ranks): statistics.median(steps) for ranks, steps in seconds.items()}
        stages[stage] = {
            "efficiency": round(medians["1"] / (2 * medians["2"]), 3),
            "median_seconds": medians,
            "seconds": {str(ranks): steps for ranks, steps in seconds.items()},
        }
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    result = {"benchmark": "ddp_efficiency", "settings": settings, "stages": stages,
              "versions": versions(), "machine": machine(1)}  # fmt: skip
    write_json(result, options.json)
    print(table(result))


if __name__ == "__main__":
    main()
