"""A few optimizer steps of a recipe's GRPO stage, to be measured: nothing is kept, and no run folder is touched.

It needs no finished stage: what a run has made is used, what it has not made is replaced for the occasion, and the
result says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader

from cogalign.grpo.benchmark_inputs import find_cases, on_one_device, open_model
from cogalign.grpo.benchmark_recorder import Recorder
from cogalign.grpo.benchmark_summary import Cycle, Row, floor_of, generation_rows, per_step, spread
from cogalign.grpo.flops import shapes
from cogalign.grpo.rewards.build import build_rewards
from cogalign.grpo.rewards.pool import RewardPool
from cogalign.grpo.stage import build_module, open_rollouts
from cogalign.models.adapt import POLICY
from cogalign.models.load import LoadedModel, parameter_counts
from cogalign.recipe import Recipe
from cogalign.training.callbacks import Progress
from cogalign.training.context import StageContext
from cogalign.training.hardware import PeakMemory, machine, matmul_rate, peak_rate
from cogalign.training.seeding import derive_seed, seed_everything
from cogalign.training.stage_file import now, versions
from cogalign.training.trainer import build_trainer, resolve_precision

COUNTED = ("qwen3_vl",)
"""Model types whose operations `cogalign.grpo.flops` counts."""


def run_benchmark(recipe: Recipe, steps: int = 5) -> dict[str, Any]:
    """Measure optimizer steps of a recipe's GRPO stage on one device.

    Args:
        recipe: the resolved recipe; its run folder is only read.
        steps: optimizer steps, rounded up to whole generations; the first generation is a warm-up.

    Returns:
        Plain values: `per_step` (median, minimum and maximum of seconds by phase, tokens, images, floor),
        `peak_memory`, `floor`, `mfu` and what was measured on what.

    Raises:
        ValueError: fewer than two steps, or something is wrong with the recipe.
        FileNotFoundError: the model, the case set or the data sets are not there.
    """
    if steps < 2:
        raise ValueError(f"--steps: found {steps}, wanted at least 2: the first one is a warm-up and left out")
    rewards = build_rewards(recipe.grpo)
    with TemporaryDirectory(prefix="cogalign-benchmark-") as folder, ExitStack() as stack:
        settings = recipe.grpo
        pool = stack.enter_context(RewardPool(rewards, settings.reward_workers, settings.reward_timeout))
        return _measured(recipe, steps, Path(folder), pool, stack)


def _measured(recipe: Recipe, steps: int, work: Path, pool: RewardPool, stack: ExitStack) -> dict[str, Any]:
    cycle = Cycle(recipe.grpo.steps_per_generation, recipe.grpo.num_iterations)
    total = cycle.generations(steps) * cycle.steps
    alone, notes = on_one_device(recipe)
    found = find_cases(alone, total, work)
    seed_everything(derive_seed(recipe.seed, "grpo"))
    loaded, weights = open_model(StageContext(alone, alone.run_dir, "grpo"))
    counts = parameter_counts(loaded.model)
    scratch = StageContext(found.recipe, work, "grpo")
    scratch.folder.mkdir()
    rollouts = open_rollouts(scratch, loaded, stack)
    if rollouts is not None:
        notes.append("the server encodes images and samples by itself; that is not in images encoded")
    module = build_module(found.recipe, loaded, found.cases, pool, rollouts=rollouts)
    recorder = Recorder(module)
    trainer = build_trainer(
        found.recipe, folder=scratch.folder, max_steps=total, callbacks=[Progress("benchmark", total), recorder]
    )
    memory = PeakMemory(trainer.strategy.root_device)
    loader: DataLoader[Any] = DataLoader(range(total), batch_size=None)  # type: ignore[arg-type]
    with recorder.counting():
        trainer.fit(module, loader)
    return {
        "benchmark": "grpo",
        "recipe": recipe.name,
        "date": now(),
        "versions": versions(),
        "settings": {name: asdict(getattr(recipe, name)) for name in ("model", "sft", "grpo", "trainer")},
        "model": {"weights": weights, **counts},
        "data": {"cases": found.where, "mix": found.mix},
        "steps": {"measured": total - cycle.steps, "warmup": cycle.steps, "per_generation": cycle.steps},
        "peak_memory": {"kind": memory.kind, "bytes": memory.read()},
        **numbers(recipe, loaded, recorder, cycle, trainer.strategy.root_device),
        "notes": [*notes, *found.notes, *recorder.notes],
    }


def numbers(
    recipe: Recipe, loaded: LoadedModel, recorder: Recorder, cycle: Cycle, device: torch.device
) -> dict[str, Any]:
    """The measured numbers beside what this machine could do."""
    generations = generation_rows(recorder.rows, cycle.steps)[1:]
    rows = [per_step(row, cycle.steps) for row in generations]
    dtype = compute_dtype(recipe, loaded)
    host = machine(device)
    rate = matmul_rate(device, dtype)
    peak = peak_rate(host["name"]) if device.type == "cuda" else None
    host |= {"matmul_flops_per_s": rate, "matmul_dtype": str(dtype).removeprefix("torch."), "peak_flops_per_s": peak}
    floors = _floors(loaded, generations, cycle, recipe.grpo.beta > 0)
    against = rate if device.type == "cpu" else peak
    for row, floor in zip(rows, floors, strict=False):
        row["floor_s"] = floor["total"] / rate
        row["step_over_floor"] = row["step_s"] / row["floor_s"]
        if against is not None:
            row["mfu"] = floor["total"] / row["step_s"] / against
    found: dict[str, Any] = spread(rows)
    of = "unavoidable operations over the measured rate of matrix products of this machine"
    if device.type == "cuda":
        of = f"unavoidable operations over the dense bfloat16 peak of {host['name']}"
        of = of if peak is not None else f"not known: no peak is listed for {host['name']}"
    missing = ("images_encoded", "floor_s", "step_over_floor", "mfu")
    return {
        "machine": {**host, "precision": resolve_precision(recipe.trainer)},
        "per_step": found | {name: dict.fromkeys(("median", "min", "max")) for name in missing if name not in found},
        "mfu": found["mfu"]["median"] if "mfu" in found else None,
        "mfu_of": of if floors else "not known: the operations of this model family are not counted",
        "floor": _floor_result(floors, rate, found) if floors else None,
    }


def _floors(loaded: LoadedModel, generations: Sequence[Row], cycle: Cycle, reference: bool) -> list[dict[str, float]]:
    """The floor of a step of each generation; none where the family's operations are not counted."""
    config = loaded.core.config
    if config.model_type not in COUNTED or not all(row["images"] for row in generations):
        return []
    adapter = getattr(loaded.model, "peft_config", {}).get(POLICY)
    text, vision = shapes(config, adapter.r if adapter is not None else 0)
    return [floor_of(text, vision, row, cycle, reference) for row in generations]


def _floor_result(floors: Sequence[dict[str, float]], rate: float, found: dict[str, Any]) -> dict[str, Any]:
    flops = spread(floors)
    total = flops.pop("total")
    return {
        "flops": total,
        "flops_by_phase": {name: values["median"] for name, values in flops.items()},
        "seconds": total["median"] / rate,
        "step_over_floor": found["step_over_floor"]["median"],
    }


def compute_dtype(recipe: Recipe, loaded: LoadedModel) -> torch.dtype:
    """The type in which the step multiplies."""
    if resolve_precision(recipe.trainer).startswith("bf16"):
        return torch.bfloat16
    found: torch.dtype = loaded.core.dtype
    return found
