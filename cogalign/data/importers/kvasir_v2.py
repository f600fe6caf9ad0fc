"""Kvasir v1 and v2: `<class>/<name>.jpg`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cogalign.data.importers.base import Layout, Photograph, Rejected, image_files

CLASSES = ("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus",
           "normal-z-line", "polyps", "ulcerative-colitis")  # fmt: skip

_IN_THE_COLON = ("dyed-lifted-polyps", "dyed-resection-margins", "polyps")


def read(folder: Path) -> Iterator[Photograph | Rejected]:
    """The photographs of the eight classes.

    Raises:
        FileNotFoundError: none of the eight folders is there.
    """
    found = [name for name in CLASSES if (folder / name).is_dir()]
    if not found:
        raise FileNotFoundError(
            f"{folder}: not the layout {LAYOUT.name!r}: wanted folders such as {', '.join(CLASSES)}"
        )
    for name in found:
        for path in image_files(folder / name):
            yield Photograph(path, name, f"{name}/{path.stem}", "colon" if name in _IN_THE_COLON else None)


LAYOUT = Layout("kvasir-v2", "Kvasir v2", "research and education; commercial use needs permission", read)
