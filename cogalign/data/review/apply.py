"""A new case set from a case set and what reviewers made of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSet, parse_rows, read_case_set, write_metadata
from cogalign.data.images import image_size
from cogalign.data.paths import file_stem, inside
from cogalign.data.review.keep import keep_files
from cogalign.data.review.lesions import Refined, complete_mask
from cogalign.data.review.verdicts import Verdict
from cogalign.training.atomic import write_text
from cogalign.training.progress import track

REJECTED = "rejected.jsonl"
"""Rows of cases that are not used, with the reasons in `attributes.quality.failed`."""
REASON = "rejected in review"
PROVENANCE = "expert"


@dataclass(frozen=True)
class Applied:
    """What a review changed: numbers of cases.

    Args:
        kept: in the new case set.
        refined: of these, with a new mask or new boxes.
        rejected: taken out by a verdict.
        restored: rejected before, accepted by a verdict.
        elsewhere: verdicts on counterfactuals, or their sources, that this case set does not hold.
    """

    kept: int
    refined: int
    rejected: int
    restored: int
    elsewhere: int


def apply_review(
    case_set_dir: Path,
    refined: Sequence[Refined],
    verdicts: Mapping[str, Verdict],
    out_dir: Path,
    *,
    revised: Mapping[str, Case] | None = None,
    files: Mapping[str, str] | None = None,
) -> Applied:
    """Write a new case set with refined masks and without rejected cases; the old one stays as it is.

    The new folder appears whole or not at all. Images are hard links where the file system allows it, else copies.
    A refined mask replaces the old one; boxes follow the masks and keep their findings; `attributes.mask` says
    `expert`, confidence 1 and who. A mask holds all lesions of its case: one that is only a box beside outlined ones
    keeps what the old mask has in the box. A rejected source case takes along what was made with its mask. Rejected
    cases move to `rejected.jsonl` with their pictures, accepted ones that were there before move back.

    Args:
        case_set_dir: the reviewed case set, factual or of counterfactuals.
        refined: lesions, at most one entry a case; only for factual cases.
        verdicts: by case id.
        out_dir: the new folder, which must not exist.
        revised: cases with corrected reports by id, in place of those of the case set.
        files: texts of further files of the new folder by name, beside those that `keep_files` takes over.

    Raises:
        FileExistsError: `out_dir` exists.
        FileNotFoundError: the case set or one of its files is missing.
        ValueError: `out_dir` lies in the case set; a case is not in the set, comes twice or is a counterfactual with
            a mask; a lesion has neither outline nor old mask, while another one of its case has; all cases were
            rejected; a path leaves the folder.
    """
    if out_dir.exists():
        raise FileExistsError(f"{out_dir}: exists, wanted the name of a new folder")
    if case_set_dir.resolve() in out_dir.resolve().parents:
        raise ValueError(f"{out_dir}: lies in the reviewed case set, which is not changed; wanted a folder beside it")
    case_set = read_case_set(case_set_dir)
    case_set = CaseSet(case_set.root, [(revised or {}).get(case.id, case) for case in case_set.cases])
    before = _rejected_before(case_set)
    by_id = {item.case_id: item for item in refined}
    _check(case_set, refined, by_id)
    used = {
        name for case in (*case_set.cases, *before) for name in (case.id, case.counterfactual_of, case.background_of)
    }
    elsewhere = [name for name in verdicts if name not in used]
    _check_elsewhere(case_set, elsewhere, verdicts)

    sides = _sides(case_set, before, verdicts)
    changed = _whole_folder(CaseSet(case_set.root, sides.kept), sides.left, by_id, out_dir, files or {})
    return Applied(len(sides.kept), changed, sides.rejected, sides.restored, len(elsewhere))


@dataclass(frozen=True)
class _Sides:
    """The cases that are kept and those that are not; numbers of those that changed sides."""

    kept: list[Case]
    left: list[Case]
    rejected: int
    restored: int


def _sides(case_set: CaseSet, before: Sequence[Case], verdicts: Mapping[str, Verdict]) -> _Sides:
    """Share out the cases, and those that were rejected before, by the verdicts."""
    kept, rejected, restored, still = [], [], [], []
    for case in case_set.cases:
        verdict = verdict_on(case, verdicts)
        if verdict is not None and verdict.decision == "reject":
            rejected.append(_marked(case, verdict))
        else:
            kept.append(case)
    for case in before:
        verdict = verdict_on(case, verdicts)
        if verdict is not None and verdict.decision == "accept":
            restored.append(_unmarked(case, verdict))
        else:
            still.append(case)
    if not kept and not restored:
        raise ValueError(f"{case_set.root}: all {len(rejected)} cases are rejected, wanted at least one that is left")
    return _Sides([*kept, *restored], [*rejected, *still], len(rejected), len(restored))


def _whole_folder(
    case_set: CaseSet,
    rejected: Sequence[Case],
    refined: Mapping[str, Refined],
    out_dir: Path,
    files: Mapping[str, str],
) -> int:
    """Write the new folder under a temporary name, then rename it; the number of cases that changed."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", suffix=".tmp", dir=out_dir.parent))
    try:
        changed = _write(case_set, rejected, refined, temporary)
        for name, text in files.items():
            write_text(temporary / name, text)
        keep_files(case_set, temporary)
        # mkdtemp gives the owner alone access.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        temporary.rename(out_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return changed


