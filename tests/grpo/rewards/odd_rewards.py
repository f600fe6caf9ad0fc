"""Rewards that misbehave, for the tests of the pool: a worker process imports them from here."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any


def good(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def sleeps_on_one(completions: Sequence[str], **_: Any) -> list[float]:
    if "guilty" in completions:
        time.sleep(3600)
    return good(completions)


def raises_on_one(completions: Sequence[str], **_: Any) -> list[float]:
    if "guilty" in completions:
        raise RuntimeError("cannot read this one")
    return good(completions)


def dies_on_one(completions: Sequence[str], **_: Any) -> list[float]:
    if "guilty" in completions:
        os._exit(7)
    return good(completions)


def leaves_quietly(completions: Sequence[str], **_: Any) -> list[float]:
    if "guilty" in completions:
        os._exit(0)
    return good(completions)


def returns_too_few(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions if text != "guilty"]


def returns_nonsense(completions: Sequence[str], **_: Any) -> list[Any]:
    return [{"guilty": math.inf, "text": "high", "none": None, "nan": math.nan}.get(t, len(t)) for t in completions]


def stuck_in_c(completions: Sequence[str], **_: Any) -> list[float]:
    """Holds the interpreter's lock for hours, so that no thread and no signal handler of Python runs."""
    sum(range(10**13))
    return good(completions)


def needs_the_batch(completions: Sequence[str], **_: Any) -> list[float]:
    assert len(completions) > 1
    return good(completions)


def dies_once(completions: Sequence[str], marker: Sequence[str], **_: Any) -> list[float]:
    assert len(completions) > 1
    if not os.path.exists(marker[0]):
        open(marker[0], "w").close()
        os._exit(9)
    return good(completions)


async def waits(completions: Sequence[str], **_: Any) -> list[float]:
    import asyncio

    await asyncio.sleep(0.01)
    return good(completions)


def wants_trls_arguments(
    completions: Sequence[str], trainer_state: Any, log_extra: Any, log_metric: Any, **_: Any
) -> list[float]:
    log_metric("share", 0.5)
    log_extra("text", completions)
    return [float(trainer_state is None)] * len(completions)


def imported_modules(completions: Sequence[str], **_: Any) -> list[float]:
    import sys

    return [float("torch" in sys.modules or "trl" in sys.modules)] * len(completions)


def process_id(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(os.getpid())] * len(completions)


def slow(completions: Sequence[str], **_: Any) -> list[float]:
    time.sleep(0.2)
    return good(completions)


class Counter:
    """A stateful reward."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        self.calls += 1
        return [float(self.calls)] * len(completions)


not_a_function = 3
