"""Which cases get which interventions, and what is left out and why. Decided from the rows; no image is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.counterfactual.backgrounds import Backgrounds, background_split
from cogalign.counterfactual.interventions import stream
from cogalign.counterfactual.located import Located
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.spread import spread_evenly
from cogalign.recipe import CounterfactualSettings, Intervention


@dataclass(frozen=True)
class Edit:
    """One counterfactual to be made.

    Attributes:
        id: of the counterfactual case.
        name: stem of its files.
        intervention: what is done.
        index: which of the `per_case` ones, from 0.
        backgrounds: for a transplant, the cases on which it is tried, in order.
        removes: for a removal of one of several findings, what goes; empty: everything.
    """

    id: str
    name: str
    intervention: Intervention
    index: int
    backgrounds: tuple[Case, ...] = ()
    removes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A source case, the file that its copy gets, and all that is made of it."""

    case: Case
    source_file_name: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Plan:
    """The tasks in the case set's order, and how many source cases each reason left out."""

    tasks: tuple[Task, ...]
    left_out: dict[str, int]


def unsuitable(case: Case) -> str | None:
    """Why no counterfactual can be made of a case whatever its mask, or None.

    Each finding must be focal: a diffuse disease is still there when a part of the mucosa is painted over.
    """
    unknown = [finding for finding in case.findings if finding not in FINDINGS]
    if case.counterfactual_of is not None:
        return "is a counterfactual"
    if case.is_question:
        return "question case: no findings"
    if case.is_normal:
        return "normal: no lesion"
    if unknown:
        return f"finding not in the taxonomy: {unknown[0]}"
    diffuse = [finding for finding in case.findings if not FINDINGS[finding].focal]
    if diffuse:
        return f"finding not focal: {diffuse[0]}"
    return None


def exclusion(case: Case, located: Mapping[str, Located]) -> str | None:
    """Why no counterfactual can be made of a case, or None: it is `unsuitable`, or nothing tells where its lesions are."""
    reason = unsuitable(case)
    if reason is not None:
        return reason
    found = located.get(case.id)
    if found is None:
        return None if case.mask_file_name is not None else "no mask"
    return found.reason or None


def make_plan(
    case_set: CaseSet, settings: CounterfactualSettings, located: Mapping[str, Located] | None = None
) -> Plan:
    """Plan all counterfactuals of a case set.

    Args:
        case_set: factual cases.
        settings: splits, interventions, backgrounds, number a case, limit, seed.
        located: masks that were found, or why there is none, by case id; by default the case set's own masks.

    Raises:
        ValueError: a split is not there, no case of the splits can be used, or see `background_split`.
    """
    positions = {case.id: position for position, case in enumerate(case_set.cases)}
    left_out: Counter[str] = Counter()
    known = located or {}
    tasks: list[Task] = []
    for split in settings.splits:
        cases = case_set.split(split)
        reasons = {case.id: exclusion(case, known) for case in cases}
        left_out.update(reason for reason in reasons.values() if reason is not None)
        usable = [case for case in cases if reasons[case.id] is None]
        chosen = spread_evenly(usable, settings.limit)
        if len(chosen) < len(usable):
            left_out["beyond the limit"] += len(usable) - len(chosen)
        lenders = case_set.split(background_split(case_set, settings, split))
        clear = [case for case in lenders if case.is_normal or exclusion(case, known) is None]
        backgrounds = Backgrounds(clear, settings.backgrounds)
        tasks += [_task(case, positions[case.id], backgrounds, settings) for case in chosen]
    if not tasks:
        reasons_text = ", ".join(f"{reason} ({count})" for reason, count in left_out.most_common(4))
        raise ValueError(
            f"{case_set.root}: no case of the splits {', '.join(settings.splits)} has a focal lesion with a mask, "
            f"wanted at least one; left out: {reasons_text}"
        )
    tasks.sort(key=lambda task: positions[task.case.id])
    return Plan(tuple(tasks), dict(left_out.most_common()))


def _task(case: Case, position: int, backgrounds: Backgrounds, settings: CounterfactualSettings) -> Task:
    """The edits of one case. Files are named by position: ids may hold any character, and names of splits."""
    edits = []
    for intervention in settings.interventions:
        # A removal has next to no chance in it: a second one would be the same.
        for index in range(1 if intervention == "removal" else settings.per_case):
            suffix = f"-{index}" if settings.per_case > 1 and intervention != "removal" else ""
            partners: tuple[Case, ...] = ()
            if intervention == "transplant":
                partners = backgrounds.draw(case, stream(settings.seed, case.id, "partner", index))
            name = f"{position:06d}-{intervention}{suffix}"
            edits.append(Edit(f"{case.id}-{intervention}{suffix}", name, intervention, index, partners))
        if intervention == "removal" and settings.one_of_several:
            edits += _single_removals(case, position)
    return Task(case, f"sources/{position:06d}{Path(case.file_name).suffix.lower()}", tuple(edits))


def _single_removals(case: Case, position: int) -> list[Edit]:
    """One removal for each finding of a case with several, if boxes tell which lesion has which finding."""
    if len(set(case.findings)) < 2 or {box.finding for box in case.boxes} != set(case.findings):
        return []
    return [
        Edit(
            f"{case.id}-removal-{finding}",
            f"{position:06d}-removal-{index}",
            "removal",
            index,
            removes=(finding,),
        )
        for index, finding in enumerate(dict.fromkeys(case.findings), start=1)
    ]
