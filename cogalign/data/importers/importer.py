"""From photographs on disk to a case set: labels, squares, groups, splits, reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogalign.cognition.anatomy import landmark_of, organ_in
from cogalign.cognition.keywords import extract
from cogalign.cognition.report import render
from cogalign.cognition.taxonomy import Finding, lookup, nearest
from cogalign.cognition.templates import template_report
from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSetWriter
from cogalign.data.images import Fingerprint, fingerprint, load_mask, load_rgb, resize_image, resize_mask
from cogalign.data.importers import gastrovision, hyperkvasir, kvasir_seg, kvasir_v2
from cogalign.data.importers.base import Layout, Photograph, Rejected
from cogalign.data.paths import file_stem, inside, slug
from cogalign.data.splits import assign_splits, near_duplicates
from cogalign.recipe import DataSettings, ImportSettings
from cogalign.training.atomic import write_text
from cogalign.training.progress import say, track

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (kvasir_seg.LAYOUT, hyperkvasir.LAYOUT, kvasir_v2.LAYOUT, gastrovision.LAYOUT)
}
"""The layouts that `data.imports[].layout` may name."""
QUARANTINE = "quarantine.jsonl"
_BOX_TOLERANCE = 2  # pixels by which a box may leave its image before the photograph is refused


@dataclass(frozen=True)
class Loaded:
    """A photograph in memory: uint8 image (height, width, 3), bool mask (height, width) or None."""

    image: np.ndarray
    mask: np.ndarray | None
    boxes: tuple[Box, ...]
    print_: Fingerprint


def find_layout(name: str) -> Layout:
    """The layout of a name.

    Raises:
        ValueError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise ValueError(f"data.imports.layout: found {name!r}, wanted one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def import_data_sets(settings: DataSettings, folder: Path) -> Path:
    """Write the case set of `settings.imports` to `folder`.

    A file that cannot be used is left out: `quarantine.jsonl` holds one line for each, with the reason.

    Raises:
        ValueError: a layout is unknown, a path leaves `data.root`, or no case is left.
        FileNotFoundError: a data set's folder is not there or has another layout.
    """
    root = Path(settings.root)
    cases: list[Case] = []
    prints: list[Fingerprint] = []
    rejected: list[dict[str, str]] = []
    with ExitStack() as stack:
        writer = stack.enter_context(CaseSetWriter(folder))
        for item in settings.imports or ():
            for case, loaded in _cases_of(item, settings, root, rejected, {case.id for case in cases}):
                writer.add(case, loaded.image, loaded.mask)
                cases.append(case)
                prints.append(loaded.print_)
        grouped = [
            replace(case, group=cases[first].id) for case, first in zip(cases, near_duplicates(prints), strict=True)
        ]
        writer.revise(assign_splits(grouped, settings.test_share, settings.seed))
        write_text(folder / QUARANTINE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rejected))
    _report(grouped, {print_.size for print_ in prints}, rejected, folder, settings)
    return folder


def _report(
    grouped: Sequence[Case],
    sizes: set[tuple[int, int]],
    rejected: Sequence[object],
    folder: Path,
    settings: DataSettings,
) -> None:
    """Tell the user what was imported, and what to know of it."""
    repeated = len(grouped) - len({case.group for case in grouped})
    say(f"imported {len(grouped)} cases into {folder}; {repeated} repeat a photograph and share its group")
    if rejected:
        say(f"{len(rejected)} files or tables had a problem: see {folder / QUARANTINE}")
    if settings.image_side is None and len(sizes) > 1:
        say("images differ in size, which can give the class away; data.image_side makes them alike")


def _cases_of(
    item: ImportSettings, settings: DataSettings, root: Path, rejected: list[dict[str, str]], taken: set[str]
) -> Iterator[tuple[Case, Loaded]]:
    """The cases of one data set, with what is to be written of each."""
    layout = find_layout(item.layout)
    source = inside(root, item.path) if item.path not in ("", ".") else root
    if not source.is_dir():
        raise FileNotFoundError(f"data.imports.path: no folder {source}")
    counts: Counter[str] = Counter()
    for photograph in track(_sorted(layout, source, root, rejected), f"import {layout.title}"):
        try:
            finding = _finding(photograph.label)
            if item.limit is not None and counts[finding.id] >= item.limit:
                continue
            loaded = _load(photograph, finding, root, settings.image_side)
        except (ValueError, FileNotFoundError) as error:
            rejected.append(_line(layout, root, photograph.path, str(error)))
            continue
        counts[finding.id] += 1
        case = _case(photograph, finding, layout, loaded, taken)
        taken.add(case.id)
        yield case, loaded


