"""Processes beside the main one: what it tells them through a file, and how they wait for it without waiting for ever.

The main process decides which stages are skipped and which run. It writes its decisions into
`<run>/.ranks/<start>.json`, and writes the file anew every few seconds as a sign of life. How a stage ended stands in
the stage's own `stage.json`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from cogalign.pipeline_digest import digest_if_ready
from cogalign.recipe import Recipe
from cogalign.training.atomic import write_bytes
from cogalign.training.errors import message_of
from cogalign.training.interrupt import Interrupted, as_interruption, check
from cogalign.training.launched import RANKS
from cogalign.training.progress import say
from cogalign.training.stage_file import StageFile, read_stage_file

FOLDER = ".ranks"
FOLLOW_EVERY = 0.5
"""Seconds between two looks of a process that waits for the main one."""
BEAT_EVERY = 5.0
"""Seconds between two signs of life; in the beginning they come five times as often."""
LATE = 90.0
"""Seconds in which files of another machine come into sight (an NFS client may remember a minute what was not there)."""
SETTLED = 10.0
"""Seconds after which an end that another start may have left is believed."""
PARENT = os.getppid()
"""The process that started this one; an orphan gets another."""
START = "COGALIGN_START"
"""Variable by which processes that the main one starts know its start."""


def start_name(recipe: Recipe) -> str | None:
    """What all processes of one start have in common and other starts seldom have; None where nothing tells it."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    if job and step and _slurm_tasks() > 1:
        found = f"slurm-{job}-{step}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    elif os.environ.get("TORCHELASTIC_RUN_ID"):
        found = f"torch-{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    elif recipe.trainer.num_nodes > 1 and os.environ.get("MASTER_ADDR"):
        found = f"master-{os.environ['MASTER_ADDR']}"
    else:
        found = os.environ.get(START, "")
    return re.sub(r"[^\w.-]", "_", found) or None


def _slurm_tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)


def has_followers(recipe: Recipe) -> bool:
    """Whether there can be other processes beside the main one."""
    return recipe.trainer.devices not in (1, "1") or recipe.trainer.num_nodes > 1 or _slurm_tasks() > 1


class Leader:
    """What the main process tells the others; outside its `with` block, and without others, it tells nothing.

    Args:
        recipe: tells the run's folder and whether there are others.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._active = has_followers(recipe)
        self._recipe, self._folder = recipe, recipe.run_dir / FOLDER
        self._content: dict[str, Any] = {"beat": 0, "stages": {}, "ended": None}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._path = self._folder
        self._thread = threading.Thread(target=self._live, name="sign of life", daemon=True)

    def __enter__(self) -> Leader:
        """Begin to give signs of life."""
        if not self._active:
            return self
        os.environ[START] = secrets.token_hex(8)
        self._path = self._folder / f"{start_name(self._recipe)}.json"
        self._forget_old()
        self._content["id"] = os.environ[START]
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell how the command ended."""
        if not self._active:
            return
        self._stop.set()
        message = None if error is None else message_of(error)[:2000]
        stopped = error is not None and (isinstance(error, KeyboardInterrupt) or as_interruption(error) is not None)
        self._content["ended"] = {"message": message, "stopped": stopped}
        self._write()
        self._thread.join(timeout=10)

    def skips(self, stage: str) -> None:
        """Tell that a stage is done before."""
        self._tell(stage, {"run": False})

    def runs(self, stage: str, digest: str, record: StageFile | None = None) -> None:
        """Tell that a stage runs, with what, and by what its `stage.json` is known."""
        known = {} if record is None else {"started": record.started, "resumed": record.resumed}
        self._tell(stage, {"run": True, "digest": digest, **known})

    def _tell(self, stage: str, decision: dict[str, Any]) -> None:
        if self._active:
            self._content["stages"][stage] = decision
            self._write()

    def _live(self) -> None:
        while not self._stop.wait(BEAT_EVERY / 5 if self._content["beat"] < 15 else BEAT_EVERY):
            self._content["beat"] += 1
            self._write()

    def _write(self) -> None:
        """Not flushed to disk: after a power cut nobody reads it. A full disk must not end a run."""
        with self._lock, suppress(OSError):
            write_bytes(self._path, json.dumps(self._content).encode("utf-8"), flush=False)

    def _forget_old(self) -> None:
        """Remove what starts have left that ended long ago."""
        for path in self._folder.glob("*.*"):
            try:
                if time.time() - path.stat().st_mtime > 3600 or path == self._path:
                    path.unlink()
            except OSError:
                continue


