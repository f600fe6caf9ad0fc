"""What crosses the splits of a case set: `cogalign data leaks DIR`.

A leak is something of `train` or `validation` that another split holds too. Two kinds of finding:

- **fails**: one group (patient, video, sequence) in two splits; the same pixels; the same photograph in another size,
  quality, crop or frame (whatever `cogalign data split` would have put together); a counterfactual away from the case
  it was made of, or from another one made of that case.
- **warns**: images that look alike but need not be one photograph (frames of one video, the next shot of one polyp),
  plain images of equal pixels (black frames of two videos), and one file name of one data set in two splits (some sets
  use a name for several images).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.duplicates import MAX_BITS, MAX_DIFFERENCE, informative, neighbours
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.groups import photographs
from cogalign.data.images import Fingerprint
from cogalign.data.leak_sheet import contact_sheet
from cogalign.data.splits import LEFT_OUT, group_of
from cogalign.training.atomic import write_bytes, write_json, write_text

ALIKE_BITS = 12
"""Images look alike when their 64 bits differ in at most so many places. Measured: of 907 photographs of four data sets,
all different, no two do; of 63 photographs shifted by 1 % of their side all do, by 2 % 83 %, by 4 % none."""
ALIKE_DIFFERENCE = 12.0
"""... and their thumbnails differ by at most so many of 255 grey levels on average."""
LISTED = 200
"""At most so many pairs of a kind are in `leaks.md`; `leaks.json` has all."""
LEAK_FILES = ("leaks.md", "leaks.json", "leaks.jpg")
TAUGHT = ("train", "validation")
"""Splits that decide what the model becomes. What only two other splits share (`test` and `test_shifted`) is no leak."""
_ORDER = ("train", "validation", "test")
FAILING = {
    "same pixels": "two images of equal pixels",
    "same photograph": "one photograph in another size, quality, brightness, crop or frame",
    "group": "one patient, video, sequence or photograph in two splits",
    "made from": "a counterfactual in another split than its case, its background, or another one made of these",
}
WARNING = {
    "looks alike": "images so much alike that they may be neighbours in a video",
    "plain image": "images of equal pixels that show next to nothing, such as black frames",
    "same name": "one file name of one data set; some sets use a name for several images",
}


@dataclass(frozen=True)
class Leak:
    """Two cases in two splits that should be together."""

    kind: str
    """A key of `FAILING` or `WARNING`."""
    first: Case
    second: Case
    bits: int | None = None
    """Bits in which the perceptual hashes differ, of 64; None where images were not compared."""
    difference: float | None = None
    """Mean difference of the thumbnails, in grey levels of 255."""
    what: str = ""
    """The group, or the file name, that both have."""

    @property
    def fails(self) -> bool:
        """Whether this is a leak, not only a hint of one."""
        return self.kind in FAILING

    def __str__(self) -> str:
        """One plain line of text that names both cases."""
        one, two = (f"{case.id} ({case.file_name}, {case.split})" for case in (self.first, self.second))
        near = "" if self.bits is None else f": {self.bits} of 64 bits, {self.difference:.1f} grey levels apart"
        return f"{self.kind}{f' {self.what!r}' if self.what else ''}: {one} and {two}{near}"


@dataclass(frozen=True)
class LeakReport:
    """What crosses the splits of a case set."""

    root: Path
    splits: dict[str, int]
    """Cases of each split."""
    leaks: list[Leak]
    """The worst first: by kind, in the order of `FAILING` and `WARNING`, then by likeness."""

    @property
    def failed(self) -> bool:
        """Whether there is a leak; hints alone do not fail."""
        return any(leak.fails for leak in self.leaks)

    @property
    def counts(self) -> dict[str, int]:
        """Pairs of each kind, all kinds named."""
        found = Counter(leak.kind for leak in self.leaks)
        return {kind: found[kind] for kind in (*FAILING, *WARNING)}

    def lines(self, most: int = 5) -> list[str]:
        """The report for a console: counts, and the worst pairs."""
        told = ", ".join(f"{number} {kind}" for kind, number in self.counts.items() if number)
        if not told:
            return [f"no leak between the splits {', '.join(self.splits)}"]
        head = "LEAK between splits" if self.failed else "no leak, but look at these pairs of two splits"
        shown = [f"  {leak}" for leak in self.leaks[:most]]
        rest = len(self.leaks) - len(shown)
        return [f"{head}: {told}", *shown, *([f"  and {rest} more in leaks.md"] if rest else [])]


def find_leaks(
    case_set: CaseSet, workers: int | None = None, *, labels: Sequence[int] | None = None, fresh: bool = False
) -> LeakReport:
    """All leaks of a case set. Cases of the split `left_out` count for nothing.

    Args:
        case_set: with its splits.
        workers: processes that decode images which `fingerprints.npz` does not know.
        labels: what `groups.photographs` says of all images, if it is known already.
        fresh: decode every image, and believe nothing that `fingerprints.npz` says: for sets of others.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable.
    """
    prints = fingerprints_of(case_set, workers, fresh)
    kept = [index for index, case in enumerate(case_set.cases) if case.split != LEFT_OUT]
    cases = [case_set.cases[index] for index in kept]
    if labels is None or len(kept) < len(case_set.cases):  # a chain over cases that are left out is none
        labels = photographs([prints[index] for index in kept])
    found = [
        *_of_images(cases, [prints[index] for index in kept], labels),
        *_of_groups(cases),
        *_of_origins(cases),
        *_of_names(cases),
    ]
    order = [*FAILING, *WARNING]
    found.sort(key=lambda leak: (order.index(leak.kind), leak.bits or 0, leak.difference or 0, leak.first.id))
    splits = Counter(case.split for case in case_set.cases)
    names = sorted(splits, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return LeakReport(case_set.root, {name: splits[name] for name in names}, found)


def crosses(one: Case, other: Case) -> bool:
    """Whether it would be a leak if the two cases were one photograph."""
    return one.split != other.split and (one.split in TAUGHT or other.split in TAUGHT)


def _of_images(cases: Sequence[Case], prints: Sequence[Fingerprint], labels: Sequence[int]) -> Iterator[Leak]:
    """Pairs of images that are one photograph or look alike; plain images apart."""
    apart = [case.split if case.split in TAUGHT else "" for case in cases]
    if len(set(apart)) < 2:
        return
    plain = _Plain(prints)
    told: set[tuple[int, frozenset[str]]] = set()
    for one, two, bits, difference in neighbours(prints, ALIKE_BITS, ALIKE_DIFFERENCE, apart=apart):
        kind = "looks alike"
        if plain[one] or plain[two]:
            continue
        if prints[one].digest == prints[two].digest:
            kind = "same pixels"
        elif labels[one] == labels[two] or (bits <= MAX_BITS and difference <= MAX_DIFFERENCE):
            kind = "same photograph"
        if kind != "looks alike":
            told.add((labels[one], frozenset((cases[one].split, cases[two].split))))
        yield Leak(kind, cases[one], cases[two], bits, difference)
    yield from _of_photographs(cases, prints, labels, told)
    homes: dict[str, dict[str, int]] = {}
    for index, case in enumerate(cases):
        homes.setdefault(prints[index].digest, {}).setdefault(case.split, index)
    for home in homes.values():
        for one, two in combinations(home.values(), 2):
            if crosses(cases[one], cases[two]) and plain[one]:
                yield Leak("plain image", cases[one], cases[two], 0, 0.0)


class _Plain:
    """Whether images show too little to be recognised: by their index, found out when it is asked for."""

    def __init__(self, prints: Sequence[Fingerprint]) -> None:
        self._prints = prints
        self._known: dict[str, bool] = {}

    def __getitem__(self, index: int) -> bool:
        print_ = self._prints[index]
        if print_.digest not in self._known:
            self._known[print_.digest] = not informative(print_)
        return self._known[print_.digest]


def _of_photographs(
    cases: Sequence[Case], prints: Sequence[Fingerprint], labels: Sequence[int], told: set[tuple[int, frozenset[str]]]
) -> Iterator[Leak]:
    """One pair for each photograph and pair of its splits that is not told yet: crops, frames, and chains of copies."""
    homes: dict[int, dict[str, int]] = {}
    for index, (case, label) in enumerate(zip(cases, labels, strict=True)):
        homes.setdefault(label, {}).setdefault(case.split, index)
    for label, home in homes.items():
        for one, two in combinations(home.values(), 2):
            if crosses(cases[one], cases[two]) and (label, frozenset((cases[one].split, cases[two].split))) not in told:
                bits = (prints[one].bits ^ prints[two].bits).bit_count()
                difference = float(np.abs(prints[one].thumbnail.astype(np.float32) - prints[two].thumbnail).mean())
                yield Leak("same photograph", cases[one], cases[two], bits, round(difference, 3))


def _of_groups(cases: Sequence[Case]) -> Iterator[Leak]:
    """One pair of cases for each group and pair of its splits."""
    homes: dict[str, dict[str, Case]] = {}
    for case in cases:
        homes.setdefault(group_of(case), {}).setdefault(case.split, case)
    yield from _pairs(homes, "group")


def _of_names(cases: Sequence[Case]) -> Iterator[Leak]:
    """File names of one data set in two splits; the name is that of the original file."""
    homes: dict[tuple[str, str], dict[str, Case]] = {}
    for case in cases:
        name = case.attributes.get("file")
        if isinstance(name, str) and name and case.dataset:
            homes.setdefault((case.dataset, name), {}).setdefault(case.split, case)
    yield from _pairs({name: home for (_, name), home in homes.items()}, "same name")


def _pairs(homes: dict[str, dict[str, Case]], kind: str) -> Iterator[Leak]:
    """A leak for each pair of splits that share something."""
    for what, home in homes.items():
        for one, other in combinations(home.values(), 2):
            if crosses(one, other):
                yield Leak(kind, one, other, what=what)


def _of_origins(cases: Sequence[Case]) -> Iterator[Leak]:
    """Counterfactuals in another split than their source or background; where that is not here, than one another."""
    by_id = {case.id: case for case in cases}
    homes: dict[str, dict[str, Case]] = {}
    for case in cases:
        for origin in {case.counterfactual_of: None, case.background_of: None}:
            source = by_id.get(origin) if origin else None
            if source is not None and crosses(case, source):
                yield Leak("made from", source, case)
            elif source is None and origin:
                homes.setdefault(origin, {}).setdefault(case.split, case)
    yield from _pairs(homes, "made from")


def write_leak_report(report: LeakReport, folder: Path) -> None:
    """Write `leaks.md` and `leaks.json`, and `leaks.jpg` if there is a pair of images; an older picture goes.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    write_json(folder / "leaks.json", _plain(report))
    write_text(folder / "leaks.md", _markdown(report))
    picture = folder / "leaks.jpg"
    sheet = contact_sheet(report.root, report.leaks)
    if sheet is None:
        picture.unlink(missing_ok=True)
        return
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    write_bytes(picture, buffer.getvalue())


