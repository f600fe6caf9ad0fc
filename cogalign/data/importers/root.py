"""Finding a data set's root, and messages for a folder that is not one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogalign.data.cards.card import Card, Layout
from cogalign.data.cards.find import list_cards
from cogalign.data.importers.tree import Tree

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
    found = _roots(src, card.layout)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(src)) for path in found[:_SHOWN])
        raise ValueError(f"{src}: {len(found)} folders have the layout {card.id!r}: {names}; name one of them")
    if found:
        return found[0]
    raise FileNotFoundError(_not_this(src, card))


def _roots(src: Path, layout: Layout) -> list[Path]:
    """The folders of the first level at which the markers are all there."""
    level = [src]
    for _ in range(_DEPTH + 1):
        found = [folder for folder in level if not missing_markers(folder, layout)]
        if found:
            return found
        level = [path for folder in level for path in _folders(folder)]
    return []


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted; what cannot be read has none."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def missing_markers(folder: Path, layout: Layout) -> list[str]:
    """The root markers that are not below a folder."""
    return [
        marker
        for marker in layout.root_markers
        if not any(next(folder.glob(one), None) is not None for one in marker.split("|"))
    ]


def _not_this(src: Path, card: Card) -> str:
    """What was wanted, what was found, and which card fits."""
    wanted = ", ".join(repr(marker) for marker in missing_markers(src, card.layout))
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in src.iterdir())
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    text = f"{src}: not the layout {card.id!r}: wanted {wanted} in it, found {shown or 'nothing'}"
    fitting = nearest_cards(src, card)
    if fitting:
        text += f"; the folder fits the card {' or '.join(repr(name) for name in fitting)}"
    packed = [name for name in names if name.lower().endswith(ARCHIVES)]
    if packed:
        text += f"; {packed[0]} is packed: unpack it first"
    return text


def nearest_cards(src: Path, card: Card) -> list[str]:
    """Ids of the other cards whose markers fit the folder best: those that ask for most, at most three."""
    fitting = {}
    for other in list_cards():
        if other.id != card.id and len(_roots(src, other.layout)) == 1:
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
