"""What goes wrong: each fault strikes a running SFT from inside, in the first run only, at the start of a step."""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT = 5
"""Optimizer steps that are finished when a fault strikes."""


def strike(fault: str) -> None:
    """Let `fault` (a name in FAULTS, with what it needs after a colon) strike at step AT."""
    from cogalign.sft.module import SftModule

    name, _, detail = fault.partition(":")
    real = SftModule.training_step

    def step(self: SftModule, batch: Any, batch_idx: int) -> Any:
        changed = None
        if self.trainer.global_step >= AT:
            changed = FAULTS[name](self, detail)
        loss = real(self, batch, batch_idx)
        return loss if changed is None else changed(loss)

    SftModule.training_step = step  # type: ignore[method-assign]


def signal_myself(module: Any, name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def kill_data_worker(module: Any, _: str) -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)
    time.sleep(0.5)  # the loader looks for dead workers when it waits for a batch, and its next one is ready


def cut_images(module: Any, folder: str) -> None:
    time.sleep(1.0)  # a worker has then read what it reads ahead
    for path in Path(folder, "images").glob("*.png"):
        path.write_bytes(path.read_bytes()[:200])


def fill_disk(module: Any, folder: str) -> None:
    with open(Path(folder, "filler"), "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def make_read_only(module: Any, folder: str) -> None:
    """A second mount over the first: one with open files cannot be made read-only."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def wait_for_ever(module: Any, rank: str) -> None:
    if module.global_rank == int(rank):
        while True:
            time.sleep(1)


def kill_rank(module: Any, rank: str) -> None:
    if module.global_rank == int(rank):
        os.kill(os.getpid(), signal.SIGKILL)


def fail_in_rank(module: Any, rank: str) -> None:
    if module.global_rank == int(rank):
        raise ValueError("a case that cannot be read")


def not_a_number(module: Any, steps: str) -> Callable[[Any], Any] | None:
    """The loss of `steps` steps from AT on."""
    if module.trainer.global_step < AT + int(steps):
        return lambda loss: loss * float("nan")
    return None


def endless_gradient(module: Any, _: str) -> Callable[[Any], Any] | None:
    """A loss that is finite, with a gradient that is not."""
    if module.trainer.global_step > AT:
        return None

    def changed(loss: Any) -> Any:
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    return changed


FAULTS: dict[str, Callable[[Any, str], Any]] = {
    "signal": signal_myself,
    "worker": kill_data_worker,
    "images": cut_images,
    "full": fill_disk,
    "readonly": make_read_only,
    "hang": wait_for_ever,
    "kill": kill_rank,
    "raise": fail_in_rank,
    "nan": not_a_number,
    "inf": endless_gradient,
}
