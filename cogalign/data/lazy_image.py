"""An image that is decoded when its pixels are asked for, and not before.

What a processor makes of it may be known already (`cogalign.models.pixel_cache`); then the file is never opened. To all
others it is a PIL image.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import load_rgb


class LazyImage(Image.Image):
    """The image of a file as RGB; `cache_key` names the file as it is now, and is None once the pixels were changed."""

    def __init__(self, path: Path) -> None:
        """Look at the file, but not into it.

        Raises:
            FileNotFoundError: there is no such file.
        """
        super().__init__()
        self.path = path
        try:
            status = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(f"{path}: no such image") from error
        self.cache_key: str | None = (
            f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        )
        """Another one as soon as the file is written anew, even with the old size and time of change."""
        self._mode = "RGB"
        # As images of PIL that lie in a file: who changes the pixels takes a copy first, so `im` is set; and the pixels
        # that `load` gives cannot be written past it.
        self.readonly = 1

    @property
    def im(self) -> Any:
        """The pixels, decoded when they are first asked for."""
        self._decode()
        return super().im

    @im.setter
    def im(self, im: Any) -> None:
        self._im = im
        self.cache_key = None  # other pixels than the file's

    def frombytes(self, data: Any, decoder_name: str = "raw", *args: Any) -> None:
        """Put other pixels in place of the file's, see PIL; a copy of the image is changed, as everywhere else."""
        self._ensure_mutable()
        super().frombytes(data, decoder_name, *args)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        self._decode()
        return super().size

    def load(self) -> Any:
        """Decode the file, if that has not been done.

        Raises:
            ValueError: the file is no image or is cut off.
        """
        self._decode()
        return super().load()

    def _decode(self) -> None:
        if self._im is None:
            image = load_rgb(self.path)
            self._im, self._size, self.info = image.im, image.size, image.info

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the path, not the pixels; if they were changed, they go as a plain image."""
        if self.cache_key is None:
            return Image.frombytes, (self.mode, self.size, self.tobytes())
        return LazyImage, (self.path,)


def lazy_image(case_set: CaseSet, case: Case) -> LazyImage:
    """The image of a case, not decoded yet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its path leaves the case set; once it is decoded also: it is no image or is cut off.
    """
    return LazyImage(case_set.path(case.file_name))
