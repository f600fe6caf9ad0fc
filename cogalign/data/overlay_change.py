"""Overlays of a whole case set painted over, or exchanged at random, so that they tell nothing of finding and data set."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set, write_metadata
from cogalign.data.fingerprints import fingerprints_of, write_fingerprints
from cogalign.data.images import load_rgb
from cogalign.data.overlay_detection import Overlays
from cogalign.data.overlay_paint import draw_overlays, paint_over
from cogalign.data.overlays import plain, with_overlays
from cogalign.data.parallel import each
from cogalign.data.sources import OVERLAYS_DATASET, all_licences, read_sources, sources_of, write_sources

Mode = Literal["mask", "randomise"]
BEFORE, LENT_BY = "overlays_before", "overlays_from"
"""Keys of `Case.attributes`: the boxes that were painted over, and the id of the case whose overlays were drawn."""
_TEMPORARY = "overlays.tmp"


@dataclass(frozen=True)
class Change:
    """What is done to one image file."""

    name: str
    """Of the file, as the case set has it."""
    target: str
    """Of the new file: a PNG."""
    own: Overlays
    lender: str | None
    """File whose overlays are drawn; None draws none."""
    lent: Overlays
    cases: tuple[Case, ...]
    """That show the file."""


def change_overlays(root: Path, mode: Mode, seed: int, workers: int | None = None) -> str:
    """Paint over all overlays of a case set, in place; `randomise` draws those of another image of the same split.

    Which image lends is a random permutation of the images of a split: as many bear text or a box as before, and
    neither finding nor data set has to do with which. `attributes.overlays` says what an image bears now,
    `overlays_before` what it bore, `overlays_from` which case lent; the licences of both bind. Fingerprints stay those of the
    photographs, so that repetitions are still found. What a link or another folder shares stays as it is.

    Args:
        root: folder of the case set. If this is broken off, images may be changed that the metadata do not know of.
        mode: paint over, or also draw others.
        seed: of the permutation.
        workers: as in `parallel.each`.

    Returns:
        What was done, for a reader.

    Raises:
        FileNotFoundError, ValueError: an image or mask is missing or unreadable.
        OSError: the case set cannot be written to.
    """
    case_set = read_case_set(root)
    unseen = [case for case in case_set.cases if not isinstance(case.attributes.get("overlays"), dict)]
    seen = {case.id: case for case in with_overlays(case_set, unseen, workers)} if unseen else {}
    case_set = CaseSet(case_set.root, [seen.get(case.id, case) for case in case_set.cases])
    prints = fingerprints_of(case_set, workers)
    changes = planned_changes(case_set.cases, mode, seed)
    temporary = case_set.root / _TEMPORARY
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # All are made before the first takes its place: the photographs lend as they were.
    made = list(each(partial(_make, case_set.root), list(enumerate(changes)), f"overlays: {mode}", workers))
    rows: dict[str, Case] = {}
    lenders = _first_cases(case_set.cases)
    for number, (change, now) in enumerate(zip(changes, made, strict=True)):
        (case_set.root / change.name).unlink()  # it may be a link to the photograph itself
        (temporary / f"{number}.png").rename(case_set.root / change.target)
        lender = lenders.get(change.lender or "")
        rows |= {case.id: _changed(case, change, now, lender) for case in change.cases}
    temporary.rmdir()
    after = [rows.get(case.id, case) for case in case_set.cases]
    write_fingerprints(case_set.root, [case.file_name for case in after], prints)
    write_sources(case_set.root, sources_of(read_sources(case_set.root), after))
    write_metadata(case_set.root, [case.to_row() for case in after])
    return _told(changes, len({case.file_name for case in case_set.cases}), mode)


def planned_changes(cases: Sequence[Case], mode: Mode, seed: int) -> list[Change]:
    """What is done to which image files, in their order; files that neither bear overlays nor get any are left out.

    Args:
        cases: with `attributes.overlays`.
        mode: see `change_overlays`.
        seed: likewise.
    """
    shown: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        shown[case.file_name].append(case)
    own = {name: overlays_of(inside[0]) for name, inside in shown.items()}
    lenders = _lenders({name: inside[0].split for name, inside in shown.items()}, seed) if mode == "randomise" else {}
    taken = set(shown)
    changes = []
    for name, inside in shown.items():
        lender = lenders.get(name)
        lent = own[lender] if lender is not None else Overlays()
        if own[name] == Overlays() and lent == Overlays():
            continue
        target = _png_name(name, taken)
        changes.append(Change(name, target, own[name], lender if lent != Overlays() else None, lent, tuple(inside)))
    return changes


def _first_cases(cases: Sequence[Case]) -> dict[str, Case]:
    """The first case of each image file."""
    return {case.file_name: case for case in reversed(cases)}


def overlays_of(case: Case) -> Overlays:
    """The overlays that a case's attributes tell of."""
    known: Mapping[str, Any] = case.attributes["overlays"]
    text, boxes = (tuple((b[0], b[1], b[2], b[3]) for b in known.get(kind, ())) for kind in ("text", "guide_box"))
    return Overlays(text, boxes)