def _sorted(layout: Layout, source: Path, root: Path, rejected: list[dict[str, str]]) -> Sequence[Photograph]:
    """The photographs of a data set by file name; what the reader refuses goes to `rejected`."""
    photographs = []
    for found in layout.read(source):
        if isinstance(found, Rejected):
            rejected.append(_line(layout, root, found.path, found.reason))
        else:
            photographs.append(found)
    return sorted(photographs, key=lambda photograph: (photograph.path.name, photograph.key))


def _line(layout: Layout, root: Path, path: Path, reason: str) -> dict[str, str]:
    """One line of the quarantine file; paths are relative to `data.root`."""
    relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return {"dataset": layout.title, "path": relative, "reason": reason.replace(str(path), relative)}


def _finding(label: str) -> Finding:
    """The taxonomy's finding for a class of a data set."""
    finding = lookup(label)
    if finding is None:
        raise ValueError(f"class {label!r} is not in the taxonomy, nearest: {nearest(label)!r}")
    return finding


def _load(photograph: Photograph, finding: Finding, root: Path, side: int | None) -> Loaded:
    """Read a photograph and its mask, check that all sizes agree, resize them alike."""
    for path in (photograph.path, photograph.mask_path):
        if path is not None:
            inside(root, path.relative_to(root))  # a symbolic link may lead out
    image = np.asarray(load_rgb(photograph.path))
    height, width = image.shape[:2]
    if photograph.size is not None and photograph.size != (width, height):
        raise ValueError(
            f"found {width} x {height} pixels, the box file says {photograph.size[0]} x {photograph.size[1]}"
        )
    mask = None
    if photograph.mask_path is not None:
        mask = load_mask(photograph.mask_path)
        if mask.shape != (height, width):
            raise ValueError(f"found {width} x {height} pixels, its mask has {mask.shape[1]} x {mask.shape[0]}")
        if finding.focal and not mask.any():
            raise ValueError(f"its mask is empty, though the class is {photograph.label!r}")
    boxes = tuple(_box(box, width, height, side) for box in photograph.boxes)
    print_ = fingerprint(image)
    if side is not None:
        image = resize_image(image, side)
        mask = resize_mask(mask, side) if mask is not None else None
        if mask is not None and finding.focal and not mask.any():
            raise ValueError(f"its lesion is too small for data.image_side = {side}")
    return Loaded(image, mask, boxes, print_)


def _box(box: Box, width: int, height: int, side: int | None) -> Box:
    """A box with the taxonomy's finding, clipped to the image and scaled to a square of `side` (rounded outwards)."""
    finding = _finding(box.finding)
    xmin, ymin, xmax, ymax = max(box.xmin, 0), max(box.ymin, 0), min(box.xmax, width), min(box.ymax, height)
    outside = max(abs(xmin - box.xmin), abs(ymin - box.ymin), abs(xmax - box.xmax), abs(ymax - box.ymax))
    if xmin >= xmax or ymin >= ymax or outside > _BOX_TOLERANCE:
        raise ValueError(
            f"box {(box.xmin, box.ymin, box.xmax, box.ymax)} leaves the image of {width} x {height} pixels"
        )
    if side is None:
        return Box(finding.id, xmin, ymin, xmax, ymax)
    return Box(
        finding.id, xmin * side // width, ymin * side // height, -(-xmax * side // width), -(-ymax * side // height)
    )


def _case(photograph: Photograph, finding: Finding, layout: Layout, loaded: Loaded, taken: set[str]) -> Case:
    """The case of a photograph. Its split and group are set once all photographs are known."""
    case_id = _unused(slug(f"{layout.name} {photograph.key}"), taken)
    organ = _organ(photograph, finding)
    report = template_report((finding.id,), organ, photograph.label if landmark_of(photograph.label) else None)
    attributes: dict[str, Any] = {"class": photograph.label, "file": photograph.path.name, **photograph.attributes}
    return Case(
        id=case_id,
        file_name=f"images/{file_stem(case_id)}.png",
        findings=(finding.id,),
        split="train",
        organ=organ,
        dataset=layout.title,
        licence=layout.licence,
        mask_file_name=f"masks/{file_stem(case_id)}.png" if loaded.mask is not None else None,
        boxes=loaded.boxes,
        answer=render(report),
        keywords=extract(report),
        attributes=attributes,
    )


def _organ(photograph: Photograph, finding: Finding) -> str:
    """The organ that the class name tells, else the layout, else the only organ of the finding."""
    landmark = landmark_of(photograph.label)
    if landmark is not None:
        return landmark.organ
    only = finding.organs[0] if len(finding.organs) == 1 else None
    return organ_in(photograph.label) or photograph.organ or only or "unknown"


def _unused(case_id: str, taken: set[str]) -> str:
    """The id, with a number behind it if it is taken (names that differ in case or suffix alone)."""
    number, unused = 1, case_id
    while unused in taken:
        number += 1
        unused = f"{case_id}-{number}"
    return unused
