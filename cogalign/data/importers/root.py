"""Finding a data set's root, and messages for a folder that is not one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cogalign.data.cards.card import Card, Layout
from cogalign.data.cards.find import list_cards
from cogalign.data.importers.tree import IMPORTED, Tree, shown

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_DEPTH = 2
"""Levels below the given folder at which the root may lie: archives often hold one folder."""
_SHOWN = 8


def find_root(src: Path, card: Card) -> Path:
    """The folder in which the card's markers lie: `src`, or the only such folder up to two levels below it.

    Raises:
        FileNotFoundError: there is none; the message says what was wanted and found, and which card fits.
        ValueError: several folders of one level fit; the message names them.
    """
    if not src.is_dir():
        raise FileNotFoundError(f"{src}: no such folder")
    folders = Folders()
    found = _roots(src, card.layout, folders)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(src)) for path in found[:_SHOWN])
        raise ValueError(f"{src}: {len(found)} folders have the layout {card.id!r}: {names}; name one of them")
    if found:
        return found[0]
    raise FileNotFoundError(_not_this(src, card, folders))


class Folders:
    """The folders in a folder, each looked at once however many cards ask."""

    def __init__(self) -> None:
        self._found: dict[Path, list[Path]] = {}

    def of(self, folder: Path) -> list[Path]:
        """Sorted; without hidden ones and case sets that an import wrote. What cannot be read has none."""
        if folder not in self._found:
            try:
                with os.scandir(folder) as entries:
                    names = sorted(one.name for one in entries if not one.name.startswith(".") and one.is_dir())
            except OSError:
                names = []
            self._found[folder] = [folder / name for name in names if not (folder / name / IMPORTED).is_dir()]
        return self._found[folder]


def _roots(src: Path, layout: Layout, folders: Folders) -> list[Path]:
    """The folders of the first level at which the markers are all there."""
    level = [src]
    for _ in range(_DEPTH + 1):
        found = [folder for folder in level if not missing_markers(folder, layout)]
        if found:
            return found
        level = [path for folder in level for path in folders.of(folder)]
    return []


def missing_markers(folder: Path, layout: Layout) -> list[str]:
    """The root markers that are not below a folder."""
    return [
        marker
        for marker in layout.root_markers
        if not any(next(folder.glob(one), None) is not None for one in marker.split("|"))
    ]


def _not_this(src: Path, card: Card, folders: Folders) -> str:
    """What was wanted, what was found, and which card fits."""
    wanted = ", ".join(repr(marker) for marker in missing_markers(src, card.layout))
    with os.scandir(src) as entries:
        names = sorted(shown(entry.name) + ("/" if entry.is_dir() else "") for entry in entries)
    found = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    text = f"{src}: not the layout {card.id!r}: wanted {wanted} in it, found {found or 'nothing'}"
    fitting = nearest_cards(src, card, folders)
    if fitting:
        text += f"; the folder fits the card {' or '.join(repr(name) for name in fitting)}"
    packed = [name for name in names if name.lower().endswith(ARCHIVES)]
    if packed:
        text += f"; {packed[0]} is packed: unpack it first"
    return text


def nearest_cards(src: Path, card: Card, folders: Folders) -> list[str]:
    """Ids of the other cards whose markers fit the folder best: those that ask for most, at most three."""
    fitting = {}
    for other in list_cards():
        if other.id != card.id and len(_roots(src, other.layout, folders)) == 1:
            fitting[other.id] = len(other.layout.root_markers)
    best = max(fitting.values(), default=0)
    return sorted(name for name, count in fitting.items() if count == best)[:3]


def refuse_packed(tree: Tree, card: Card, images: Sequence[str]) -> None:
    """Refuse a data set of which archives are left that were not unpacked.

    An archive is unpacked if a folder of its name lies beside it; where no archive has such a folder, if any image
    lies in its folder.

    Args:
        tree: the files of the data set.
        card: its `layout.archives` are the patterns of the archives.
        images: relative paths of the images that were found.

    Raises:
        FileNotFoundError: the message names the first archive and how to unpack it.
    """
    for pattern in card.layout.archives:
        archives = tree.matching(pattern)
        packed = [path for path in archives if not (tree.root / _unpacked_name(path)).is_dir()]
        if not packed:
            continue
        folder = packed[0].rpartition("/")[0]
        by_name = len(packed) < len(archives)
        if by_name or not any(path.startswith(f"{folder}/" if folder else "") for path in images):
            how = "unzip" if packed[0].lower().endswith(".zip") else "tar -xf"
            raise FileNotFoundError(
                f"{tree.root}: half unpacked: {len(packed)} of {len(archives)} archives are not, the first: "
                f"{packed[0]}; unpack it there ({how} ...)"
            )


def _unpacked_name(path: str) -> str:
    """The path of an archive without its suffix."""
    suffix = max((one for one in ARCHIVES if path.lower().endswith(one)), key=len, default="")
    return path[: len(path) - len(suffix)]
