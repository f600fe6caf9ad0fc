"""Checkpoints made before, which a recipe names by their folder: where they are, and a digest of what is in them."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from cogalign.training.file_digest import sha256_of

CONFIGS = ("adapter_config.json", "config.json")
"""A PEFT adapter's folder has the first of them, a model's the second."""
WEIGHTS = ("*.safetensors", "*.bin")
NEAR = ("adapter", "model", "sft/adapter", "sft/model")
"""Where checkpoints lie in the folder of a stage and of a run."""


def given_checkpoint(key: str, name: str) -> Path:
    """The folder of a checkpoint that a recipe names.

    Args:
        key: the recipe's key, for the message.
        name: what it says.

    Raises:
        FileNotFoundError: no checkpoint is there; names one below, if there is.
    """
    folder = Path(name).expanduser()
    if is_checkpoint(folder):
        return folder
    state = "which is no folder" if not folder.is_dir() else "a folder without " + " and ".join(CONFIGS)
    near = next((folder / part for part in NEAR if is_checkpoint(folder / part)), None)
    raise FileNotFoundError(
        f"{key}: found {name!r}, {state}; wanted the folder of a PEFT adapter or of a model in hub layout"
        + (f", such as {str(near)!r}" if near else ", e.g. RUN/sft/adapter")
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like an adapter or a model."""
    return any((folder / name).is_file() for name in CONFIGS)


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint is a PEFT adapter."""
    return (folder / CONFIGS[0]).is_file()


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights and config, as 64 hexadecimal digits; names of files count, its place does not."""
    files = [folder / name for name in CONFIGS] + [path for pattern in WEIGHTS for path in folder.glob(pattern)]
    lines = [f"{path.name} {_file_digest(path, *_state(path))}" for path in sorted(files) if path.is_file()]
    return sha256("\n".join(lines).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, time: int, inode: int) -> str:
    """SHA-256 of a file; a command asks for digests many times, and weights may be gigabytes."""
    return sha256_of(path)
