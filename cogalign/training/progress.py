"""Progress of a loop: a rich bar with its rate on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from cogalign.training.heartbeat import beat
from cogalign.training.interrupt import check

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from cogalign.training.progress_file import ProgressFile, Unit

T = TypeVar("T")

LINE_EVERY = 10.0
"""Seconds between two plain lines."""


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream (default: standard error, where progress goes)."""
    stream = sys.stderr if stream is None else stream
    return bool(getattr(stream, "isatty", lambda: False)())


def say(message: str) -> None:
    """Print one plain line for the user on standard error, at once."""
    print(message, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """A duration in seconds as people write it: `7s`, `3m05s`, `2h10m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def plain_line(
    description: str, done: int, total: int | None, seconds: float, extra: str = "", *, before: int = 0
) -> str:
    """One line of progress, e.g. `sft 40/400 (2.1/s, 2m51s left) loss 0.41`.

    Args:
        description: what is done.
        done: items done, those of an earlier try included.
        total: all items, or None if not known.
        seconds: time that the items of this try took.
        extra: text after the rate.
        before: items that an earlier try had done.
    """
    rate = (done - before) / seconds if seconds > 0 else 0.0
    parts = [f"{rate:.1f}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s each"]
    if total is not None and rate > 0 and done < total:
        parts.append(f"{format_seconds((total - done) / rate)} left")
    count = f"{done}" if total is None else f"{done}/{total}"
    return f"{description} {count} ({', '.join(parts)})" + (f" {extra}" if extra else "")


def rich_bar(*, transient: bool = False) -> Progress:
    """A rich bar on standard error: description, bar, count, rate, time left, and the task field `extra`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _rate_column(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[extra]}"),
    ]
    return Progress(*columns, console=Console(stderr=True), transient=transient)


def _rate_column() -> ProgressColumn:
    """The column with items a second."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if not speed else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")

    return RateColumn()


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    *,
    folder: Path | None = None,
    unit: Unit = "cases",
    before: int = 0,
) -> Iterator[T]:
    """Yield the items and show how far the loop is; each is a sign of life for the watchdog.

    Args:
        items: what is gone through.
        description: what is done with them; shown before the bar.
        total: number of items, those of an earlier try included; by default the length of `items`, if it has one,
            and `before`.
        folder: also write `progress.json` there, for `cogalign status`.
        unit: what an item is, for that file.
        before: items that an earlier try had done.

    Raises:
        Interrupted: a signal came inside `signals_interrupt` and was not heeded so far.
    """
    if total is None and isinstance(items, Sized):
        total = len(items) + before
    file = _progress_file(folder, total, unit, before)
    done = before
    try:
        with (_bar if is_terminal() else _lines)(description, total, before) as show:
            for item in items:
                check()
                beat()
                yield item
                done += 1
                show(done)
                if file is not None:
                    file.update(done)
    finally:
        if file is not None:
            file.update(done, last=True)


def _progress_file(folder: Path | None, total: int | None, unit: Unit, before: int) -> ProgressFile | None:
    """The file, if it is wanted and this process is the one that writes it."""
    if folder is None:
        return None
    from cogalign.training.launched import is_main_process
    from cogalign.training.progress_file import ProgressFile

    return ProgressFile(folder, total, unit, before) if is_main_process() else None


@contextmanager
def _bar(description: str, total: int | None, before: int) -> Iterator[Callable[[int], None]]:
    with rich_bar() as bar:
        task = bar.add_task(description, total=total, completed=before, extra="")
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _lines(description: str, total: int | None, before: int) -> Iterator[Callable[[int], None]]:
    """A line every ten seconds, and a last one if all went well."""
    start = last = time.monotonic()
    last_done = before

    def tell(done: int) -> None:
        nonlocal last, last_done
        last_done, now = done, time.monotonic()
        if now - last >= LINE_EVERY and done != total:
            last = now
            say(plain_line(description, done, total, now - start, before=before))

    yield tell
    say(plain_line(description, last_done, total, time.monotonic() - start, before=before))
