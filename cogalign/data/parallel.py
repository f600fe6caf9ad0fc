"""The same function for many files, in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from threading import Thread
from typing import TypeVar

from cogalign.training.interrupt import leave_to_parent
from cogalign.training.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

FEW = 64
"""So few items are done faster than processes start."""


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int | None = None
) -> Iterator[Result]:
    """The function's results, in the order of the items.

    Args:
        function: a function of a module, since the processes are spawned; it should use one thread.
        items: what it is called with.
        description: what is done; shown before the bar.
        workers: number of processes; by default one for each processor. With one, or few items, none is started.

    Raises:
        ValueError: `workers` is below 1.
        Interrupted: as `track`. What the function raises comes out unchanged; what waits is not begun.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: found {workers}, wanted a whole number from 1")
    number = min(workers or cores(), len(items))
    if number <= 1 or len(items) < FEW:
        yield from map(function, track(items, description))
        return
    chunk = max(1, min(32, len(items) // (4 * number)))
    pool = ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield from track(pool.map(function, items, chunksize=chunk), description, total=len(items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Keep OpenCV to one thread, since the processes are the parallel part, and end with the process that started this one."""
    import cv2

    leave_to_parent()
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process when another one has ended, however that came about: it must not write any more."""
    wait([sentinel])
    os._exit(1)
