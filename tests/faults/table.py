"""The table of `docs/faults.md`: a row a fault, as the tests found it. COGALIGN_WRITE_FAULTS=1 writes what they find."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/faults.md"


@dataclass(frozen=True)
class Row:
    """What became of a fault; `lost` is in optimizer steps where it does not say of what."""

    fault: str
    detected: str
    message: str
    lost: str
    resumed: str

    def line(self, names: Mapping[Path, str]) -> str:
        """The row in Markdown; what changes from run to run has a name instead."""
        cells = (self.fault, self.detected, f"`{plain(self.message, names)}`", self.lost, self.resumed)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def plain(message: str, names: Mapping[Path, str]) -> str:
    """A message without the paths and numbers of one machine."""
    for path, name in names.items():
        message = message.replace(str(path), name)
    for pattern, new in (
        (r"\(host [^)]*\)", "(host n1)"),
        (r"process \d+", "process 4711"),
        (r"\d+(\.\d+)? (MiB|GiB|KiB)", r"N \2"),
        (r"(for|than) [\d.]+ s\b", r"\1 N s"),
        (r"-[0-9a-f]{12}\b", "-KEY"),
        (r"\.py:\d+ ", ".py:88 "),
        (r"for run [0-9a-z]+", "for run ID"),
        (r"127\.0\.0\.1:\d+", "HOST"),
        (r"loss [\d.e+-]+,", "loss N,"),
        (r"norm [\d.e+-]+\b", "norm N"),
        (rf"\b{re.escape(socket.gethostname())}\b", "n1"),
    ):
        message = re.sub(pattern, new, message)
    return message.replace("`", "'").removeprefix("cogalign: error: ").removeprefix("cogalign: ")


def check(row: Row, names: Mapping[Path, str]) -> None:
    """Compare a row with the page, or put it there."""
    wanted = row.line(names)
    if os.environ.get("COGALIGN_WRITE_FAULTS", "") in ("", "0"):
        found = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row.fault} |")]
        assert found == [wanted], "docs/faults.md says otherwise; COGALIGN_WRITE_FAULTS=1 writes what was found"
        return
    with open(PAGE, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.read().splitlines()
        rows = [number for number, line in enumerate(lines) if line.startswith("|")]
        here = [number for number in rows if lines[number].startswith(f"| {row.fault} |")]
        if here:
            lines[here[0]] = wanted
        else:
            lines.insert(rows[-1] + 1, wanted)
        file.seek(0)
        file.truncate()
        file.write("\n".join(lines) + "\n")
