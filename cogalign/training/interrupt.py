"""Ctrl-C and the signals of batch systems, as one exception that ends a stage in good order.

The first signal stops the process. SIGTERM and SIGUSR1 that come later do nothing more (batch systems send several);
a Ctrl-C that comes later ends it at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cogalign.training import requeue

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # fmt: skip
OF_BATCH_SYSTEMS = tuple(number for number in SIGNALS if number != signal.SIGINT)
WORKER_STAYS = 30.0
"""Seconds that a worker process goes on after SIGTERM, so that the main process can end its step."""


class Interrupted(BaseException):
    """A stage was stopped by a signal; what it has saved is kept and the next run goes on.

    Not an `Exception`: code that guards a reward or a reader must not swallow it. Not a
    `KeyboardInterrupt`: Lightning would turn that into `sys.exit`.
    """


_pending: list[str] = []
"""The signal that `check` raises for: it was raised for already, or nobody acted on it."""
_stopping: list[str] = []
"""The first signal that came, from then to the end of the outermost `signals_interrupt`."""
_blocks = 0
"""How many `signals_interrupt` are open."""


def check() -> None:
    """Raise `Interrupted` again if a signal came and some library swallowed the first one."""
    if _pending:
        raise Interrupted(_pending[0])


def stopping() -> bool:
    """Whether a signal came and this process is on its way out."""
    return bool(_stopping)


def noted(name: str) -> None:
    """A signal came and somebody acts on it: later SIGTERM and SIGUSR1 do nothing more."""
    if _blocks:
        _stopping[:] = [name]


def unheeded(name: str) -> None:
    """A signal came too late for the one who wanted to act on it: the next `check` raises."""
    if _blocks:
        _pending[:] = [name]


def as_interruption(error: BaseException) -> Interrupted | None:
    """The interruption behind an error, if there is one.

    When ranks or worker processes end by a signal, those that wait for them see a broken connection or pool.

    Args:
        error: what ended a stage or a command.

    Returns:
        `error` itself if it is an `Interrupted`; a new one if it is a RuntimeError or ChildProcessError and a signal
        has stopped this process or another rank of its batch job; else None. Errors in the input and of the disk stay
        errors.
    """
    if isinstance(error, Interrupted):
        return error
    if isinstance(error, RuntimeError | ChildProcessError) and (_stopping or requeue.was_requested()):
        who = _stopping[0] if _stopping else "another process was stopped"
        return Interrupted(f"{who}; then {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return None


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
    """Inside the block a signal raises `Interrupted` at once; a block in another one adds nothing to it.

    Training replaces this by a flag that is acted on at the end of a step (`interruption.Interrupt`). In a batch job
    of several ranks a signal that another rank got counts as well. After a block that a signal has ended, a batch
    job ignores SIGTERM and SIGUSR1: it has only to close what is open.

    Raises:
        Interrupted: a signal came here, or came to another rank, whose end broke a connection.
    """
    global _blocks
    before = list(_pending)
    outermost = _blocks == 0
    handlers = install(_raise) if outermost else {}
    watcher = requeue.watcher(stopping) if handlers else None
    _blocks += 1
    try:
        yield
    except (RuntimeError, ChildProcessError) as error:
        stopped = as_interruption(error)
        if stopped is None:
            raise
        raise stopped from error
    finally:
        _blocks -= 1
        _pending[:] = before
        if watcher is not None:
            watcher.stop()
        if outermost:
            closing = bool(_stopping) and requeue.requeue_file() is not None
            restore({number: signal.SIG_IGN if closing and number in OF_BATCH_SYSTEMS else handler
                     for number, handler in handlers.items()})  # fmt: skip
            _stopping.clear()


def _raise(number: int, _frame: FrameType | None) -> None:
    """The first signal raises, and so does every Ctrl-C."""
    if _stopping and number in OF_BATCH_SYSTEMS:
        return
    name = signal.Signals(number).name
    _pending[:] = [name]
    _stopping[:] = _stopping or [name]
    raise Interrupted(name)


def leave_to_parent() -> None:
    """In a worker process: signals are the main process's business, though a batch system sends them to all.

    SIGTERM ends the worker half a minute later: the main process may have sent it, to a worker that it cannot end
    otherwise.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        signal.signal(number, _leave_later if number == signal.SIGTERM else signal.SIG_IGN)


def _leave_later(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    timer = threading.Timer(WORKER_STAYS, os._exit, (0,))
    timer.daemon = True
    timer.start()
