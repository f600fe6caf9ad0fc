"""Procedural endoscopy: the embedded default, where what confounds is known."""

from __future__ import annotations

from pathlib import Path

from cogalign.recipe import PhantomSettings


def write_phantom(settings: PhantomSettings, folder: Path) -> Path:
    """Write a case set of phantoms; see `cogalign.data.phantom.dataset.write_phantom`."""
    from cogalign.data.phantom.dataset import write_phantom as write

    return write(settings, folder)