def verdict_on(case: Case, verdicts: Mapping[str, Verdict]) -> Verdict | None:
    """The verdict that counts for a case: a rejection of a case whose mask it was made with, else its own."""
    for name in _masks_used(case):
        verdict = verdicts.get(name)
        if verdict is not None and verdict.decision == "reject":
            return verdict
    return verdicts.get(case.id)


def _masks_used(case: Case) -> list[str]:
    """Ids of the cases whose masks went into a counterfactual: its source, and a background that had lesions."""
    used = [] if case.counterfactual_of is None else [case.counterfactual_of]
    # A transplant onto a normal case cleared nothing there; where the findings are not told, it may have.
    if case.background_of is not None and case.attributes.get("background_findings") != ["normal"]:
        used.append(case.background_of)
    return used


def _rejected_before(case_set: CaseSet) -> list[Case]:
    """The cases of an older `rejected.jsonl`."""
    path = case_set.root / REJECTED
    if not path.is_file():
        return []
    cases = []
    for number, _, case in parse_rows(path):
        if isinstance(case, str):
            raise ValueError(f"{path} line {number}: {case}")
        cases.append(case)
    return cases


def _check(case_set: CaseSet, refined: Sequence[Refined], by_id: Mapping[str, Refined]) -> None:
    """Refined cases are factual cases of the set, each once."""
    if len(by_id) < len(refined):
        names = [item.case_id for item in refined]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"case {twice!r}: refined in more than one file, wanted one")
    for name in by_id:
        case = case_set.by_id.get(name)
        if case is None:
            raise ValueError(f"case {name!r}: {case_set.root} does not have it{_near(name, case_set.by_id)}")
        if case.counterfactual_of is not None:
            raise ValueError(f"case {name!r}: is a counterfactual, whose mask is its edit; wanted verdicts only")


def _check_elsewhere(case_set: CaseSet, names: Sequence[str], verdicts: Mapping[str, Verdict]) -> None:
    """A verdict on an unknown case is an error, unless it is on a counterfactual of a case of this set."""
    for name in names:
        if verdicts[name].of not in case_set.by_id:
            raise ValueError(f"verdict on case {name!r}: {case_set.root} does not have it{_near(name, case_set.by_id)}")