class Follower:
    """A process beside the main one.

    Args:
        recipe: tells the run's folder and how long to wait for a sign of life.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._limit = recipe, recipe.trainer.timeout
        name = start_name(recipe)
        if name is None:
            raise ValueError(
                "this process has a rank above 0, but nothing tells which main process it belongs to; start all with "
                f"srun or torchrun, or set MASTER_ADDR and trainer.num_nodes (found {_ranks()})"
            )
        self._path = recipe.run_dir / FOLDER / f"{name}.json"
        self._latest: dict[str, Any] | None = None
        self._first: dict[str, Any] | None = self._read()
        # What was written before this process looked may be another start's, unless the main process started it.
        self._trusted = self._first is None or self._first.get("id") == os.environ.get(START)
        self._changed = self._begun = time.monotonic()

    def wait_for_decision(self, stage: str) -> dict[str, Any]:
        """Until the main process has said what becomes of a stage.

        Raises:
            ChildProcessError: the main process has ended, or gives no sign of life.
            Interrupted: a signal ended the wait, here or there.
        """
        while True:
            content = self.look(stage)
            if content is not None:
                decision: dict[str, Any] | None = content["stages"].get(stage)
                if decision is not None:
                    return decision
                self._raise_end(stage, content)
            time.sleep(FOLLOW_EVERY)

    def wait_for_inputs(self, stage: str, decision: dict[str, Any]) -> None:
        """Until this process sees the same settings and inputs as the main one.

        Raises:
            ValueError: it still sees others after `LATE` seconds.
        """
        end, told = time.monotonic() + LATE, False
        while digest_if_ready(self._recipe, stage) != decision["digest"]:
            self.look(stage)
            if time.monotonic() > end:
                raise ValueError(
                    f"{stage}: this process ({_ranks()}) sees other settings or inputs than the main one; was the case "
                    f"set edited while the run started, or do they not share {self._recipe.run_dir}?"
                )
            if not told:
                say(f"{stage}: waiting until the main process's files come into sight")
            told = True
            time.sleep(FOLLOW_EVERY)

    def wait_for_end(self, stage: str, decision: dict[str, Any]) -> None:
        """Until the main process has finished a stage.

        Raises:
            ChildProcessError: the stage failed there, or the main process has ended.
            Interrupted: a signal stopped the stage.
        """
        while True:
            content = self.look(stage)
            record = read_stage_file(self._recipe.run_dir / stage)
            if record is not None and all(getattr(record, name) == decision[name] for name in ("started", "resumed")):
                if record.status in ("finished", "partial"):
                    return
                if record.status == "failed":
                    raise ChildProcessError(f"{stage}: failed in the main process: {record.message}")
                if record.status == "interrupted":
                    raise Interrupted("the main process was stopped")
            if content is not None:
                self._raise_end(stage, content)
            time.sleep(FOLLOW_EVERY)

    def look(self, stage: str) -> dict[str, Any] | None:
        """What the main process has told last, as far as it can be trusted; None before that.

        Raises:
            ChildProcessError: it is gone, or gives no sign of life.
            Interrupted: a signal came.
        """
        check()
        content, now = self._read(), time.monotonic()
        if content is not None and content != self._latest:
            self._latest, self._changed = content, now
            self._trusted = self._trusted or content != self._first
        if content is not None and content["ended"] is not None and now - self._begun > SETTLED:
            self._trusted = True
        if os.getppid() != PARENT:  # in a container the main process may itself be process 1
            raise ChildProcessError(f"{stage}: the main process has ended, so this one ends too")
        if now - self._changed > self._limit:
            raise ChildProcessError(
                f"{stage}: no sign of life of the main process for {now - self._changed:.0f} s (trainer.timeout "
                f"{self._limit:g}) in {self._path}; do all processes share this folder?"
            )
        return self._latest if self._trusted else None

    def _raise_end(self, stage: str, content: dict[str, Any]) -> None:
        ended = content["ended"]
        if ended is None:
            return
        if ended["stopped"]:
            raise Interrupted("the main process was stopped")
        raise ChildProcessError(f"{stage}: the main process has ended: {ended['message'] or 'it was done'}")

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and {"stages", "ended"} <= content.keys() else None


def _ranks() -> str:
    """The variables that give this process its rank."""
    return ", ".join(f"{name}={os.environ[name]}" for name in RANKS if os.environ.get(name))


def take_part(
    follower: Follower, stage: str, work: Callable[[], Any] | None, *, record: bool = True, inputs: str | None = None
) -> None:
    """What a process beside the main one does about a stage.

    Args:
        follower: what the main process tells.
        stage: name of the stage or phase.
        work: its share of the work; None where the main process does it alone.
        record: whether the end stands in the stage's `stage.json`; else this process ends with its own share.
        inputs: stage whose digest must be the main one's; by default `stage`.

    Raises:
        ChildProcessError: the stage failed in the main process, or that has ended.
        ValueError: this process sees other inputs.
        Interrupted: a signal stopped the work.
    """
    decision = follower.wait_for_decision(stage)
    if not decision["run"]:
        return
    if work is not None:
        follower.wait_for_inputs(inputs or stage, decision)
        work()
    if record:
        follower.wait_for_end(stage, decision)
