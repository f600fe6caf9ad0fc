"""Part files: each rank notes what it finished, line by line; at the end they become the case set's metadata."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cogalign.counterfactual.located import Located
from cogalign.counterfactual.plan import Plan
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSet, write_metadata
from cogalign.recipe import CounterfactualSettings
from cogalign.training.atomic import append_lines, write_json, write_text

VERSION = 2
"""Raised when the same settings would give other images: parts of an older version are not used."""
LEFT_OUT = "left_out.json"
REJECTED = "rejected.jsonl"
FOLDERS = ("images", "masks", "sources")
WITHOUT_EFFECT = ("gallery", "workers", "quality", "masks")
"""Settings that do not change a picture; where the masks lie is told beside them."""


def digest(settings: CounterfactualSettings, case_set: CaseSet, located: Mapping[str, Located]) -> str:
    """A short digest of all that decides the counterfactuals, but the pixels of the source images."""
    keys = {name: value for name, value in asdict(settings).items() if name not in WITHOUT_EFFECT}
    found = sorted((name, one.provenance, one.confidence, one.reason) for name, one in located.items())
    content = sha256(json.dumps([VERSION, keys, found], sort_keys=True).encode())
    content.update((case_set.root / METADATA).read_bytes())
    return content.hexdigest()[:12]


@dataclass
class Finished:
    """What the part files hold: rows of finished counterfactuals and reasons of those left out, by id."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __contains__(self, edit_id: object) -> bool:
        return edit_id in self.rows or edit_id in self.left_out


class Parts:
    """The part files of one plan, in `folder/parts-<digest>/rank-<writer><n>.jsonl`."""

    def __init__(self, folder: Path, plan_digest: str) -> None:
        self.root = folder
        self.folder = folder / f"parts-{plan_digest}"
        self.writer = ""

    def of_writer(self, writer: str) -> Parts:
        """The same parts; what is added goes to files of this writer's own, where other jobs add to theirs."""
        own = copy(self)
        own.writer = writer
        return own

    def read(self) -> Finished:
        """All complete lines of all ranks whose files are there. A line cut off by a kill does not count."""
        finished = Finished()
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                entry = _entry(line)
                if entry is None:
                    continue
                if "left_out" in entry:
                    finished.left_out[entry["id"]] = entry["left_out"]
                elif self._complete(entry["row"]):
                    finished.rows[entry["id"]] = entry["row"]
        return finished

    def append(self, rank: int, entries: Iterable[dict[str, Any]]) -> None:
        """Add lines to the file of a rank, after what a killed run left there."""
        append_lines(self.folder / f"rank-{self.writer}{rank}.jsonl", entries)

    def rows(self, plan: Plan) -> list[dict[str, Any]]:
        """The rows of all counterfactuals that were made, in the plan's order.

        Raises:
            RuntimeError: a counterfactual of the plan is neither made nor left out, or not one was made.
        """
        finished = self.read()
        ids = [edit.id for task in plan.tasks for edit in task.edits]
        open_ids = [edit_id for edit_id in ids if edit_id not in finished]
        if open_ids:
            raise RuntimeError(f"{self.root}: {len(open_ids)} counterfactuals were not made, the first {open_ids[0]!r}")
        rows = [finished.rows[edit_id] for edit_id in ids if edit_id in finished.rows]
        if not rows:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self._reasons(plan, finished).items())
            raise ValueError(f"{self.root}: no counterfactual could be made: {reasons}")
        return rows

    def finish(self, plan: Plan, accepted: Sequence[Case], rejected: Sequence[Case]) -> None:
        """Write `left_out.json`, `rejected.jsonl` and, last, the case set's `metadata.jsonl`.

        The part files stay: with other limits or another gallery nothing has to be made again.

        Args:
            plan: what was to be made.
            accepted: the counterfactuals of the case set.
            rejected: those that failed the quality gate; their pictures stay where they are.

        Raises:
            ValueError: the gate left nothing.
        """
        if not accepted:
            raise ValueError(
                f"{self.root}: all {len(rejected)} counterfactuals failed the quality gate; wider limits stand under "
                "counterfactual.quality, null switches one off"
            )
        finished = self.read()
        reasons = dict(self._reasons(plan, finished).most_common())
        write_json(self.root / LEFT_OUT, {"reasons": reasons, "counterfactuals": finished.left_out})
        write_text(self.root / REJECTED, _lines([case.to_row() for case in rejected]))
        write_metadata(self.root, [case.to_row() for case in accepted])

    def _reasons(self, plan: Plan, finished: Finished) -> Counter[str]:
        """How many cases and counterfactuals each reason left out."""
        return Counter(plan.left_out) + Counter(finished.left_out.values())

    def _complete(self, row: dict[str, Any]) -> bool:
        """Whether the pictures of a row are there; an empty one is what a machine leaves that lost power."""
        names = (row["file_name"], row["mask_file_name"], row["source_file_name"])
        return all(path.is_file() and path.stat().st_size > 0 for path in (self.root / name for name in names))

    def clean(self, cases: Iterable[Case]) -> None:
        """Remove pictures that no case names (of an older plan, of a killed run) and the part files of other plans."""
        named = {name for case in cases for name in (case.file_name, case.mask_file_name, case.source_file_name)}
        for folder in FOLDERS:
            for path in (self.root / folder).glob("*"):
                if f"{folder}/{path.name}" not in named:
                    path.unlink()
        for old in self.root.glob("parts-*"):
            if old == self.folder:
                continue
            # All is done: on NFS a file that somebody holds open leaves another one behind, which must not fail the stage.
            shutil.rmtree(old, ignore_errors=True)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rejected(folder: Path) -> list[Case]:
    """The counterfactuals that failed the quality gate, of a finished stage; the reasons are in their attributes."""
    path = folder / REJECTED
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Case.from_row(json.loads(line)) for line in lines]


def read_left_out(folder: Path) -> dict[str, int]:
    """How many cases or counterfactuals each reason left out, of a finished stage."""
    reasons: dict[str, int] = json.loads((folder / LEFT_OUT).read_text(encoding="utf-8"))["reasons"]
    return reasons


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of a part file, or None if it is empty or cut off."""
    try:
        entry = json.loads(line)
        if "left_out" not in entry:
            Case.from_row(entry["row"])
    except (ValueError, KeyError, TypeError):
        return None
    return entry if isinstance(entry.get("id"), str) else None
