"""The images of a file that is imported: found, opened once each, copied into the case set."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from cogalign.data.images import load_rgb, open_image
from cogalign.data.interchange.sample import Picture
from cogalign.data.paths import file_stem, inside, split_word

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Pictures:
    """Copies images into a case set, each once, however many rows show it."""

    def __init__(self, out: Path, root: Path) -> None:
        """Keep where the images go, and the folder in which they must lie."""
        self.out, self.root = out, root
        self._done: dict[str, str | ValueError] = {}
        self._taken: set[str] = set()

    def add(self, picture: Picture) -> str:
        """The file name of an image in the case set.

        Raises:
            ValueError: it is missing, broken or outside the folder; the message says which.
        """
        key = picture.key or picture.path.replace("\\", "/")
        if key not in self._done:
            try:
                self._done[key] = self._brought(picture)
            except (ValueError, OSError) as error:
                self._done[key] = ValueError(_short(error, self.root))
        found = self._done[key]
        if isinstance(found, ValueError):
            raise found
        return found

    def add_file(self, relative: str) -> None:
        """Copy a mask or another file of a case under its own name, once; raises ValueError as `add` does."""
        if relative in self._taken:
            return
        source = self._found(relative)
        load_rgb(source)
        self._copied(source, relative)

    def _brought(self, picture: Picture) -> str:
        if picture.content is not None:
            return self._written(picture.content, picture.path)
        if not picture.path:
            raise ValueError("no image")
        source = self._found(picture.path)
        load_rgb(source)
        relative = source.relative_to(self.root).as_posix()
        return self._copied(source, self._name(relative))

    def _found(self, path: str) -> Path:
        """The file of a path as the row has it: relative to the folder, or absolute and inside it."""
        text = path.replace("\\", "/").removeprefix("file://")
        if Path(text).is_absolute():
            try:
                text = Path(text).relative_to(self.root.absolute()).as_posix()
            except ValueError:
                raise ValueError(
                    f"image {path!r} is not inside the folder of the images (option --images-root)"
                ) from None
        text = PurePosixPath(text).as_posix()
        found = inside(self.root, text)
        if found.is_file():
            return found
        if found.suffix.lower() not in SUFFIXES:
            for suffix in SUFFIXES:
                if (other := inside(self.root, text + suffix)).is_file():
                    return other
        raise ValueError(f"image {path!r}: no such file in the folder of the images (option --images-root)")

    def _written(self, content: bytes, path: str) -> str:
        """Write the bytes of an image, whose format gives the suffix where the path has none."""
        temporary = self.out / ".image"
        temporary.write_bytes(content)
        try:
            load_rgb(temporary)
            with open_image(temporary) as opened:
                suffix = {"JPEG": ".jpg", "MPO": ".jpg"}.get(str(opened.format), f".{str(opened.format).lower()}")
        except ValueError:
            temporary.unlink()
            raise ValueError(f"image {path!r}: {len(content)} bytes that are no readable image") from None
        pure = PurePosixPath(path.replace("\\", "/"))
        safe = not pure.is_absolute() and ".." not in pure.parts and pure.name
        name = pure.as_posix() if safe else f"images/{file_stem(pure.name)}"
        if pure.suffix.lower() not in SUFFIXES:
            name += suffix
        name = self._name(name)
        target = inside(self.out, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        return name

    def _name(self, relative: str) -> str:
        """A name of its own in the case set: the path, without words that name a split."""
        pure = PurePosixPath(relative)
        if split_word(relative):
            parts = [part if not split_word(part) else file_stem(part) for part in pure.parts]
            pure = PurePosixPath(*parts)
        name, count = pure.as_posix(), 1
        while name in self._taken:
            count += 1
            name = pure.with_stem(f"{pure.stem}_{count}").as_posix()
        self._taken.add(name)
        return name

    def _copied(self, source: Path, name: str) -> str:
        self._taken.add(name)
        target = inside(self.out, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return name


def _short(error: Exception, root: Path) -> str:
    """The message without the folder's own path."""
    return str(error).replace(f"{root}/", "").replace(str(root), "the folder of the images")
