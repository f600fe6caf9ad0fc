"""Files that may lie beside `metadata.jsonl`: reports, journals, licences, fingerprints. A link is never followed out of the set."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

CASE_JOURNALS = ("annotations.jsonl", "review.jsonl")
"""Journals whose lines name a case by its id in `case`: every paid answer, and who changed what in which report."""


def side_file(root: str | os.PathLike[str], name: str) -> Path:
    """The path of a side file or folder of a case set, which need not exist.

    A case set that somebody handed over may hold a symbolic link in its place. Images may be links into trusted folders
    (`paths.inside`); side files never, since their content is copied or written to.

    Raises:
        ValueError: a symbolic link leads out of the case set.
    """
    path = Path(root, name)
    real, own = os.path.realpath(path), os.path.realpath(root)
    if real != own and not real.startswith(own.rstrip(os.sep) + os.sep):
        raise ValueError(f"{path}: a symbolic link leads out of the case set to {real}; wanted a file of its own")
    return path


def own_folder(root: str | os.PathLike[str], out: Path) -> Path:
    """The folder `out`, once it is no link out of the case set in which its name lies.

    Raises:
        ValueError: `out` lies in the case set by name, but a symbolic link leads out of it.
    """
    name, own = os.path.abspath(out), os.path.abspath(root)
    if name.startswith(own.rstrip(os.sep) + os.sep):
        side_file(root, os.path.relpath(name, own))
    return Path(out)


def read_lines(root: str | os.PathLike[str], name: str) -> str:
    """The text of a side file of lines, the last one ended; nothing if it is not there.

    Raises:
        ValueError: a symbolic link leads out of the case set, or the file is not UTF-8.
    """
    path = side_file(root, name)
    if not path.is_file():
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    return text if text.endswith("\n") or not text else text + "\n"


def renamed_lines(text: str, ids: Mapping[str, str]) -> str:
    """JSON lines whose `case` has its new id; lines that are no JSON object, as a killed run leaves them, are left out.

    Args:
        text: the lines.
        ids: new id of each case by its old one.
    """
    kept = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            case = row.get("case")
            if isinstance(case, str) and ids.get(case, case) != case:
                line = json.dumps(row | {"case": ids[case]}, ensure_ascii=False)
            kept.append(line + "\n")
    return "".join(kept)