def _lenders(splits: Mapping[str, str], seed: int) -> dict[str, str]:
    """For each image another one of its split (or itself) by a random permutation, which does not depend on the order."""
    found: dict[str, str] = {}
    for split in sorted(set(splits.values())):
        names = sorted(name for name, own in splits.items() if own == split)
        stream = int.from_bytes(sha256(split.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, stream]).permutation(len(names))
        found |= {name: names[place] for name, place in zip(names, order.tolist(), strict=True)}
    return found


def _png_name(name: str, taken: set[str]) -> str:
    """The name of the new file: as before, but a PNG; not one that another image has."""
    path = PurePosixPath(name)
    wanted = path.with_suffix(".png").as_posix()
    number = 1
    while wanted != name and wanted in taken:
        number += 1
        wanted = path.with_name(f"{path.stem}-{number}.png").as_posix()
    taken.add(wanted)
    return wanted


def _make(root: Path, item: tuple[int, Change]) -> Overlays:
    """Write the new picture beside, under its number; where its overlays are now."""
    number, change = item
    case_set = CaseSet(root, [])
    image = paint_over(np.asarray(load_rgb(case_set.path(change.name))), change.own)
    now = Overlays()
    if change.lender is not None:
        donor = np.asarray(load_rgb(case_set.path(change.lender)))
        image, now = draw_overlays(image, donor, change.lent, _lesions(case_set, change.cases, image.shape[:2]))
    Image.fromarray(image).save(root / _TEMPORARY / f"{number}.png", format="PNG", compress_level=1)
    return now


def _lesions(case_set: CaseSet, cases: Sequence[Case], shape: tuple[int, ...]) -> np.ndarray:
    """Where the lesions of an image lie (height, width), as far as masks and boxes tell."""
    found = np.zeros(shape[:2], dtype=bool)
    for case in cases:
        mask = case_set.mask(case)
        if mask is not None:
            found |= mask
            continue
        for box in case.boxes:
            found[box.ymin : box.ymax, box.xmin : box.xmax] = True
    return found


def _changed(case: Case, change: Change, now: Overlays, lender: Case | None) -> Case:
    """The case of a changed image."""
    attributes = {**case.attributes, "overlays": plain(now)}
    if change.own != Overlays():
        attributes[BEFORE] = plain(change.own)
    licence = case.licence
    if lender is not None:
        attributes[LENT_BY] = lender.id
        if lender.dataset != case.dataset:
            attributes[OVERLAYS_DATASET] = lender.dataset
            licence = all_licences(licence, lender.licence)
    return replace(case, file_name=change.target, attributes=attributes, licence=licence)


def _told(changes: Sequence[Change], images: int, mode: Mode) -> str:
    """One line on what was done."""
    painted = sum(change.own != Overlays() for change in changes)
    line = f"overlays: painted over in {painted} of {images} images"
    if mode == "randomise":
        line += f"; {sum(change.lender is not None for change in changes)} bear those of another image now"
    return line