def _near(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; nearest: {close[0]!r}" if close else ""


def _marked(case: Case, verdict: Verdict) -> Case:
    """A rejected case with the reason, as the quality gate writes it, and the verdict."""
    quality = dict(case.attributes.get("quality") or {})
    quality["failed"] = [*quality.get("failed", []), REASON]
    return replace(case, attributes={**case.attributes, "quality": quality, "review": _review(verdict)})


def _unmarked(case: Case, verdict: Verdict) -> Case:
    """A case that a reviewer accepts though it had failed: its measures stay, the reasons move to the verdict."""
    quality = dict(case.attributes.get("quality") or {})
    overruled = quality.pop("failed", [])
    review = {**_review(verdict), "overruled": overruled}
    return replace(case, attributes={**case.attributes, "quality": {**quality, "failed": []}, "review": review})


def _review(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.decision, "by": verdict.by, "note": verdict.note}


def _write(case_set: CaseSet, rejected: Sequence[Case], refined: Mapping[str, Refined], folder: Path) -> int:
    """Write the new folder; the number of cases with another mask or other boxes."""
    files = Counter(
        inside(case_set.root, name)
        for case in (*case_set.cases, *rejected)
        for name in _files(case)
        if name is not None
    )
    rows, changed = [], 0
    for case in track(case_set.cases, "apply review"):
        item = refined.get(case.id)
        new = _refine(case_set, case, item, folder, files) if item is not None else case
        changed += new is not case
        _link(case_set.root, folder, _files(case))  # a refined mask is there already
        rows.append(new.to_row())
    for case in rejected:
        _link(case_set.root, folder, _files(case))
    if rejected:
        lines = [json.dumps(case.to_row(), ensure_ascii=False) + "\n" for case in rejected]
        write_text(folder / REJECTED, "".join(lines))
    write_metadata(folder, rows)
    return changed


def _files(case: Case) -> tuple[str | None, ...]:
    """Names of the files of a case."""
    return case.file_name, case.source_file_name, case.mask_file_name


def _refine(case_set: CaseSet, case: Case, item: Refined, folder: Path, files: Counter[Path]) -> Case:
    """The case with refined lesions, its mask written; the very same case if nothing changed.

    A lesion of unknown finding has no box, as boxes name findings. Where a review holds boxes alone, the old mask
    stays.
    """
    boxes = tuple(Box(lesion.finding, *lesion.box) for lesion in item.lesions if lesion.finding)
    outlined = item.mask()
    if outlined is None:
        return case if boxes == case.boxes or not boxes else replace(case, boxes=boxes)
    width, height = image_size(case_set.path(case.file_name))
    if outlined.shape != (height, width):
        found = f"{outlined.shape[1]} x {outlined.shape[0]}"
        raise ValueError(f"case {case.id!r}: mask: found {found}, wanted {width} x {height}")
    old = case_set.mask(case)
    known = all(Box(bare.finding, *bare.box) in case.boxes for bare in item.bare)
    if not item.confirmed and old is not None and np.array_equal(outlined, old) and known:
        return case
    mask = complete_mask(item, old)
    if not item.confirmed and old is not None and np.array_equal(mask, old):
        return case if boxes == case.boxes else replace(case, boxes=boxes)
    name = _mask_name(case_set, case, files)
    path = inside(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, format="PNG")
    attributes = {**case.attributes, "mask": {"provenance": PROVENANCE, "confidence": 1.0, "by": item.by}}
    return replace(case, mask_file_name=name, boxes=boxes, attributes=attributes)


def _mask_name(case_set: CaseSet, case: Case, files: Counter[Path]) -> str:
    """The name for a refined mask: the old one, unless it is none or another case's file too."""
    if case.mask_file_name is not None and files[inside(case_set.root, case.mask_file_name)] == 1:
        return case.mask_file_name
    stem, number = f"masks/{file_stem(case.id)}", 1
    name = f"{stem}.png"
    while inside(case_set.root, name) in files:
        number += 1
        name = f"{stem}-{number}.png"
    files[inside(case_set.root, name)] += 1
    return name


def _link(root: Path, folder: Path, names: Iterable[str | None]) -> None:
    """Hard links of files into the new folder, or copies."""
    for name in names:
        if name is None:
            continue
        source, target = inside(root, name), inside(folder, name)
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(source), target)
        except OSError:
            shutil.copyfile(source, target)
