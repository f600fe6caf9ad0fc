"""The row of a counterfactual: its findings, report and keywords follow from what was done to the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import parse, render
from cogalign.cognition.templates import remaining_report, removal_report, transplant_report
from cogalign.counterfactual.interventions import Edited, Move
from cogalign.counterfactual.plan import Edit, Task
from cogalign.data.case import Box, Case
from cogalign.data.sources import BACKGROUND_DATASET, OVERLAYS_DATASET, all_licences
from cogalign.recipe import Fill


def counterfactual_case(
    task: Task,
    edit: Edit,
    edited: Edited,
    fill: Fill,
    background: Case | None,
    mask_known_by: Mapping[str, Any] | None = None,
) -> Case:
    """The case of one counterfactual.

    Removal: nothing is found any more, the location stays; of one of several findings: the others remain. Control and background: findings, report and keywords
    stay. Transplant: findings and the lesion's sections follow the lesion; organ and location follow the new image; the
    licences of both images bind, and `attributes.background_dataset` and `background_split` name the second data set and
    split if they are others.

    Args:
        task: the source case.
        edit: what was planned.
        edited: what was done.
        fill: the operator; not noted for a background intervention, which paints nothing over mucosa.
        background: for a transplant, the case on which the lesion lies now.
        mask_known_by: `provenance` and `confidence` of the source's mask.

    Raises:
        ValueError: a transplant without background.
    """
    source = task.case
    # The source's own attributes stay with the source: some of them are no longer true here.
    attributes: dict[str, Any] = {"touched_share": round(float(edited.touched.mean()), 5)}
    shown = [one.attributes for one in (source, background) if one is not None and OVERLAYS_DATASET in one.attributes]
    lenders = list(dict.fromkeys(str(own[OVERLAYS_DATASET]) for own in shown))
    if lenders:  # their licences bind here too
        attributes[OVERLAYS_DATASET] = lenders[0] if len(lenders) == 1 else lenders
    if mask_known_by is not None:
        attributes["mask"] = dict(mask_known_by)
    common = replace(
        source,
        id=edit.id,
        file_name=f"images/{edit.name}.png",
        mask_file_name=f"masks/{edit.name}.png",
        source_file_name=task.source_file_name,
        attributes=attributes,
        counterfactual_of=source.id,
        intervention=edit.intervention,
        fill=None if edit.intervention == "background" else fill,
    )
    if edit.removes:
        rest = tuple(finding for finding in source.findings if finding not in edit.removes)
        report = remaining_report(parse(source.answer), rest, source.organ)
        return replace(
            common,
            findings=rest,
            boxes=tuple(box for box in source.boxes if box.finding in rest),
            answer=render(report),
            keywords=extract(report),
            attributes=attributes | {"removed": list(edit.removes)},
        )
    if edit.intervention == "removal":
        report = removal_report(parse(source.answer))
        return replace(
            common,
            findings=("normal",),
            boxes=(),
            answer=render(report),
            keywords=extract(report),
        )
    if edit.intervention == "transplant":
        if background is None:
            raise ValueError(f"counterfactual {edit.id!r}: a transplant needs a background, found none")
        report = transplant_report(parse(source.answer), parse(background.answer))
        attributes["background_findings"] = list(background.findings)
        if background.dataset != source.dataset:
            attributes[BACKGROUND_DATASET] = background.dataset
        if background.split != source.split:
            attributes["background_split"] = background.split
        return replace(
            common,
            licence=all_licences(source.licence, background.licence),
            organ=background.organ,
            boxes=moved_boxes(source, edited.moves),
            answer=render(report),
            keywords=extract(report),
            background_of=background.id,
            attributes=attributes,
        )
    return replace(common, attributes=attributes | {"changed": list(edited.changed)}) if edited.changed else common


def moved_boxes(source: Case, moves: tuple[Move, ...]) -> tuple[Box, ...]:
    """Where the lesions of a transplant lie now; each keeps the finding of the box that it came from."""
    boxes = []
    for move in moves:
        origin = max(source.boxes, key=lambda box: _shared(box, move.source), default=None)
        if origin is not None and _shared(origin, move.source) > 0:
            boxes.append(Box(origin.finding, *move.target))
        elif len(source.findings) == 1:
            boxes.append(Box(source.findings[0], *move.target))
    return tuple(boxes)


def _shared(box: Box, other: tuple[int, int, int, int]) -> int:
    """Pixels that two boxes share."""
    width = min(box.xmax, other[2]) - max(box.xmin, other[0])
    height = min(box.ymax, other[3]) - max(box.ymin, other[1])
    return max(0, width) * max(0, height)
