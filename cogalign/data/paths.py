"""Names of files in a case set: safe for us, and for Hugging Face's `imagefolder`."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

_SPLIT_WORDS = "training|train|validation|valid|dev|val|testing|test|evaluation|eval"
_SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9])({_SPLIT_WORDS})(?=[-._ 0-9]|$)")


def inside(root: Path, relative: str | os.PathLike[str]) -> Path:
    """The path `root/relative`, which need not exist, but lies inside `root`.

    Raises:
        ValueError: the path is empty, absolute, goes up with `..`, or a symbolic link leads out of `root`.
    """
    text = os.fspath(relative)
    pure = PurePosixPath(text.replace("\\", "/"))
    if not pure.parts or "\0" in text or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise ValueError(f"path {text!r}: wanted a path relative to {root} that stays inside it")
    path = Path(root, *pure.parts)
    real_root = os.path.realpath(root)
    if os.path.commonpath([real_root, os.path.realpath(path)]) != real_root:
        raise ValueError(f"path {text!r}: a symbolic link leads out of {root}")
    return path


def split_word(relative: str) -> str | None:
    """The word in a path from which `imagefolder` would guess splits (`test` in `images/test-01.png`), or None.

    Such a name makes that library sort images by their names and ignore `metadata.jsonl`.
    """
    for part in PurePosixPath(relative).parts:
        found = _SPLIT_WORD.search(part)
        if found:
            return found.group(1)
    return None


def file_stem(case_id: str) -> str:
    """A file name without suffix for a case: letters, digits, `-`, `_` and `.`, no word that names a split.

    `test-01` becomes `testx-01`.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", case_id).strip(".-") or "case"
    return _SPLIT_WORD.sub(lambda found: found.group(0) + "x", plain)


def slug(text: str) -> str:
    """Lower-case words joined with `-`: `Small bowel_terminal ileum` becomes `small-bowel-terminal-ileum`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "")).strip("-")
