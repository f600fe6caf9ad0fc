"""How far each rank is: a small file a rank in `<stage>/watchdog/`, and what they say together.

Clocks of different machines differ, so no rank compares its own with another's: a file tells how long its rank has
been idle by its own clock, and whether the process lives is seen from its counter going up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cogalign.training.atomic import write_bytes

FOLDER = "watchdog"
State = Literal["running", "stalled", "failed", "ended"]


@dataclass
class Standing:
    """What `rank-<k>.json` holds.

    Attributes:
        rank: of all processes of the run.
        host: the machine's name.
        pid: the process.
        step: the optimizer step that is being worked on.
        phase: what is being done.
        time: when this was written, ISO 8601, UTC.
        count: goes up with every writing.
        idle: seconds since the last sign of progress, by the rank's own clock.
        state: `stalled` after too long without progress; `failed` after an error; `ended` once all is told.
        where: the place in the code, known when it is stalled.
        collective: the operation in which it waits for other ranks.
        error: why it failed.
    """

    rank: int
    host: str = ""
    pid: int = 0
    step: int = 0
    phase: str = ""
    time: str = ""
    count: int = 0
    idle: float = 0.0
    state: State = "running"
    where: str | None = None
    collective: str | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """The rank with its machine."""
        return f"rank {self.rank}" + (f" (host {self.host})" if self.host else "")


def standing_file(folder: Path, rank: int) -> Path:
    """The file of a rank in a stage's folder."""
    return folder / FOLDER / f"rank-{rank}.json"


def write_standing(folder: Path, standing: Standing) -> None:
    """Write a rank's file; not flushed to disk, as nothing is lost with it. A folder that cannot be written is no error."""
    with suppress(OSError):
        write_bytes(standing_file(folder, standing.rank), json.dumps(asdict(standing)).encode("utf-8"), flush=False)


def read_standing(folder: Path, rank: int) -> Standing | None:
    """A rank's file; None if there is none that can be read."""
    try:
        return Standing(**json.loads(standing_file(folder, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Others:
    """The other ranks, as their files show them.

    Args:
        folder: the stage's folder.
        rank: this one.
        world_size: number of ranks.
        patience: seconds without a new writing after which a rank counts as gone.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, patience: float) -> None:
        self.folder, self.patience = folder, patience
        self.ranks = [k for k in range(world_size) if k != rank]
        self._seen: dict[int, tuple[int, float]] = {}

    def look(self) -> tuple[dict[int, Standing], set[int]]:
        """Read the files.

        Returns:
            What each other rank says (an empty standing where there is no file), and those that are gone.
        """
        now, found, gone = time.monotonic(), {}, set()
        for k in self.ranks:
            found[k] = read_standing(self.folder, k) or Standing(k)
            count, since = self._seen.get(k, (-1, now))
            if found[k].count != count:
                since = now
            self._seen[k] = (found[k].count, since)
            if now - since > self.patience:
                gone.add(k)
        return found, gone


def verdict(standings: Mapping[int, Standing], gone: Iterable[int], limit: float, stage: str) -> str | None:
    """Who keeps the run from going on, in one sentence; None as long as some rank still works.

    Args:
        standings: of all ranks, this one's included.
        gone: ranks that give no sign of life.
        limit: seconds without progress that are too many.
        stage: its name, for a run of one process.
    """
    away = [standings[k] for k in sorted(set(gone)) if standings[k].state not in ("stalled", "ended")]
    here = [one for _, one in sorted(standings.items()) if one not in away]
    if any(one.state == "running" and one.idle < limit for one in here):
        return None
    behind = [one for one in here if one.collective is None]
    waiting = [one for one in here if one.collective is not None]
    if len(standings) == 1:
        return _stands(here[0], stage)
    if not behind and not away:
        places = "; ".join(f"{one.name} in {one.collective} ({one.where})" for one in waiting)
        idle = max(one.idle for one in waiting)
        return f"all ranks have been waiting for one another for {idle:.0f} s in step {waiting[0].step}: {places}"
    told = [f"{one.name}{_process(one)} gives no sign of life; it was last seen in step {one.step}" for one in away]
    told += [_stands(one, one.name) for one in behind]
    return "; ".join([*told, *_waiting(waiting, len(told))])


def failure(standings: Mapping[int, Standing]) -> str | None:
    """The error that ended another rank, if one did."""
    for _, one in sorted(standings.items()):
        if one.state == "failed":
            return f"{one.name} failed in step {one.step}: {one.error}"
    return None


def _stands(one: Standing, name: str) -> str:
    waits = f", waiting in {one.collective}" if one.collective else ""
    return (
        f"{name} has not finished step {one.step} for {one.idle:.0f} s ({one.phase}): it stands in {one.where}{waits}"
    )


def _process(one: Standing) -> str:
    return f", process {one.pid}," if one.pid else ""


def _waiting(waiting: list[Standing], behind: int) -> list[str]:
    """`ranks 0, 2 wait for it in all_reduce`."""
    groups: dict[str, list[int]] = {}
    for one in waiting:
        groups.setdefault(str(one.collective), []).append(one.rank)
    whom = "it" if behind == 1 else "them"
    return [
        f"rank {ranks[0]} waits for {whom} in {name}"
        if len(ranks) == 1
        else f"ranks {', '.join(map(str, ranks))} wait for {whom} in {name}"
        for name, ranks in groups.items()
    ]
