"""From what was counted in each optimizer step to the numbers of a benchmark: pure functions, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cogalign.grpo.flops import GrpoStep, TextShape, VisionShape, grpo_floor

Row = dict[str, float]
Spread = dict[str, float]

PHASES = ("sampling", "rewards", "scoring", "forward", "backward", "optimizer")
"""Phases of an optimizer step; `other_s` is what they leave of it."""
PARTS_OF_A_GENERATION = ("vision", "decode", "reference")
"""Parts of the floor that a generation pays once, however often its completions are used."""


@dataclass(frozen=True)
class Cycle:
    """How optimizer steps belong to generations: `slices` steps' worth of prompts, each used `iterations` times."""

    slices: int
    iterations: int

    @property
    def steps(self) -> int:
        """Optimizer steps of a generation."""
        return self.slices * self.iterations

    def generations(self, steps: int) -> int:
        """Generations that hold `steps` optimizer steps, at least two: the first is a warm-up."""
        return max(2, -(-steps // self.steps))


def seconds_of(metrics: Mapping[str, float]) -> Row:
    """Seconds of one optimizer step by phase, from what the module logs (`step_time`, `time/<phase>`)."""
    found = {name.removeprefix("time/"): value for name, value in metrics.items() if name.startswith("time/")}
    phases = {f"{phase}_s": found.pop(phase, 0.0) for phase in PHASES}
    phases |= {f"{phase}_s": value for phase, value in found.items()}
    return {"step_s": metrics["step_time"], **phases, "other_s": max(0.0, metrics["step_time"] - sum(phases.values()))}


def generation_rows(rows: Sequence[Row], steps: int) -> list[Row]:
    """The rows of every `steps` optimizer steps added up; a last group that is not whole is left out."""
    groups = [rows[first : first + steps] for first in range(0, len(rows) - steps + 1, steps)]
    return [{name: sum(row.get(name, 0.0) for row in group) for name in group[0]} for group in groups]


def per_step(row: Row, steps: int) -> Row:
    """The numbers of one optimizer step, from those of its generation of `steps` steps.

    Args:
        row: sums over the generation: seconds by phase, `completions`, `completion_tokens`, `truncated` and the counts
            of images.
        steps: optimizer steps of the generation.
    """
    kept = {name: value for name, value in row.items() if name.endswith("_s")}
    counts = ("images_encoded", "distinct_images", "completions", "completion_tokens")
    kept |= {name: row[name] for name in counts if name in row}
    return {
        **{name: value / steps for name, value in kept.items()},
        "completion_tokens_per_s": row["completion_tokens"] / row["step_s"],
        "sampled_tokens_per_s": row["completion_tokens"] / row["sampling_s"],
        "mean_completion_length": row["completion_tokens"] / row["completions"],
        "truncated_share": row["truncated"] / row["completions"],
    }


def floor_of(text: TextShape, vision: VisionShape, row: Row, cycle: Cycle, reference: bool) -> dict[str, float]:
    """Operations that one optimizer step cannot avoid, by phase, and their `total`.

    Mean lengths stand for all: attention grows faster than the length, so the floor can only be too low. Groups that
    were sampled and replaced are not in it.

    Args:
        text: sizes of the language model.
        vision: sizes of the vision encoder.
        row: sums over the generation: `mix_prompts` (distinct), `mix_images` (distinct), `mix_completions`,
            `mix_tokens`, and `prompt_rows`, `prompt_tokens`, `images`, `patches` for the means.
        cycle: of the generation.
        reference: whether a reference scores.
    """
    prompts = int(row["mix_prompts"])
    sizes = GrpoStep(
        prompts=prompts,
        images=int(row["mix_images"]),
        patches=int(row["patches"] // row["images"]),
        prompt_tokens=row["prompt_tokens"] / row["prompt_rows"],
        group=int(row["mix_completions"]) // prompts,
        completion_tokens=row["mix_tokens"] / row["mix_completions"],
        reference=reference,
    )
    once = grpo_floor(text, vision, sizes)
    once.pop("total")
    times = {name: 1 if name in PARTS_OF_A_GENERATION else cycle.iterations for name in once}
    floor = {name: value * times[name] / cycle.steps for name, value in once.items()}
    return {**floor, "total": sum(floor.values())}


def spread(rows: Sequence[Row]) -> dict[str, Spread]:
    """Median, minimum and maximum of every number over the rows."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        found[name] = {"median": median(values), "min": min(values), "max": max(values)}
    return found


# -- for the terminal -----------------------------------------------------------------------------

LABELS = {
    "step_s": "step, s",
    "other_s": "  the rest, s",
    "completion_tokens_per_s": "completion tokens a second",
    "sampled_tokens_per_s": "  a second of sampling",
    "completion_tokens": "completion tokens a step",
    "completions": "completions a step",
    "mean_completion_length": "mean completion length",
    "truncated_share": "  share cut off at the limit",
    "images_encoded": "images encoded a step",
    "distinct_images": "distinct images a step",
    "floor_s": "floor, s",
    "step_over_floor": "step over floor",
    "mfu": "model FLOP utilisation",
}


def table(result: Mapping[str, Any]) -> Any:
    """The numbers as a rich table."""
    from rich.table import Table

    steps = result["steps"]
    title = f"{result['recipe']}: {steps['measured']} optimizer steps after {steps['warmup']} for warming up"
    made = Table("a step", "median", "min", "max", title=title)
    for column in made.columns[1:]:
        column.justify = "right"
    for name, values in result["per_step"].items():
        label = LABELS.get(name) or f"  {name.removesuffix('_s')}, s"
        made.add_row(label, *(number(values[kind]) for kind in ("median", "min", "max")))
    return made


def lines(result: Mapping[str, Any]) -> list[str]:
    """What belongs under the table."""
    machine, memory, floor = result["machine"], result["peak_memory"], result["floor"]
    peak = "not known on this system" if memory["bytes"] is None else f"{memory['bytes'] / 2**20:,.0f} MiB"
    rate = f"{machine['matmul_flops_per_s'] / 1e9:,.0f} GFLOP/s ({machine['matmul_dtype']}, measured here)"
    told = [
        f"machine: {machine['name']}, {machine['threads']} threads; matrix products: {rate}",
        f"peak memory: {peak} ({memory['kind']})",
        f"model: {result['model']['weights']}",
        f"cases: {result['data']['cases']}; mix: {result['data']['mix']}",
    ]
    if floor is not None:
        told.append(f"floor: {floor['flops']['median'] / 1e9:,.1f} GFLOP a step that cannot be avoided")
        told.append(f"model FLOP utilisation: {result['mfu_of']}")
    return [*told, *(f"note: {note}" for note in result["notes"])]


def number(value: float | None) -> str:
    """A number with three significant digits, whole from 1000 on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
