"""Rewards in processes of their own: one that raises, hangs or dies costs its own value and nothing else."""

from __future__ import annotations

import multiprocessing
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, NamedTuple

from pebble import ProcessPool

from cogalign.grpo.rewards.protocol import Completion, Reward, reward_arguments
from cogalign.grpo.rewards.worker import GRACE, Judged, described, judge, start
from cogalign.training.heartbeat import beat

START = 60.0
"""Seconds that worker processes may take to start."""
_LEAST = 0.05


class _Call(NamedTuple):
    future: Future[Judged]
    pool: ProcessPool
    limit: float


@dataclass(frozen=True)
class RewardResult:
    """What the rewards of a batch gave."""

    values: dict[str, list[float | None]]
    """N values a reward, in the order of the pool's rewards; None: does not apply, or could not be judged."""
    seconds: dict[str, float]
    """Time that each reward took."""
    errors: list[tuple[str, int | None, str]]
    """Reward, index of the completion (None: the whole batch) and what went wrong."""


class RewardPool:
    """Worker processes that compute rewards; a context manager.

    Every reward is one task on the whole batch. One that fails as a whole (it raises, takes longer than `timeout`,
    ends its process, or returns a wrong number of values) is called again completion by completion, all such rewards
    together within `timeout`, so that only the guilty completions are missing. A worker that hangs is killed. Workers
    are started fresh (spawn), import no torch, ignore the signals of a preempted job, and end with the main process.
    """

    def __init__(self, rewards: Mapping[str, Reward], workers: int, timeout: float) -> None:
        """Start the workers.

        Args:
            rewards: Functions in TRL's protocol by name, plain or async.
            workers: Processes.
            timeout: Seconds that one reward may take for a batch.

        Raises:
            ValueError: a reward cannot be sent to another process.
        """
        self.names = tuple(rewards)
        self.workers, self.timeout = workers, timeout
        self._rewards = {name: _sent(name, reward) for name, reward in rewards.items()}
        self._open: weakref.WeakSet[PendingRewards] = weakref.WeakSet()
        self._pool = self._started()

    @property
    def bound(self) -> float:
        """Seconds from `submit` within which a batch has its result, whatever the rewards do: one round of calls for
        every `workers` rewards, for each batch that waits, and once more `timeout`; `START` only if no worker starts.
        """
        return self._first_calls() + self.timeout + 4 * GRACE

    def _first_calls(self) -> float:
        rounds = -(-len(self.names) // self.workers)
        return START + max(1, len(self._open)) * rounds * (self.timeout + 2 * GRACE)

    def submit(
        self,
        completions: Sequence[Completion],
        columns: Mapping[str, Sequence[Any]],
        *,
        prompts: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> PendingRewards:
        """Start the rewards of a batch, and return at once.

        Args:
            completions: N completions.
            columns: What is known of each completion's case: N plain values a column.
            prompts: N prompts.
            completion_ids: N lists of token ids.

        Raises:
            ValueError: a column has not N values.
        """
        batch = reward_arguments(completions, columns, prompts, completion_ids)
        return PendingRewards(self, batch, len(completions))

    def close(self) -> None:
        """End the workers; what they are doing is lost."""
        self._finalizer()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> ProcessPool:
        context: Any = multiprocessing.get_context("spawn")  # a fork would copy torch's locks without its threads
        pool = ProcessPool(max_workers=self.workers, initializer=start, context=context)
        self._finalizer = weakref.finalize(self, _end, pool)
        _ = pool.active  # starts the processes
        return pool

    def _restart(self) -> None:
        """A new pool instead of one that is broken."""
        threading.Thread(target=self._finalizer, daemon=True).start()
        self._pool = self._started()

    def _schedule(self, name: str, batch: bytes, n: int, limit: float) -> _Call:
        """Start one call. Never raises."""
        for attempt in range(2):
            try:
                arguments = (self._rewards[name], batch, n, limit)
                return _Call(self._pool.schedule(judge, args=arguments, timeout=limit), self._pool, limit)
            except RuntimeError as error:  # the pool broke, e.g. because a worker was killed from outside
                broken = error
            if attempt == 0:
                self._restart()
        future: Future[Judged] = Future()
        future.set_exception(broken)
        return _Call(future, self._pool, limit)

    def _wait(self, call: _Call, deadline: float) -> tuple[Judged, bool]:
        """Result of a call, and whether it failed because its process died. Never raises, ends at the deadline."""
        while True:
            beat()  # a call has a limit of its own
            wait([call.future], timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            if call.future.done():
                return _outcome(call)
            if not call.pool.active:
                return _failed(0.0, "its worker process died"), True
            if time.monotonic() >= deadline:
                call.future.cancel()
                return _failed(0.0, "had no worker process in time"), False


class PendingRewards:
    """Rewards of a batch that are being computed."""

    def __init__(self, pool: RewardPool, batch: Mapping[str, Sequence[Any]], n: int) -> None:
        self._pool, self._batch, self._n = pool, batch, n
        self._bytes = _packed(batch)
        pool._open.add(self)
        self._deadline = time.monotonic() + pool._first_calls()
        self._calls = {name: pool._schedule(name, self._bytes, n, pool.timeout) for name in pool.names}
        self._result: RewardResult | None = None

    def collect(self) -> RewardResult:
        """Wait for the rewards, within `RewardPool.bound` of `submit`. Never raises; a second call gives the same."""
        if self._result is None:
            self._result = self._collected()
            self._calls.clear()
            self._pool._open.discard(self)
        return self._result

    def _collected(self) -> RewardResult:
        timeout = self._pool.timeout
        judged: dict[str, Judged] = {}
        died: dict[str, bool] = {}
        for name, call in self._calls.items():
            judged[name], died[name] = self._pool._wait(call, self._deadline)
        failed = [name for name in judged if judged[name].values is None]
        end = time.monotonic() + timeout
        for index, name in enumerate(failed):
            share = (end - time.monotonic()) / (len(failed) - index)
            judged[name] = self._again(name, judged[name], died[name], time.monotonic() + share)
        return RewardResult(
            {name: outcome.values or [None] * self._n for name, outcome in judged.items()},
            {name: outcome.seconds for name, outcome in judged.items()},
            [(name, index, message) for name, outcome in judged.items() for index, message in outcome.faults],
        )

    def _again(self, name: str, first: Judged, died: bool, deadline: float) -> Judged:
        """Judge what a failed call left open: the batch once more if the process died, else one by one."""
        started = time.monotonic()
        if died:  # it may have been killed from outside, and some rewards need the batch as a whole
            again, _ = self._call(name, self._bytes, self._n, deadline, part=2)
            if again.values is not None:
                return again._replace(seconds=first.seconds + time.monotonic() - started)
        values: list[float | None] = [None] * self._n
        faults: list[tuple[int | None, str]] = []
        done = 0
        while done < self._n and time.monotonic() < deadline:
            one = {key: column[done : done + 1] for key, column in self._batch.items()}
            single, _ = self._call(name, _packed(one), 1, deadline)
            faults += [(done, message) for _, message in single.faults]
            values[done] = single.values[0] if single.values else None
            done += 1
        if done < self._n or not faults:
            told = "all were judged one by one" if done == self._n else f"{self._n - done} of {self._n} were not judged"
            faults.append((None, f"{first.faults[0][1]}; {told}"))
        return Judged(values, first.seconds + time.monotonic() - started, faults)

    def _call(self, name: str, batch: bytes, n: int, deadline: float, part: int = 4) -> tuple[Judged, bool]:
        """One more call within a part of the time that is left, so that hanging ones leave time for the others."""
        limit = max(_LEAST, (deadline - time.monotonic()) / part)
        return self._pool._wait(self._pool._schedule(name, batch, n, limit), deadline + GRACE)


def _sent(name: str, reward: Reward) -> bytes:
    """The reward as bytes for a worker of this machine."""
    try:
        return bytes(ForkingPickler.dumps(reward))
    except Exception as error:
        raise ValueError(
            f"reward {name!r}: cannot be sent to a worker process ({described(error)}); wanted a function of a module, "
            "or functools.partial of one"
        ) from error


def _packed(batch: Mapping[str, Sequence[Any]]) -> bytes:
    return bytes(ForkingPickler.dumps(dict(batch)))


def _failed(seconds: float, message: str) -> Judged:
    return Judged(None, seconds, [(None, message)])


def _outcome(call: _Call) -> tuple[Judged, bool]:
    """What a call that is done gave, and whether its process died."""
    try:
        return call.future.result(timeout=0), False
    except TimeoutError:
        return _failed(call.limit, f"took longer than {call.limit:.3g} s"), False
    except CancelledError:
        return _failed(0.0, "was cancelled"), False
    except Exception as error:
        return _failed(0.0, f"its worker process died ({described(error)})"), True


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()
