"""The processes of a run: whether there are several, which one writes, and where they wait for one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cogalign.training.errors import message_of


def is_distributed() -> bool:
    """Whether this process already is one of several that know of one another."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes what all have made."""
    return not is_distributed() or torch.distributed.get_rank() == 0


def together() -> None:
    """Wait until all processes of the run are here; without others there is nothing to wait for."""
    if is_distributed():
        torch.distributed.barrier()


def everyone(mine: Any) -> list[Any]:
    """What every process gives, by rank; all must call it."""
    if not is_distributed():
        return [mine]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def by_first(work: Callable[[], object]) -> None:
    """Let the first process do something that may fail, such as writing; the others wait, and fail with it.

    All must call it. Without it they would wait for one that is gone, or already in another collective.

    Raises:
        OSError: the first one could not do it; there its own error is raised.
    """
    error: Exception | None = None
    if is_first():
        try:
            work()
        except Exception as caught:
            error = caught
    told = everyone(None if error is None else message_of(error))[0]
    if error is not None:
        raise error
    if told is not None:
        raise OSError(f"rank 0: {told}")
