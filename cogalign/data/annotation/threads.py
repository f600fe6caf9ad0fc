"""The same function for many things in several threads, which a second signal may leave behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_T = TypeVar("_T")


class Threads(Generic[Item, Result]):
    """Calls a function with each item; iterating gives the results as they come, and raises what the function raises.

    The threads are daemons: a process that gives up does not wait for them, as it would for those of
    `concurrent.futures`.

    Args:
        function: called from several threads.
        items: what it is called with, in this order.
        count: threads.
    """

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item], count: int) -> None:
        self._function, self._size = function, len(items)
        self._todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Result | _Raised] = queue.SimpleQueue()
        for item in items:
            self._todo.put(item)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(count, len(items)))]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Result]:
        for _ in range(self._size):
            result = self._done.get()
            if isinstance(result, _Raised):
                raise result.error
            yield result

    def finish(self) -> list[Result]:
        """Begin nothing new, wait for what is under way, and give the results that were not given yet."""
        self._drain(self._todo)
        for thread in self._threads:
            thread.join()
        return [result for result in self._drain(self._done) if not isinstance(result, _Raised)]

    def _work(self) -> None:
        while True:
            try:
                item = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._done.put(self._function(item))
            except BaseException as error:  # the main thread raises it, so nothing new begins
                self._drain(self._todo)
                self._done.put(_Raised(error))

    @staticmethod
    def _drain(source: queue.SimpleQueue[_T]) -> list[_T]:
        found = []
        while True:
            try:
                found.append(source.get_nowait())
            except queue.Empty:
                return found


class _Raised:
    """What a call raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
