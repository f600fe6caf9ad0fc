"""Worker processes of the three phases (masks, counterfactuals, quality): how they start, fail and are missed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from cogalign.training.interrupt import leave_to_parent

T = TypeVar("T")


@dataclass(frozen=True)
class Failed:
    """An error in a worker process, carried to the main one as it is (a loader would bury it in a traceback)."""

    error: Exception


class Carried(Dataset[T | Failed]):
    """A dataset whose items are given back as they are, and whose errors of input and disk come as `Failed`.

    Other errors are ours: they keep their traceback.

    Args:
        data: what is read.
    """

    def __init__(self, data: Dataset[T]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> T | Failed:
        """One item, or the error that stopped it."""
        try:
            return self.data[index]
        except (OSError, ValueError) as error:
            return Failed(error)


def loader(data: Dataset[Any], workers: int, batch_size: int, prefetch: int | None = None) -> DataLoader[Any]:
    """A loader of lists of items or `Failed`, in order.

    Args:
        data: what is read.
        workers: processes that read it; 0 for this one.
        batch_size: items a list.
        prefetch: lists that each worker reads ahead; by default torch's number.
    """
    return DataLoader(
        Carried(data),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=one_thread if workers else None,
        prefetch_factor=prefetch if workers else None,
    )


def one_thread(worker: int) -> None:
    """A worker is one of several: threads of its own would only stand in the others' way."""
    leave_to_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def sound(batch: Iterable[T | Failed]) -> list[T]:
    """The items of a list that were read."""
    return [one for one in batch if not isinstance(one, Failed)]


def raise_failed(batch: Iterable[object]) -> None:
    """Raise the first error of a list; to be called once what the others gave is written.

    Raises:
        OSError, ValueError: what stopped an item.
    """
    for one in batch:
        if isinstance(one, Failed):
            raise one.error


@contextmanager
def told_of_killed(phase: str, kept: str) -> Iterator[None]:
    """Say plainly that a worker process was killed.

    Args:
        phase: what was being done, for the message.
        kept: what of it is kept, e.g. `what was made`.

    Raises:
        ChildProcessError: a worker process was killed, most often for want of memory.
    """
    try:
        yield
    except RuntimeError as error:
        # "Caught ... in DataLoader worker process 0" is an error in our own code and stays what it is.
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ChildProcessError(
            f"{phase}: a worker process was killed (out of memory?); {kept} is kept, the same command goes on; fewer "
            "counterfactual.workers need less memory"
        ) from None
