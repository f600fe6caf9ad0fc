"""The worst pairs of a leak report side by side: `leaks.jpg`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageOps

from cogalign.data.case import Case
from cogalign.data.images import load_rgb
from cogalign.data.paths import inside

if TYPE_CHECKING:
    from cogalign.data.leaks import Leak

SHOWN = 24
"""At most so many pairs are in the picture."""
_SIDE = 224
_CAPTION = 44
_COLUMNS = 2


def contact_sheet(root: Path, leaks: Sequence[Leak]) -> Image.Image | None:
    """The worst pairs of images side by side, with their names; None if there is no pair.

    Args:
        root: folder of the case set.
        leaks: the worst of each kind first.
    """
    shown = _worst(leaks)
    if not shown:
        return None
    rows = -(-len(shown) // _COLUMNS)
    width, height = 2 * _SIDE + 16, _SIDE + _CAPTION
    sheet = Image.new("RGB", (min(_COLUMNS, len(shown)) * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, leak in enumerate(shown):
        left, top = (number % _COLUMNS) * width, (number // _COLUMNS) * height
        for place, case in enumerate((leak.first, leak.second)):
            sheet.paste(_picture(root, case), (left + place * (_SIDE + 4), top + _CAPTION))
            draw.text((left + place * (_SIDE + 4) + 2, top + 18), _fit(case.id), fill="black")
            draw.text((left + place * (_SIDE + 4) + 2, top + 30), _fit(f"{case.split}, {case.dataset}"), fill="black")
        near = "" if leak.bits is None else f", {leak.bits} bits, {leak.difference:.1f} grey levels apart"
        draw.text((left + 2, top + 3), _fit(f"{leak.kind}{near}", 2), fill="darkred" if leak.fails else "darkblue")
    return sheet


def _worst(leaks: Sequence[Leak]) -> list[Leak]:
    """What the picture shows: each pair once, the kinds in turn so that none hides another."""
    kinds: dict[str, list[Leak]] = {}
    for leak in leaks:
        kinds.setdefault(leak.kind, []).append(leak)
    once: dict[frozenset[str], Leak] = {}
    for index in range(SHOWN):
        for found in kinds.values():
            for leak in found[index : index + 1]:
                once.setdefault(frozenset((leak.first.id, leak.second.id)), leak)
    return list(once.values())[:SHOWN]


def _picture(root: Path, case: Case) -> Image.Image:
    """An image fitted into a square."""
    return ImageOps.pad(load_rgb(inside(root, case.file_name)), (_SIDE, _SIDE), color="grey")


def _fit(text: str, places: int = 1) -> str:
    """The text cut to the width of so many pictures, in letters that the built-in font has."""
    longest = places * _SIDE // 6
    plain = text.encode("ascii", "replace").decode()
    return plain if len(plain) <= longest else f"{plain[: longest - 2]}.."
