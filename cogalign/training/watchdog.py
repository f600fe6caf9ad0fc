"""The watchdog: ends a stage that does not go on, and says which rank stands where.

A thread in every rank. Its own beats (`heartbeat.beat`) tell whether this rank goes on, small files tell the others
(`standing`). A rank that waits in a collective for one that still works is no reason to end: only when no rank has
given a sign for `trainer.timeout` seconds, the stage ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cogalign.training import local_ranks
from cogalign.training.atomic import write_text
from cogalign.training.callbacks import optimizer_steps
from cogalign.training.ending import EXIT_LOST, EXIT_STALLED, GO_ON, end_process
from cogalign.training.heartbeat import PULSE, beat
from cogalign.training.interrupt import as_interruption
from cogalign.training.progress import say
from cogalign.training.stacks import Place, all_stacks, main_place, main_stack
from cogalign.training.standing import (
    FOLDER,
    Others,
    Standing,
    State,
    failure,
    standing_file,
    verdict,
    write_standing,
)

GRACE = 5.0
"""Seconds in which a rank may end by itself after another one failed: mostly it has the same error."""
LEAST = 2.0
"""Least number of seconds between two writings of a rank's file."""


class Watchdog(Callback):
    """Watches this rank while a Trainer fits.

    Args:
        folder: the stage's folder; files go to `watchdog/` in it.
        stage: its name.
        timeout: seconds without progress of any rank that end the stage.
    """

    def __init__(self, folder: Path, stage: str, timeout: float) -> None:
        self.folder, self.stage, self.timeout = folder, stage, timeout
        self.interval = min(max(LEAST, timeout / 20), 10.0)
        """Seconds between two writings of this rank's file."""
        self.patience = max(3 * self.interval + 5, min(90.0, timeout / 4))
        """Seconds without a new file after which a rank counts as gone: network file systems show files late."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rank, self._world_size, self._count, self._step = 0, 1, 0, 0
        self._written = self._dumped = self._looked = float("-inf")
        self._failure_seen: float | None = None

    # -- signs of life ----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take away what an earlier try left; all ranks wait for one another between here and the first step."""
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        with contextlib.suppress(OSError):
            standing_file(self.folder, self._rank).unlink(missing_ok=True)
        self._others = Others(self.folder, self._rank, self._world_size, self.patience)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch."""
        self._stop.clear()
        beat("starting", optimizer_steps(trainer, pl_module) + 1)
        local_ranks.fitting, local_ranks.closing = self, False
        self._write("running")
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is there."""
        beat("training", optimizer_steps(trainer, pl_module) + 1)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The gradient is there."""
        beat()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done."""
        beat("between two batches", optimizer_steps(trainer, pl_module) + 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation begins."""
        beat("validation")

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """A validation batch is done."""
        beat("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is done."""
        beat("between two batches")

    def on_save_checkpoint(self, *_: Any, **__: Any) -> None:
        """A checkpoint is written."""
        beat("writing a checkpoint")

    # -- the end ----------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop to watch, and leave nothing behind."""
        self._ended()
        self._clean()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the others know why this rank ends; if it ends because of another one, say so instead."""
        self._ended()
        if self._world_size == 1 or isinstance(exception, KeyboardInterrupt) or as_interruption(exception) is not None:
            self._clean()
        elif is_lost_connection(exception):
            self._lost(exception)
        else:
            text = str(exception).strip() or type(exception).__name__
            self._write("failed", error=text.splitlines()[0][:500])

    def _ended(self) -> None:
        """End the thread. It never waits for the main one, so it ends soon."""
        self._stop.set()
        local_ranks.fitting, local_ranks.closing = None, True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        self._thread = None

    def _clean(self) -> None:
        """Take this rank's file away, and the folder unless stacks or another rank's file are in it."""
        with contextlib.suppress(OSError):
            standing_file(self.folder, self._rank).unlink(missing_ok=True)
            (self.folder / FOLDER).rmdir()

    # -- the thread -------------------------------------------------------------------------------

    def _watch(self) -> None:
        pause = min(1.0, self.timeout / 20)
        before = time.monotonic()
        while not self._stop.wait(pause):
            now = time.monotonic()
            if now - before > pause + max(5.0, self.timeout / 4):
                beat()  # this process was suspended, or the machine slept
            before = now
            if PULSE.idle > self.timeout / 2 and main_place().compiling:
                beat()
            self._look(now)

    def _look(self, now: float) -> None:
        """Write this rank's file when it is due, and judge if nothing went on for too long."""
        stalled = PULSE.idle >= self.timeout
        if stalled and self._dumped < PULSE.when:
            self._dumped = now
            self._dump()
            self._write("stalled", main_place())
        elif now - self._written >= (self.interval if PULSE.step == self._step else LEAST):
            self._write("stalled" if stalled else "running", main_place() if stalled else None)
        if self._world_size > 1 and PULSE.idle > 2 * self.interval and now - self._looked >= 1.0:
            self._looked = now
            self._judge(stalled)
        elif stalled and self._world_size == 1:
            message = verdict({0: self._standing("stalled", main_place())}, (), self.timeout, self.stage)
            self._end(message, EXIT_STALLED)

    def _judge(self, stalled: bool) -> None:
        """Whether the stage is to end, as all files together say."""
        standings, gone = self._others.look()
        if (error := failure(standings)) is not None:
            self._failure_seen = self._failure_seen or time.monotonic()
            if time.monotonic() - self._failure_seen > GRACE:
                self._end(
                    None if standings.get(0, Standing(0)).state == "failed" else f"{self.stage}: {error}", EXIT_LOST
                )
        elif stalled:
            standings[self._rank] = self._standing("stalled", main_place())
            message = verdict(standings, gone, self.timeout, self.stage)
            if message is not None:
                speaker = min(k for k in standings if k not in gone)
                self._end(f"{self.stage}: {message}" if speaker == self._rank else None, EXIT_STALLED)

    def _end(self, message: str | None, code: int) -> NoReturn:
        """End this process; the rank that tells goes first, as a launcher ends the others with it."""
        if message is None:
            time.sleep(GRACE)
        else:
            message = f"{message}. The stacks of all ranks are in {self.folder / FOLDER}; {GO_ON}"
            self._write("ended", main_place())
        end_process(self.folder, message, code)

    def _dump(self) -> None:
        """Write the stacks of all threads to `rank-<k>.txt`, and the main thread's to standard error."""
        path = self.folder / FOLDER / f"rank-{self._rank}.txt"
        say(f"watchdog: rank {self._rank} has done nothing for {PULSE.idle:.0f} s\n{main_stack()}")
        try:
            write_text(path, all_stacks())
        except OSError as error:
            say(f"warning: {path} could not be written ({error})\n{all_stacks()}")

    # -- another rank is lost ---------------------------------------------------------------------

    def _lost(self, exception: BaseException) -> NoReturn:
        """A collective broke: find out which rank ended, and why."""
        first = str(exception).strip().splitlines()[0][:200]
        general = f"{self.stage} step {PULSE.step}: the connection to another rank broke ({first})"
        if self._rank == 0:
            say(
                f"{self.stage} step {PULSE.step}: the connection to another rank broke; looking for the rank that ended"
            )
        self._write("stalled", main_place())
        local_ranks.fitting = self  # if the main process is gone, that thread tells so
        end, said = time.monotonic() + self.patience + 2, None
        while said is None and time.monotonic() < end:
            time.sleep(0.2)
            standings, gone = self._others.look()
            said = failure(standings) or local_ranks.lost()
            if said is None and gone:
                said = "; ".join(f"{standings[k].name} gives no sign of life" for k in sorted(gone))
        told_by_itself = self._others.look()[0].get(0, Standing(0)).state == "failed"
        speaker = self._rank == 0 or (said is not None and not told_by_itself and self._is_next())
        message = f"{self.stage} step {PULSE.step}: {said}; {GO_ON}" if said is not None else general
        end_process(self.folder, message if speaker else None, EXIT_LOST)

    def _is_next(self) -> bool:
        """Whether this is the lowest rank that is left, when rank 0 is gone."""
        standings, gone = self._others.look()
        return 0 in gone and self._rank == min({*standings, self._rank} - gone)

    # -- this rank's file -------------------------------------------------------------------------

    def _standing(self, state: State, place: Place | None = None, error: str | None = None) -> Standing:
        return Standing(
            self._rank, host_name(), os.getpid(), PULSE.step, PULSE.phase,
            datetime.now(UTC).isoformat(timespec="seconds"), self._count, round(PULSE.idle, 1), state,
            place.where if place else None, place.collective if place else None, error,
        )  # fmt: skip

    def _write(self, state: State, place: Place | None = None, error: str | None = None) -> None:
        self._count += 1
        self._step = PULSE.step
        self._written = time.monotonic()
        write_standing(self.folder, self._standing(state, place, error))


def host_name() -> str:
    """The machine's name; under SLURM the node's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def is_lost_connection(exception: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process is gone or waited for in vain."""
    if isinstance(exception, torch.distributed.DistError):
        return True
    return isinstance(exception, RuntimeError) and ("gloo" in str(exception).lower() or "NCCL" in str(exception))
