"""Overlays of a whole case set: found once, kept with each case, and compared with the findings.

A finding whose images bear a date or a guide box more often than others can be told from the overlay alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, write_metadata
from cogalign.data.images import load_rgb
from cogalign.data.overlay_detection import Overlays, find_overlays
from cogalign.data.parallel import each

__all__ = ["Overlays", "find_overlays", "flag_overlays", "with_overlays", "overlay_shares", "overlays_markdown"]
KINDS = ("text", "guide_box")
NOTABLE = 0.3
"""An association (Cramer's V) from here on is told as a shortcut that a model can take."""


def flag_overlays(case_set: CaseSet, workers: int | None = None) -> None:
    """Find the overlays of all images and write them to `attributes.overlays` in `metadata.jsonl`, whole or not at all.

    `{"text": [[xmin, ymin, xmax, ymax], ...], "guide_box": [...]}` in pixels of the image; empty lists where
    nothing is found.

    Args:
        case_set: its images must all be readable.
        workers: as in `parallel.each`.

    Raises:
        FileNotFoundError, ValueError: an image is missing or unreadable; nothing is written.
    """
    write_metadata(case_set.root, [case.to_row() for case in with_overlays(case_set, case_set.cases, workers)])


def with_overlays(case_set: CaseSet, cases: Sequence[Case], workers: int | None = None) -> list[Case]:
    """The cases with `attributes.overlays`; see `flag_overlays`."""
    names = list(dict.fromkeys(case.file_name for case in cases))
    found = dict(
        zip(names, each(_overlays_of, [case_set.path(name) for name in names], "overlays", workers), strict=True)
    )
    return [replace(case, attributes={**case.attributes, "overlays": plain(found[case.file_name])}) for case in cases]


def scaled(box: Sequence[int], width: int, height: int, side: int) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax of an image of width x height pixels, when it becomes a square of `side` (outwards)."""
    xmin, ymin, xmax, ymax = box
    return xmin * side // width, ymin * side // height, -(-xmax * side // width), -(-ymax * side // height)


def scaled_overlays(overlays: Overlays, width: int, height: int, side: int) -> dict[str, list[list[int]]]:
    """Overlays as JSON values, when their image becomes a square of `side` pixels."""
    boxes_of = plain(overlays).items()
    return {kind: [list(scaled(box, width, height, side)) for box in boxes] for kind, boxes in boxes_of}


def _overlays_of(path: Path) -> Overlays:
    """The overlays of a file."""
    return find_overlays(np.asarray(load_rgb(path)))


def plain(overlays: Overlays) -> dict[str, list[list[int]]]:
    """Overlays as JSON values."""
    return {"text": [list(box) for box in overlays.text], "guide_box": [list(box) for box in overlays.guide_box]}


@dataclass(frozen=True)
class Share:
    """How many images of a finding or data set bear an overlay."""

    name: str
    images: int
    flagged: int


@dataclass(frozen=True)
class OverlayShares:
    """How an overlay is spread."""

    kind: str
    by_finding: list[Share]
    """A case with several findings counts for each."""
    by_data_set: list[Share]
    finding_association: float | None
    """Cramer's V of the findings of a case and the overlay, in [0, 1]; None if there is nothing to compare."""
    data_set_association: float | None


def overlay_shares(cases: Iterable[Case]) -> list[OverlayShares]:
    """How each kind of overlay is spread over findings and data sets; cases that were not looked at are left out.

    Cramer's V (Cramer 1946, section 21.9) is sqrt(chi2 / n / (min(rows, columns) - 1)) of the table of groups and
    overlay yes or no: 0 if the overlay says nothing, 1 if the one tells the other.
    """
    seen = [case for case in cases if isinstance(case.attributes.get("overlays"), dict)]
    found = []
    for kind in KINDS:
        flagged = [bool(case.attributes["overlays"].get(kind)) for case in seen]
        found.append(
            OverlayShares(
                kind,
                _shares(seen, flagged, lambda case: case.findings),
                _shares(seen, flagged, lambda case: (case.dataset or "unknown",)),
                cramers_v([", ".join(sorted(case.findings)) for case in seen], flagged),
                cramers_v([case.dataset for case in seen], flagged),
            )
        )
    return found


def _shares(cases: Sequence[Case], flagged: Sequence[bool], names: Callable[[Case], Iterable[str]]) -> list[Share]:
    """Counts for each name, the most frequent name first."""
    images: Counter[str] = Counter()
    bearing: Counter[str] = Counter()
    for case, flag in zip(cases, flagged, strict=True):
        for name in set(names(case)):
            images[name] += 1
            bearing[name] += flag
    return [Share(name, count, bearing[name]) for name, count in sorted(images.items(), key=lambda i: (-i[1], i[0]))]


def cramers_v(groups: Sequence[str], flags: Sequence[str] | Sequence[bool]) -> float | None:
    """Cramer's V of groups and a property; None if all are of one group or all have the same property."""
    from scipy.stats.contingency import association, crosstab

    if len(set(groups)) < 2 or len(set(flags)) < 2:
        return None
    table = crosstab(np.array(groups), np.array(flags)).count
    return float(association(table, method="cramer"))


def overlays_markdown(cases: Sequence[Case]) -> str:
    """A page on the overlays of a case set."""
    looked = sum("overlays" in case.attributes for case in cases)
    lines = ["# Overlays", "", f"{looked} of {len(cases)} images were looked at.", ""]
    if not looked:
        return "\n".join(lines)
    titles = {"text": "Burned-in text", "guide_box": "Boxes in a corner (scope guide, black mask)"}
    for shares in overlay_shares(cases):
        lines += [f"## {titles[shares.kind]}", ""]
        for what, value, rows in (
            ("finding", shares.finding_association, shares.by_finding),
            ("data set", shares.data_set_association, shares.by_data_set),
        ):
            lines += [_verdict(what, value), "", f"| {what} | images | with | share |", "|---|---:|---:|---:|"]
            lines += [f"| {row.name} | {row.images} | {row.flagged} | {row.flagged / row.images:.0%} |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def _verdict(what: str, value: float | None) -> str:
    """One sentence on an association."""
    if value is None:
        return f"By {what}: nothing to compare (one {what}, or all images alike)."
    shortcut = f" **The overlay tells the {what}: a shortcut that a model can take.**" if value >= NOTABLE else ""
    return f"By {what}: Cramer's V {value:.2f}.{shortcut}"
