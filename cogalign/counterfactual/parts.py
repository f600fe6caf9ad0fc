"""Part files: each rank notes what it finished, line by line; at the end they become the case set's metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cogalign.counterfactual.plan import Plan
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSet
from cogalign.recipe import CounterfactualSettings
from cogalign.training.atomic import write_json, write_text

VERSION = 1
"""Raised when the same settings would give other images: parts of an older version are not used."""
LEFT_OUT = "left_out.json"
FOLDERS = ("images", "masks", "sources")


def digest(settings: CounterfactualSettings, case_set: CaseSet) -> str:
    """A short digest of all that decides the counterfactuals, but the pixels of the source images."""
    keys = {name: value for name, value in asdict(settings).items() if name != "gallery"}
    content = sha256(json.dumps([VERSION, keys], sort_keys=True).encode())
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
    """The part files of one plan, in `folder/parts-<digest>/rank-<n>.jsonl`."""

    def __init__(self, folder: Path, plan_digest: str) -> None:
        self.root = folder
        self.folder = folder / f"parts-{plan_digest}"

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
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)
        path = self.folder / f"rank-{rank}.jsonl"
        with open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    lines = b"\n" + lines
            file.write(lines)

    def merge(self, plan: Plan) -> None:
        """Write the case set's `metadata.jsonl` from all parts in the plan's order, then remove parts and stale files.

        Raises:
            RuntimeError: a counterfactual of the plan is neither made nor left out, or not one was made.
        """
        finished = self.read()
        ids = [edit.id for task in plan.tasks for edit in task.edits]
        open_ids = [edit_id for edit_id in ids if edit_id not in finished]
        if open_ids:
            raise RuntimeError(f"{self.root}: {len(open_ids)} counterfactuals were not made, the first {open_ids[0]!r}")
        rows = [finished.rows[edit_id] for edit_id in ids if edit_id in finished.rows]
        reasons = Counter(plan.left_out) + Counter(finished.left_out.values())
        write_json(self.root / LEFT_OUT, {"reasons": dict(reasons.most_common()), "counterfactuals": finished.left_out})
        if not rows:
            raise RuntimeError(f"{self.root}: no counterfactual could be made; see {LEFT_OUT} for the reasons")
        # Readers infer a column's type from the first rows: the fullest row goes first.
        rows.insert(0, rows.pop(max(range(len(rows)), key=lambda k: sum(bool(value) for value in rows[k].values()))))
        write_text(self.root / METADATA, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._clean(rows)

    def _complete(self, row: dict[str, Any]) -> bool:
        names = (row["file_name"], row["mask_file_name"], row["source_file_name"])
        return all((self.root / name).is_file() for name in names)

    def _clean(self, rows: list[dict[str, Any]]) -> None:
        """Remove pictures that no row names (of an older plan, of a killed run) and all part files."""
        named = {row[name] for row in rows for name in ("file_name", "mask_file_name", "source_file_name")}
        for folder in FOLDERS:
            for path in (self.root / folder).glob("*"):
                if f"{folder}/{path.name}" not in named:
                    path.unlink()
        for old in self.root.glob("parts-*"):
            for path in old.glob("*.jsonl"):
                path.unlink()
            old.rmdir()


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