def _plain(report: LeakReport) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "failed": report.failed,
        "splits": report.splits,
        "counts": report.counts,
        "leaks": [
            {
                "kind": leak.kind,
                "fails": leak.fails,
                "what": leak.what,
                "bits": leak.bits,
                "difference": leak.difference,
                "cases": [_place(leak.first), _place(leak.second)],
            }
            for leak in report.leaks
        ],
    }


def _place(case: Case) -> dict[str, str]:
    """Where a case is."""
    return {
        "id": case.id,
        "file_name": case.file_name,
        "split": case.split,
        "dataset": case.dataset,
        "group": case.group,
    }


def _markdown(report: LeakReport) -> str:
    """The report to read."""
    splits = ", ".join(f"{name} {number}" for name, number in report.splits.items())
    lines = ["# Leak report", "", f"Cases: {splits}.", ""]
    lines += [
        "**There are leaks.**" if report.failed else "There is no leak.",
        "",
        "| kind | pairs | |",
        "|---|---|---|",
    ]
    for kind, meaning in (FAILING | WARNING).items():
        lines.append(f"| {kind} | {report.counts[kind]} | {meaning}{'' if kind in FAILING else ' (a hint)'} |")
    for kind in (*FAILING, *WARNING):
        found = [leak for leak in report.leaks if leak.kind == kind]
        if found:
            lines += ["", f"## {kind}", "", *(f"- {_escaped(str(leak))}" for leak in found[:LISTED])]
        if len(found) > LISTED:
            lines.append(f"- and {len(found) - LISTED} more: see leaks.json")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in line)
