import os
import signal

import cv2
import pytest
import torch
from torch.utils.data import Dataset

from cogalign.counterfactual.workers import Failed, loader, raise_failed, sound, told_of_killed


class Numbers(Dataset[int]):
    """Ten numbers; the fourth cannot be read, and the eighth is a mistake of ours or kills the process."""

    def __init__(self, eighth: str = "") -> None:
        self.eighth = eighth

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise FileNotFoundError("c.png: no such image")
        if index == 7 and self.eighth == "mistake":
            raise RuntimeError("shapes differ")
        if index == 7 and self.eighth == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Threads(Dataset[tuple[int, int]]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[int, int]:
        return torch.get_num_threads(), cv2.getNumThreads()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_read_does_not_take_the_others_along(workers: int) -> None:
    first, second, third = loader(Numbers(), workers, 4)
    assert sound(first) == [0, 1, 2] and second == [4, 5, 6, 7] and third == [8, 9]
    assert isinstance(first[3], Failed)
    with pytest.raises(FileNotFoundError) as caught:
        raise_failed(first)
    assert str(caught.value) == "c.png: no such image"
    raise_failed(second)


def test_a_worker_has_one_thread() -> None:
    torch_threads, cv2_threads = next(iter(loader(Threads(), 1, 1)))[0]
    assert torch_threads == 1 and cv2_threads <= 1


def test_a_killed_worker_is_told_of() -> None:
    with (
        pytest.raises(ChildProcessError, match=r"masks: a worker process was killed .*; what was found is kept"),
        told_of_killed("masks", "what was found"),
    ):
        list(loader(Numbers("kill"), 1, 4))


def test_a_mistake_of_ours_in_a_worker_stays_one() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), told_of_killed("masks", "what was found"):
        list(loader(Numbers("mistake"), 1, 4))
