"""The files below a folder, walked once."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from cogalign.data.cards.template import alternatives, filled_regex, group_name, parse, placeholders, regex_of
from cogalign.data.importers.base import Rejected
from cogalign.data.paths import inside

IMPORTED = ".import"
"""Folder that tells a case set which an import wrote."""


class Tree:
    """The files below `root` as sorted relative paths with `/`.

    Hidden files, `__MACOSX` and case sets that an import wrote are left out. Linked folders are followed where they stay
    in the root (or in `COGALIGN_DATA_ROOTS`); the others are in `refused`. Files that must not be opened are in `files`
    too, so that what belongs to them is known, and `problems` says by path what is wrong: a link that leads out of the
    root or nowhere, a pipe or device, a name that is not UTF-8.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refused: list[Rejected] = []
        self.problems: dict[str, str] = {}
        self.files: list[str] = sorted(self._walk("", {os.path.realpath(root)}))
        self._by_folder: dict[str, list[tuple[str, str]]] = {}
        for path in self.files:
            folder, _, name = path.rpartition("/")
            self._by_folder.setdefault(folder, []).append((name, path))
        for entries in self._by_folder.values():
            entries.sort()

    def _walk(self, folder: str, above: set[str]) -> Iterator[str]:
        """Files below a folder; `above` are the real paths of the folders on the way, against links in a circle."""
        with os.scandir(self.root / folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        if folder and any(entry.name == IMPORTED for entry in found):
            return
        for entry in found:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not entry.is_dir():
                if not entry.is_file(follow_symlinks=False) or not path.isascii():
                    self._examine(path)
                yield path
                continue
            real = os.path.realpath(self.root / path) if entry.is_symlink() else ""
            if entry.is_symlink():
                try:
                    inside(self.root, path)
                except ValueError as error:
                    self.refused.append(Rejected(self.root / path, str(error)))
                    continue
                if real in above:
                    continue
            yield from self._walk(path, above | {real} if real else above)

    def _examine(self, path: str) -> None:
        """Note what is wrong with a link, with what is no file, or with a name that is not of plain letters."""
        try:
            path.encode()
            inside(self.root, path)
            if not (self.root / path).is_file():
                raise ValueError("neither a file nor a link to one (a broken link, a pipe, a device?)")
        except UnicodeEncodeError:
            self.problems[path] = "its name is not UTF-8; rename it"
        except (ValueError, OSError) as error:
            self.problems[path] = str(error)

    def all(self, pattern: str) -> list[Path]:
        """The files that fit a pattern; of `a|b` those of the first alternative that has one.

        Raises:
            ValueError: one of them must not be opened.
        """
        for one in alternatives(pattern):
            if found := self.matching(one):
                for path in found:
                    if path in self.problems:
                        raise ValueError(f"{shown(path)}: {self.problems[path]}")
                return [self.root / path for path in found]
        return []

    def problem(self, paths: Iterable[str]) -> str:
        """What is wrong with the first of some files that must not be opened; empty if there is none."""
        if not self.problems:
            return ""
        return next((f"{shown(path)}: {self.problems[path]}" for path in paths if path in self.problems), "")

    def first(self, pattern: str) -> Path | None:
        """The first of `all`, or None."""
        return next(iter(self.all(pattern)), None)

    def matching(self, pattern: str) -> list[str]:
        """The relative paths that fit a pattern without placeholders, sorted."""
        if not re.search(r"[*?{]", pattern):
            return [pattern] if pattern in self._all else []
        expression = regex_of(pattern)
        return [path for path in self.files if expression.fullmatch(path)]

    def beside(self, template: str, fields: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """Files that fit a template once its known fields are filled in, and the texts of its other placeholders.

        Of alternatives `a|b` those of the first that has one. A folder that is wholly known is searched by the beginning
        of the name alone, so that a hundred thousand images find their masks in a short time. Ask `problem` for them.
        """
        for one in alternatives(template):
            if found := self._beside(one, fields):
                return found
        return []

    def _beside(self, template: str, fields: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """`beside` for one alternative."""
        folder_part, _, name_part = template.rpartition("/")
        folder = _filled(folder_part, fields)
        entries = self._by_name if folder is None else self._by_folder.get(folder, [])
        start, rest = _literal_start(name_part, fields)
        near = []
        for index in range(bisect_left(entries, (start, "")), len(entries)):
            if not entries[index][0].startswith(start):
                break
            near.append(entries[index])
        if folder is not None and rest in ("", "*"):  # the common case, which needs no expression
            return [(path, {}) for name, path in near if rest or name == start]
        free = [name for name in placeholders(template) if name not in fields]
        expression = filled_regex(template if folder is None else name_part, fields) if near else None
        found = []
        for name, path in near:
            match = expression.fullmatch(path if folder is None else name) if expression else None
            if match:
                found.append((path, {one: match[group_name(one)] for one in free}))
        return found

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.files)

    @cached_property
    def _by_name(self) -> list[tuple[str, str]]:
        """Name and path of every file, sorted."""
        return sorted((path.rpartition("/")[2], path) for path in self.files)


def shown(path: str) -> str:
    """A path in a message: bytes that are no UTF-8 as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _filled(folder: str, fields: Mapping[str, str]) -> str | None:
    """The folder part of a template as a path; None if a placeholder or wildcard is left."""
    text = ""
    for part in parse(folder):
        value = part if isinstance(part, str) else fields.get(part.name)
        if value is None or (isinstance(part, str) and re.search(r"[*?]", part)):
            return None
        text += value
    return text


def _literal_start(name: str, fields: Mapping[str, str]) -> tuple[str, str]:
    """What a file name that fits begins with, and what of the template comes after (`?` if that is not one literal)."""
    text = ""
    parts = parse(name)
    for number, part in enumerate(parts):
        if isinstance(part, str):
            wild = re.search(r"[*?]", part)
            if wild:
                return text + part[: wild.start()], part[wild.start() :] if number == len(parts) - 1 else "?"
            text += part
        elif part.name not in fields:
            return text, "?"
        else:
            text += fields[part.name]
    return text, ""
