"""What runs in a worker process of `RewardPool`: one call of one reward. Light: every worker imports it at start."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

GRACE = 0.5
"""Seconds after its limit when a call ends its own process, should nobody else have done so."""
_MESSAGE = 300

_loaded: dict[bytes, Callable[..., Any]] = {}


class Judged(NamedTuple):
    """What came of one call; plain values only, so that it can always be sent back."""

    values: list[float | None] | None
    """One a completion; None if the call failed as a whole."""
    seconds: float
    faults: list[tuple[int | None, str]]
    """Index of the completion (None: all) and what was wrong."""


def start() -> None:
    """Prepare a worker: signals are the main process's business, and without a main process there is no worker."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):  # a preempted job signals all its processes
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def judge(reward: bytes, batch: bytes, n: int, limit: float) -> Judged:
    """Call a reward and check what it returns.

    Args:
        reward: The function, as `ForkingPickler` writes it; kept between calls, so that a stateful one keeps its state.
        batch: Its keyword arguments.
        n: Number of completions.
        limit: Seconds after which (and `GRACE`) this process ends itself, whatever the reward is doing.
    """
    started = time.perf_counter()
    try:
        with _alarm(limit + GRACE):
            if reward not in _loaded:
                _loaded[reward] = ForkingPickler.loads(reward)
            values, faults = checked(_called(_loaded[reward], ForkingPickler.loads(batch)), n)
    except BaseException as error:
        return Judged(None, time.perf_counter() - started, [(None, described(error))])
    return Judged(values, time.perf_counter() - started, faults)


def checked(returned: Any, n: int) -> tuple[list[float | None] | None, list[tuple[int | None, str]]]:
    """The values as plain numbers, and what is wrong with them; NaN is None, as in TRL.

    A wrong number of values is no result at all.
    """
    if isinstance(returned, str | bytes | dict):
        return None, [(None, f"returned {type(returned).__name__}, wanted a list of {n} numbers")]
    found = list(returned)
    if len(found) != n:
        return None, [(None, f"returned {len(found)} values, wanted {n}, one a completion")]
    values: list[float | None] = []
    faults: list[tuple[int | None, str]] = []
    for index, value in enumerate(found):
        number = _number(value)
        if number is None or math.isinf(number):
            faults.append((index, f"returned {value!r:.80}, wanted a finite number or None"))
            number = math.nan
        values.append(None if math.isnan(number) else number)
    return values, faults


def described(error: BaseException) -> str:
    """Type and text of an error on one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MESSAGE].rstrip(": ")


def _number(value: Any) -> float | None:
    """A number, NaN for None, None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _called(reward: Callable[..., Any], arguments: dict[str, Any]) -> Sequence[Any]:
    """What a reward returns; a coroutine is run to its end."""
    returned = reward(**arguments, **_extras(reward, arguments))
    return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _extras(reward: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """TRL's own arguments for a reward that takes them: no trainer's state, and loggers that log nothing."""
    extras: dict[str, Any] = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters}
    return {k: v for k, v in extras.items() if k not in arguments and (takes_all or k in named)}


def _ignore(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End this process after so many seconds. Even a call that never comes back to Python is ended by the kernel."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
