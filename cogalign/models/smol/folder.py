"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogalign.training.atomic import named, readable, temporary_name


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that gets the name `final` only when the block ends without an error.

    Raises:
        FileExistsError: `final` is there, and is no empty folder.
        OSError: the disk is full or cannot be written; nothing is left of what was made.
    """
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise FileExistsError(f"{final}: is there already; give a new folder")
    partial = temporary_name(final)
    try:
        with named(final):
            partial.mkdir(parents=True)
            yield partial
            readable(partial)
            os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
