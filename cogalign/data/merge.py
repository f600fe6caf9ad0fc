"""One case set out of several: no photograph twice in different groups, no licence broken, nothing overwritten."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set, write_metadata
from cogalign.data.fingerprints import fingerprints_of, write_fingerprints
from cogalign.data.groups import crossing_groups, photographs, with_joined_groups
from cogalign.data.images import Fingerprint
from cogalign.data.merge_names import Renamed, unique_names
from cogalign.data.overlays import with_overlays
from cogalign.data.overview import write_overview
from cogalign.data.side_files import CASE_JOURNALS, read_lines, renamed_lines
from cogalign.data.sources import read_sources, sources_of, write_sources
from cogalign.training.atomic import write_text
from cogalign.training.progress import track

Use = Literal["commercial", "redistribution"]
DUPLICATES, CONFLICTS, QUARANTINE, OVERVIEW = "duplicates.jsonl", "conflicts.jsonl", "quarantine.jsonl", "overview"
_TOLD = 5


@dataclass
class MergeSummary:
    """What a merge did."""

    out: Path
    cases: int = 0
    sets: int = 0
    data_sets: int = 0
    groups: int = 0
    repeated: int = 0
    """Cases that show the photograph of another case."""
    dropped: int = 0
    conflicts: int = 0
    """Photographs whose copies have different findings."""
    crossing: dict[str, dict[str, int]] = field(default_factory=dict)
    """Groups with cases in more than one split, and how many in each."""
    linked: int = 0
    copied: int = 0

    def text(self) -> str:
        """The summary for a reader."""
        lines = [
            f"merged {_count(self.sets, 'case set')} ({_count(self.data_sets, 'data set')}) into {self.out}: "
            f"{_count(self.cases, 'case')}, {_count(self.groups, 'group')}; "
            f"{_count(self.linked, 'file')} linked, {self.copied} copied"
        ]
        if self.repeated:
            done = f"{self.dropped} dropped" if self.dropped else "kept, in one group"
            lines.append(f"repeat a photograph: {_count(self.repeated, 'case')}, {done}: see {self.out / DUPLICATES}")
        if self.conflicts:
            photographs = _count(self.conflicts, "photograph")
            lines.append(f"copies with different findings: {photographs}: see {self.out / CONFLICTS}")
        if self.crossing:
            first = [
                f"{name} ({', '.join(f'{split} {number}' for split, number in splits.items())})"
                for name, splits in list(self.crossing.items())[:_TOLD]
            ]
            lines.append(
                f"in more than one split, which leaks: {_count(len(self.crossing), 'group')}, such as {'; '.join(first)}; "
                f"draw new splits with 'cogalign data split {self.out}'"
            )
        lines.append(f"see {self.out / OVERVIEW / 'summary.md'}")
        return "\n".join(lines)


def _count(number: int, what: str) -> str:
    """A number with its noun."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class _Item:
    """A case on its way into the merged set."""

    case: Case
    """With its new names."""
    origin: CaseSet
    number: int
    """Of the set it comes from."""
    files: dict[str, str]
    """New file name of each of its files -> old one."""
    print_: Fingerprint


def merge_case_sets(
    sets: Sequence[Path],
    out: Path,
    *,
    require: Use | None = None,
    drop_duplicates: bool = False,
    flag_text: bool = True,
    workers: int | None = None,
) -> MergeSummary:
    """Write a new case set from several.

    Files are hard links where the file system allows it, else copies; symbolic links that lead out of a set stay
    links. Ids and file names change only where two sets have the same. Groups that share a photograph become one
    (`groups.with_joined_groups`), as do a case and its counterfactuals. Cases that show the photograph of a better
    annotated one (mask, then boxes, then size) get its id as `attributes.duplicate_of`, or are dropped. Counterfactuals
    are no duplicates of their originals. Splits stay as they are; quarantine, paid answers (`annotations.jsonl`) and
    reviews (`review.jsonl`) come along. The sets themselves gain nothing but a renewed `fingerprints.npz`.

    Args:
        sets: folders of case sets.
        out: a folder that does not exist yet.
        require: refuse data sets whose licence does not say `yes` to this use.
        drop_duplicates: leave all but one of each photograph out.
        flag_text: look for overlays in images where nobody has.
        workers: as in `parallel.each`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: a folder is no case set, or a file is missing.
        ValueError: no set or the same set twice; a licence forbids the use; a set or image cannot be read; a
            side file is a link out of its set. Nothing stays of the new set.
    """
    folders = [Path(folder) for folder in sets]
    out = Path(out)
    if os.path.lexists(out):
        raise FileExistsError(f"{out}: exists already, wanted a folder that does not; nothing is overwritten")
    if not folders or len({os.path.realpath(folder) for folder in folders}) != len(folders):
        raise ValueError(f"sets: found {[str(folder) for folder in folders]}, wanted one or more different case sets")
    origins = [read_case_set(folder) for folder in folders]
    if require is not None:
        _refuse(origins, require)
    items = _items(origins, workers)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        summary = _write(items, origins, temporary, drop_duplicates, flag_text, workers)
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return replace(summary, out=out)


