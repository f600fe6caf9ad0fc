"""What was found of where lesions are: the files of a search for masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cogalign.counterfactual.masks import Mask
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import load_mask
from cogalign.training.atomic import append_lines, write_bytes, write_text

FOLDER = "located"
LIST = "located.jsonl"
EXPERT = "expert"
"""Provenance of a mask of the case set itself."""


@dataclass(frozen=True)
class Located:
    """Where a case's lesions are.

    Attributes:
        file: PNG mask; None where no mask can be trusted.
        provenance: one of `evidence.PROVENANCES`; empty without a mask.
        confidence: in [0, 1].
        reason: why there is no mask; empty with one.
    """

    file: Path | None
    provenance: str = ""
    confidence: float = 0.0
    reason: str = ""


class Store:
    """What was found, in `folder/located/<digest>.rank-<n>.jsonl` and one PNG file a mask."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.root, self.folder, self.digest = folder, folder / FOLDER, digest

    def mask_file(self, position: int) -> Path:
        """The mask of the case at this place of the case set."""
        return self.folder / f"{position:06d}.png"

    def read(self, todo: Sequence[tuple[int, Case]]) -> dict[str, Located]:
        """What all ranks noted of these cases. A line cut off by a kill, or without its picture, does not count."""
        lines: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob(f"{self.digest}.rank-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    lines[entry["id"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue
        found: dict[str, Located] = {}
        for position, case in todo:
            entry = lines.get(case.id, {})
            if "reason" in entry:
                found[case.id] = Located(None, reason=str(entry["reason"]))
            elif "provenance" in entry and self.mask_file(position).is_file():
                found[case.id] = Located(self.mask_file(position), str(entry["provenance"]), float(entry["confidence"]))
        return found

    def append(self, rank: int, entries: Sequence[dict[str, Any]]) -> None:
        """Add lines to the file of a rank, after what a killed run left there."""
        append_lines(self.folder / f"{self.digest}.rank-{rank}.jsonl", entries)

    def forget_others(self, todo: Sequence[tuple[int, Case]], found: dict[str, Located]) -> None:
        """Remove what older settings left: their lines, and the masks that no line names."""
        named = {one.file for one in found.values()}
        for path in self.folder.glob("*"):
            stale = path.suffix == ".png" and path not in named
            if stale or (path.suffix == ".jsonl" and not path.name.startswith(f"{self.digest}.")):
                path.unlink()

    def write_list(self, case_set: CaseSet, located: dict[str, Located]) -> None:
        """Write `located.jsonl`: id, file (expert: in the case set; else in the stage's folder) and the rest."""
        rows: list[dict[str, Any]] = []
        for name, one in located.items():
            if one.file is None:
                rows.append({"id": name, "reason": one.reason})
                continue
            base = case_set.root if one.provenance == EXPERT else self.root
            file_name = one.file.relative_to(base).as_posix() if one.file.is_relative_to(base) else one.file.name
            rows.append({"id": name, "file_name": file_name, "provenance": one.provenance,
                         "confidence": one.confidence})  # fmt: skip
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = self.root / LIST
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def mask_of(case_set: CaseSet, case: Case, located: Mapping[str, Located]) -> Mask | None:
    """The mask (H x W) of a case: the one that was found for it, else that of the case set; None where neither is there.

    Raises:
        FileNotFoundError, ValueError: its file is missing or unreadable.
    """
    found = located.get(case.id)
    file = None if found is None or found.provenance == EXPERT else found.file
    return case_set.mask(case) if file is None else load_mask(file)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask as a PNG file of one channel, 255 on the lesion; whole or not at all."""
    _, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    write_bytes(path, encoded.tobytes())
