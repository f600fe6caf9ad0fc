"""Names of files in a case set: safe for us, and for Hugging Face's `imagefolder`."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

DATA_ROOTS = "COGALIGN_DATA_ROOTS"
"""Environment variable: folders (separated as in PATH) into which symbolic links of a case set may lead."""
_SPLIT_WORDS = "training|train|validation|valid|dev|val|testing|test|evaluation|eval"
_SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9])({_SPLIT_WORDS})(?=[-._ 0-9]|$)")


def inside(root: Path, relative: str | os.PathLike[str]) -> Path:
    """The path `root/relative`, which need not exist, but lies inside `root`.

    A symbolic link may lead out of `root` only into a folder that the environment variable `COGALIGN_DATA_ROOTS` names
    (case sets whose images are references).

    Raises:
        ValueError: the path is empty, absolute, goes up with `..`, or a symbolic link leads out of `root`.
    """
    text = os.fspath(relative)
    pure = PurePosixPath(text.replace("\\", "/"))
    if not pure.parts or "\0" in text or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise ValueError(f"path {text!r}: wanted a path relative to {root} that stays inside it")
    path = Path(root, *pure.parts)
    real = os.path.realpath(path)
    if not any(_below(real, folder) for folder in (os.path.realpath(root), *_data_roots())):
        raise ValueError(
            f"path {text!r}: a symbolic link leads out of {root}; set {DATA_ROOTS} to the folder that it leads into "
            "if you trust it"
        )
    return path


def allow_links_into(folder: str | os.PathLike[str]) -> None:
    """Let symbolic links of case sets lead into a folder, in this process and in those that it starts."""
    real = os.path.realpath(folder)
    if real not in _data_roots():
        os.environ[DATA_ROOTS] = os.pathsep.join([*filter(None, [os.environ.get(DATA_ROOTS)]), real])


def _below(real: str, folder: str) -> bool:
    """Whether a real path is a folder or lies below it."""
    return real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)


def _data_roots() -> list[str]:
    """Real paths of the folders that links may lead into."""
    return [os.path.realpath(folder) for folder in os.environ.get(DATA_ROOTS, "").split(os.pathsep) if folder]


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