def _refuse(origins: Sequence[CaseSet], use: Use) -> None:
    """Raise a ValueError that lists all data sets whose licence does not allow a use."""
    refused = []
    for origin in origins:
        for source in sources_of(read_sources(origin.root), origin.cases):
            answer = getattr(source.licence, use)
            if answer != "yes":
                name = source.title or "cases without a data set"
                refused.append(f"{origin.root}: {name}, {source.cases} cases: {answer} ({source.licence.name})")
    if refused:
        leave = sorted({line.split(":")[0] for line in refused})
        raise ValueError(
            f"require {use}: {len(refused)} data sets do not allow it, wanted 'yes' for each:\n  "
            + "\n  ".join(refused)
            + f"\nleave these sets out: {', '.join(leave)}"
        )


def _items(origins: Sequence[CaseSet], workers: int | None) -> list[_Item]:
    """All cases of all sets with unique names."""
    names = Renamed()
    items = []
    for number, origin in enumerate(origins):
        cases, files = unique_names(origin, names)
        for case, own, print_ in zip(cases, files, fingerprints_of(origin, workers), strict=True):
            items.append(_Item(case, origin, number, own, print_))
    return items


def _write(
    items: list[_Item], origins: Sequence[CaseSet], folder: Path, drop: bool, flag_text: bool, workers: int | None
) -> MergeSummary:
    """Write the merged set to a folder."""
    firsts = photographs([item.print_ for item in items])
    grouped = with_joined_groups([item.case for item in items], firsts, [item.number for item in items])
    kept_of = _kept(items, firsts)
    summary = MergeSummary(folder, sets=len(origins))
    summary.repeated = sum(kept != index for index, kept in enumerate(kept_of))
    _write_lines(folder / DUPLICATES, [_duplicate(items, index, kept, drop) for index, kept in enumerate(kept_of)
                                      if kept != index])  # fmt: skip
    conflicts = _conflicts(items, firsts)
    summary.conflicts = len(conflicts)
    _write_lines(folder / CONFLICTS, conflicts)
    chosen, cases = [], []
    for index, (item, case, kept) in enumerate(zip(items, grouped, kept_of, strict=True)):
        attributes = {key: value for key, value in case.attributes.items() if key != "duplicate_of"}
        if kept != index:
            if drop:
                continue
            attributes["duplicate_of"] = items[kept].case.id
        chosen.append(item)
        cases.append(replace(case, attributes=attributes))
    summary.dropped = len(items) - len(cases)
    _place_files(chosen, folder, summary)
    merged = CaseSet(folder, cases)
    if flag_text:
        unseen = [case for case in cases if "overlays" not in case.attributes]
        seen = {case.id: case for case in with_overlays(merged, unseen, workers)} if unseen else {}
        merged = CaseSet(folder, [seen.get(case.id, case) for case in cases])
    write_fingerprints(folder, [case.file_name for case in cases], [item.print_ for item in chosen])
    sources = sources_of([source for origin in origins for source in read_sources(origin.root)], cases)
    write_sources(folder, sources)
    _write_journals(items, origins, folder)
    write_metadata(folder, [case.to_row() for case in merged.cases])
    write_overview(merged, folder / OVERVIEW)
    summary.cases, summary.data_sets = len(cases), len(sources)
    summary.groups = len({case.group or case.id for case in cases})
    summary.crossing = crossing_groups(cases)
    return summary


