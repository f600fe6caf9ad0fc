"""What goes wrong: a fault strikes a running stage from inside, at the start of a step or of a batch of answers."""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT = 5
"""Optimizer steps that are finished when a fault strikes, if it does not say so itself."""
BATCHES = 2
"""Batches of answers that are kept when a fault strikes the evaluation."""


def strike(fault: str) -> None:
    """Let a fault strike: `name` (in FAULTS), `name:detail`, and `...@5` for the number of steps that are finished."""
    what, _, at = fault.partition("@")
    name, _, detail = what.partition(":")
    if name == "fullwhileasking":
        strike_answers(detail)
    else:
        strike_steps(FAULTS[name], detail, int(at or AT))


def strike_steps(act: Callable[[Any, str], Any], detail: str, at: int) -> None:
    """Strike SFT or GRPO, whichever runs; what `act` gives back changes the loss."""
    from cogalign.grpo.module import GrpoModule
    from cogalign.sft.module import SftModule

    for module, method in ((SftModule, "training_step"), (GrpoModule, "_loss")):
        setattr(module, method, struck(getattr(module, method), act, detail, at))


def struck(real: Callable[..., Any], act: Callable[[Any, str], Any], detail: str, at: int) -> Callable[..., Any]:
    """The method that gives the loss, with the fault."""

    def changed(self: Any, *arguments: Any) -> Any:
        self.struck_at = at
        change = act(self, detail) if self.trainer.global_step >= at else None
        found = real(self, *arguments)
        if change is None:
            return found
        return (change(found[0]), *found[1:]) if isinstance(found, tuple) else change(found)

    return changed


def strike_answers(folder: str) -> None:
    """Fill the disk before the answers of a batch are kept."""
    from cogalign.evaluation.kept import KeptCompletions

    real = KeptCompletions.put
    calls: list[Any] = []

    def put(self: KeptCompletions, kind: str, ids: Any, completions: Any) -> None:
        calls.append(ids)
        if len(calls) > BATCHES:
            fill_disk(None, folder)
            with open(self.path or "", "ab", buffering=0) as file:  # its last block, too
                write_until_full(file, b"\n")
        print("answered:", *ids, flush=True)
        real(self, kind, ids, completions)

    KeptCompletions.put = put  # type: ignore[method-assign]


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
            write_until_full(file, b"x" * size)


def write_until_full(file: Any, content: bytes) -> None:
    try:
        while True:
            file.write(content)
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
    """The loss of `steps` steps from the fault on."""
    if module.trainer.global_step < module.struck_at + int(steps):
        return lambda loss: loss * float("nan")
    return None


def endless_gradient(module: Any, _: str) -> Callable[[Any], Any] | None:
    """A loss that is finite, with a gradient that is not."""
    if module.trainer.global_step > module.struck_at:
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
