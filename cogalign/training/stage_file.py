"""`stage.json`: what a stage did, with what, and whether it finished. Written last, by rename."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal

from cogalign import __version__
from cogalign.training.atomic import write_json

Status = Literal["running", "finished", "failed", "interrupted", "partial"]
STATUSES = ("running", "finished", "failed", "interrupted", "partial")
"""`partial`: a part of the stage is done, as wanted; another command does the rest."""
FILE_NAME = "stage.json"
LIBRARIES = ("torch", "transformers", "lightning", "peft")


@dataclass
class StageFile:
    """What `stage.json` holds."""

    stage: str
    digest: str
    """Of the settings and of the inputs' digests; another digest means that the results are out of date."""
    work: str = ""
    """The same without the settings that come in after the stage's long work; if it stays, that work is used again."""
    status: Status = "running"
    started: str = ""
    """ISO 8601, UTC."""
    finished: str | None = None
    seconds: float = 0.0
    """Work so far in seconds, over all tries."""
    resumed: int = 0
    """How often the stage was taken up again after it had been stopped."""
    versions: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str | None = None
    """Why it failed, or which part of it is done."""

    def write(self, folder: Path) -> None:
        """Write `stage.json` into the stage's folder as a whole file."""
        write_json(folder / FILE_NAME, asdict(self))


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python, cogalign and the libraries on which results depend."""
    found = {"python": platform.python_version(), "cogalign": __version__}
    for library in LIBRARIES:
        try:
            found[library] = installed_version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def read_stage_file(folder: Path) -> StageFile | None:
    """Read a stage's `stage.json`; None if there is none, or none that can be read.

    A file that is damaged counts as no file: the stage then runs again, which is always right.
    """
    try:
        content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        stage_file = StageFile(**content)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError, TypeError):
        return None
    return stage_file if stage_file.status in STATUSES else None


def mark_failed(folder: Path, message: str) -> None:
    """Say in `stage.json` that a running stage failed; for a thread whose process is about to end.

    Args:
        folder: the stage's folder.
        message: why.

    Raises:
        OSError: the file cannot be written.
    """
    record = read_stage_file(folder)
    if record is None or record.status != "running":
        return
    record.status, record.message, record.finished = "failed", message[:2000], now()
    record.write(folder)


def digest_of(settings: Any, inputs: dict[str, str] | None = None) -> str:
    """SHA-256 over plain settings and the digests of the inputs, independent of the order of keys.

    Args:
        settings: plain JSON values.
        inputs: name of an input stage → its digest.
    """
    text = json.dumps({"settings": settings, "inputs": inputs or {}}, sort_keys=True, default=str)
    return sha256(text.encode("utf-8")).hexdigest()
