"""Opening image files: only formats that images of ours have."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000")
"""What is opened, whatever a file is called: others of Pillow's formats start programs (EPS) or are hardly ever tested."""


def open_image(source: Path | IO[bytes]) -> ImageFile.ImageFile:
    """A file as Pillow opens it, if it has one of the `FORMATS`; nothing is decoded yet.

    Raises:
        UnidentifiedImageError: it has none of them.
        OSError: it cannot be read.
    """
    return Image.open(source, formats=FORMATS)
