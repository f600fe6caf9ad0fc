"""Seconds, counts and memory of a training, with one snapshot for each optimizer step."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

import torch

from cogalign.training.hardware import reset_resident_peak, resident

Totals = dict[str, float]


class Meter:
    """Named running totals (CPU seconds or counts) with one snapshot for each optimizer step.

    Phases nest: the time of an inner phase is in the outer one too. Seconds are CPU seconds of the whole process,
    which equal wall seconds on a free core with one thread; wall seconds stand beside them (`step_s`, `step_wall_s`).
    """

    def __init__(self) -> None:
        self.total: Totals = defaultdict(float)
        self.steps: list[Totals] = []
        self._last: Totals = {}
        self._wall = self._cpu = 0.0

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the CPU seconds spent in the block to `name`_s, the wall seconds to `name`_wall_s."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.total[f"{name}_s"] += time.process_time() - cpu
            self.total[f"{name}_wall_s"] += time.perf_counter() - wall

    def wrap(
        self, owner: Any, attribute: str, name: str | Callable[[], str], count: Callable[..., None] | None = None
    ) -> None:
        """Replace `owner.attribute` by a timed version; `count(totals, *arguments)` may add counts."""
        inner = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if count is not None:
                count(self.total, *args, **kwargs)
            with self.time(name() if callable(name) else name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)

    def start(self) -> None:
        """Begin the first step."""
        self._last = dict(self.total)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end_step(self, also: Mapping[str, float] | None = None) -> None:
        """Close a step: keep what each total gained since the last call, and what else is known of the step."""
        gained = {name: value - self._last.get(name, 0.0) for name, value in self.total.items()}
        seconds = {"step_wall_s": time.perf_counter() - self._wall, "step_s": time.process_time() - self._cpu}
        self.steps.append({**seconds, **gained, **(also or {})})
        self.start()


def summary(steps: list[Totals]) -> dict[str, dict[str, float]]:
    """Median, minimum, maximum and mean of every total over the steps."""
    out = {}
    for name in sorted({name for step in steps for name in step}):
        values = [step.get(name, 0.0) for step in steps]
        stats = {"median": statistics.median(values), "min": min(values), "max": max(values), "mean": fmean(values)}
        out[name] = {key: round(value, 4) for key, value in stats.items()}
    return out


def count_vision(meter: Meter, visual: torch.nn.Module) -> None:
    """Count the vision tower's forward calls and images, and time it."""

    def count(total: Totals, hidden_states: Any, grid_thw: Any, **_: Any) -> None:
        total["vision_calls"] += 1
        total["vision_images"] += len(grid_thw)

    meter.wrap(visual, "forward", "vision", count)


def count_processor(meter: Meter, processor: Any) -> None:
    """Time the processor's calls and count the images it prepares (patches the class, for `__call__`)."""
    cls = type(processor)
    inner = cls.__call__

    def call(self: Any, images: Any = None, *args: Any, **kwargs: Any) -> Any:
        groups = images if images is not None else []
        meter.total["images_preprocessed"] += sum(len(g) if isinstance(g, list | tuple) else 1 for g in groups)
        with meter.time("processor"):
            return inner(self, images, *args, **kwargs)

    cls.__call__ = call


def reset_peak() -> None:
    """Forget the peak memory so far, so that the peak is that of training (Linux)."""
    if not reset_resident_peak():
        raise OSError("the peak of resident memory cannot be reset on this system")


def memory_mb() -> dict[str, float]:
    """Resident memory now, and at its peak since `reset_peak`, in MiB (Linux)."""
    found = resident()
    assert found is not None, "resident memory is read on Linux only"
    return {name: size / 2**20 for name, size in found.items()}
