"""Ctrl-C and the signals of batch systems, as one exception that ends a stage in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # fmt: skip


class Interrupted(BaseException):
    """A stage was stopped by a signal; what it has saved is kept and the next run goes on.

    Not an `Exception`: code that guards a reward or a reader must not swallow it. Not a
    `KeyboardInterrupt`: Lightning would turn that into `sys.exit`.
    """


_pending: list[str] = []
"""The signal that `signals_interrupt` has raised for, as long as its block runs."""


def check() -> None:
    """Raise `Interrupted` again if a signal came and some library swallowed the first one."""
    if _pending:
        raise Interrupted(_pending[0])


Handler = Callable[[int, FrameType | None], Any]


def install(handler: Handler) -> dict[int, Any]:
    """Let `handler` answer Ctrl-C, SIGTERM and SIGUSR1; gives back the handlers that were there.

    Outside the main thread Python allows no handlers: then nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in SIGNALS}


def restore(handlers: dict[int, Any]) -> None:
    """Put back the handlers that `install` gave."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside the block a signal raises `Interrupted` at once.

    Training replaces this by a flag that is acted on at the end of a step (`interruption.Interrupt`).
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        _pending[:] = [signal.Signals(number).name]
        raise Interrupted(_pending[0])

    handlers = install(handler)
    try:
        yield
    finally:
        _pending.clear()
        restore(handlers)