def _kept(items: Sequence[_Item], firsts: Sequence[int]) -> list[int]:
    """For each item the index of the one that stands for its photograph: itself unless a richer one shows the same."""
    used = {name for item in items for name in (item.case.counterfactual_of, item.case.background_of) if name}
    subjects = [_subject(item.case, first) for item, first in zip(items, firsts, strict=True)]
    best: dict[tuple[int, str, str], int] = {}
    for index, (item, subject) in enumerate(zip(items, subjects, strict=True)):
        if item.case.counterfactual_of is None and (subject not in best or _worth(item) > _worth(items[best[subject]])):
            best[subject] = index
    return [
        index if item.case.counterfactual_of is not None or item.case.id in used else best[subject]
        for index, (item, subject) in enumerate(zip(items, subjects, strict=True))
    ]


def _subject(case: Case, photograph: int) -> tuple[int, str, str]:
    """What a case is about: its photograph, or one question on it. Only the same question and answer is a repetition."""
    return (photograph, case.question, case.answer) if case.is_question else (photograph, "", "")


def _worth(item: _Item) -> tuple[bool, bool, int]:
    """How much is known of a case: mask before boxes before pixels."""
    width, height = item.print_.size
    return item.case.mask_file_name is not None, bool(item.case.boxes), width * height


def _duplicate(items: Sequence[_Item], index: int, kept: int, drop: bool) -> dict[str, object]:
    """The line of `duplicates.jsonl` of a case that repeats another one."""
    one, other = items[index], items[kept]
    return {
        "id": one.case.id,
        "duplicate_of": other.case.id,
        "exact": one.print_.digest == other.print_.digest,
        "dropped": drop,
        "dataset": one.case.dataset,
        "dataset_kept": other.case.dataset,
        "file": next(iter(one.files.values())),
        "findings": list(one.case.findings),
        "findings_kept": list(other.case.findings),
    }


def _conflicts(items: Sequence[_Item], firsts: Sequence[int]) -> list[dict[str, object]]:
    """A line for each photograph whose copies have different findings."""
    members: dict[int, list[_Item]] = {}
    for item, first in zip(items, firsts, strict=True):
        if item.case.counterfactual_of is None and not item.case.is_question:
            members.setdefault(first, []).append(item)
    return [
        {
            "cases": [
                {"id": item.case.id, "dataset": item.case.dataset, "findings": list(item.case.findings)}
                for item in inside
            ]
        }
        for inside in members.values()
        if len({frozenset(item.case.findings) for item in inside}) > 1
    ]


def _place_files(items: Sequence[_Item], folder: Path, summary: MergeSummary) -> None:
    """Put the files of the items into the folder: each once."""
    placed: set[str] = set()
    for item in track(items, "merge"):
        for new, old in item.files.items():
            if new in placed:
                continue
            placed.add(new)
            target = folder / new
            target.parent.mkdir(parents=True, exist_ok=True)
            linked = _place(item.origin.path(old), item.origin.root, target)
            summary.linked += linked
            summary.copied += not linked


def _place(source: Path, root: Path, target: Path) -> bool:
    """Link a file, or copy it where that cannot be; returns whether it is a link."""
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file, though a case of {root} names it")
    real = Path(os.path.realpath(source))
    if not real.is_relative_to(os.path.realpath(root)):
        target.symlink_to(real)
        return True
    try:
        os.link(real, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(real, target)
        return False
    return True


def _write_journals(items: Sequence[_Item], origins: Sequence[CaseSet], folder: Path) -> None:
    """The lines of quarantine and journals of all sets, one set after the other, with the new ids of the cases.

    A paid answer is asked for again where a case got another id, since the id is part of the question's digest.
    """
    write_text(folder / QUARANTINE, "".join(read_lines(origin.root, QUARANTINE) for origin in origins))
    own: list[list[str]] = [[] for _ in origins]
    for item in items:
        own[item.number].append(item.case.id)
    for name in CASE_JOURNALS:
        text = ""
        for origin, new in zip(origins, own, strict=True):
            ids = dict(zip((case.id for case in origin.cases), new, strict=True))
            text += renamed_lines(read_lines(origin.root, name), ids)
        if text:
            write_text(folder / name, text)


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write JSON lines; no file for none."""
    if rows:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
