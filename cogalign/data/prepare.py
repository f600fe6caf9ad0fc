"""The case set of a run: the one that is named, or phantoms or public data sets written into the run's folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cogalign.data.caseset import METADATA, read_case_set
from cogalign.recipe import DataSettings
from cogalign.training.atomic import write_json

SETTINGS = "prepared.json"
"""The settings from which a folder was made; `metadata.jsonl` beside it says that it is finished."""
_SOURCES = ("case_set", "phantom", "imports")
_USED = {
    "phantom": ("phantom",),
    "imports": ("imports", "root", "image_side", "test_share", "seed"),
}


def prepare(settings: DataSettings, folder: Path) -> Path:
    """The folder of a run's case set: `settings.case_set`, or `folder`, into which phantoms or imports are written.

    A second call with the same settings finds the work done. A call that was broken off, or one with other
    settings, makes the case set anew.

    Raises:
        ValueError: not exactly one of `case_set`, `phantom` and `imports` is given, or the data have an error.
        FileNotFoundError: the case set or a data set is not there.
        FileExistsError: `folder` holds a case set that this function did not make.
    """
    source = _source(settings)
    if source == "case_set":
        return read_case_set(str(settings.case_set)).root
    wanted = _made_from(settings, source)
    if (folder / METADATA).is_file():
        found = _read_settings(folder / SETTINGS)
        if found is None:
            raise FileExistsError(
                f"{folder}: holds a case set of other origin; wanted an empty folder, or data.case_set"
            )
        if found == wanted:
            return folder
        (folder / METADATA).unlink()
    write_json(folder / SETTINGS, wanted)
    if source == "phantom" and settings.phantom is not None:
        from cogalign.data.phantom import write_phantom

        write_phantom(settings.phantom, folder)
    else:
        from cogalign.data.importers.importer import import_data_sets

        import_data_sets(settings, folder)
    return folder


def case_set_digest(root: str | os.PathLike[str]) -> str:
    """SHA-256 of a case set's `metadata.jsonl`, as 64 hexadecimal digits.

    Raises:
        FileNotFoundError: there is no `metadata.jsonl`.
    """
    path = Path(root) / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a case set is a folder of images with a {METADATA}")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _source(settings: DataSettings) -> str:
    """Which of the three sources is given."""
    given = [name for name in _SOURCES if getattr(settings, name)]
    if len(given) != 1:
        found = " and ".join(f"data.{name}" for name in given) or "none of them"
        raise ValueError(f"data: found {found}, wanted exactly one of data.case_set, data.phantom and data.imports")
    return given[0]


def _made_from(settings: DataSettings, source: str) -> dict[str, Any]:
    """The settings on which the files of a case set depend, as plain JSON values."""
    values = asdict(settings)
    return json.loads(json.dumps({name: values[name] for name in _USED[source]}))


def _read_settings(path: Path) -> dict[str, Any] | None:
    """The settings of an earlier call, or None if there are none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
