"""Label Studio: annotations in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import numpy as np

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import image_size
from cogalign.data.review.brush import decode
from cogalign.data.review.coco import box_of
from cogalign.data.review.label_studio import CASE_KEY
from cogalign.data.review.lesions import Lesion, Refined, bounds, finding_of, without_refined
from cogalign.data.review.polygons import rasterise
from cogalign.data.review.rle import Mask, Rle
from cogalign.data.review.verdicts import Verdict, decision_of

_REGIONS = {"brush": "brushlabels", "polygon": "polygonlabels", "rectangle": "rectanglelabels"}
"""Types of regions that are read, without and with labels of their own."""


@dataclass
class Annotations:
    """What came back from Label Studio."""

    refined: list[Refined] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)


def is_label_studio(content: Any) -> bool:
    """Whether a parsed JSON file looks like a Label Studio export."""
    return isinstance(content, list) and all(isinstance(task, dict) for task in content) and bool(content)


def parse_label_studio(content: Any, where: str, case_set: CaseSet) -> Annotations:
    """Lesions and verdicts of a parsed Label Studio export (format JSON).

    Of several annotations of a task the newest wins; cancelled ones and predictions do not count. Brush, polygon and
    rectangle regions, `choices` accept or reject and text areas (as remarks) are read. A rectangle that became a brush
    or polygon region of the same finding is dropped.

    Args:
        content: the parsed file.
        where: its name, for messages.
        case_set: the reviewed case set.

    Raises:
        FileNotFoundError: an image of the case set is missing.
        ValueError: the file is another export; a task is not the case set's; a region is damaged, of another type or
            of another image size. The message names task and case.
    """
    if not is_label_studio(content):
        raise ValueError(f"{where}: wanted Label Studio's export in format JSON, a list of tasks")
    found = Annotations()
    newest: dict[str, tuple[datetime, Case, dict[str, Any], str]] = {}
    for number, task in enumerate(content, start=1):
        place = f"{where}: task {task.get('id', number)}"
        if not isinstance(task.get("data"), dict):
            raise ValueError(
                f"{place}: found no data, wanted Label Studio's export in format JSON (not JSON-MIN or CSV)"
            )
        annotations = task.get("annotations") or task.get("completions") or []
        if not isinstance(annotations, list):
            raise ValueError(f"{place}: annotations: found {type(annotations).__name__}, wanted a list")
        for annotation in annotations:
            if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
                raise ValueError(f"{place}: found an annotation without result, wanted format JSON")
            if annotation.get("was_cancelled"):
                continue
            case = _case(task["data"], place, case_set)
            when = _when(annotation, place)
            if case.id not in newest or when >= newest[case.id][0]:
                newest[case.id] = (when, case, annotation, place)
    for _, case, annotation, place in newest.values():
        try:
            _read(annotation, case, case_set, found)
        except (ValueError, TypeError, KeyError) as error:
            told = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{place} (case {case.id!r}): {told}") from None
    return found


def _case(data: Mapping[str, Any], place: str, case_set: CaseSet) -> Case:
    """The case of a task."""
    case_id = data.get(CASE_KEY)
    if not isinstance(case_id, str) or case_id not in case_set.by_id:
        near = get_close_matches(str(case_id), case_set.by_id, n=1, cutoff=0.0)
        raise ValueError(
            f"{place}: data.{CASE_KEY}: found {case_id!r}, which {case_set.root} does not have; nearest: {near[0]!r}"
        )
    return case_set.by_id[case_id]


def _when(annotation: Mapping[str, Any], place: str) -> datetime:
    """When an annotation was last changed; long ago if it does not tell."""
    text = annotation.get("updated_at") or annotation.get("created_at")
    if text is None:
        return datetime.min.replace(tzinfo=UTC)
    try:
        when = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        raise ValueError(f"{place}: updated_at: found {text!r}, wanted a time such as 2026-01-31T12:00:00Z") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _annotator(annotation: Mapping[str, Any]) -> str:
    """Who made an annotation: e-mail address, else number."""
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("username") or who.get("id")
    return "" if who is None else str(who)


def _read(annotation: Mapping[str, Any], case: Case, case_set: CaseSet, found: Annotations) -> None:
    """Put the lesions and the verdict of an annotation to what was found."""
    by = _annotator(annotation)
    width, height = image_size(case_set.path(case.file_name))
    lesions: list[Lesion] = []
    decisions: list[str] = []
    notes: list[str] = []
    for result in annotation["result"]:
        kind, value = result["type"], result.get("value", {})
        if kind == "choices":
            decisions += value["choices"]
        elif kind == "textarea":
            notes += [value["text"]] if isinstance(value["text"], str) else value["text"]
        elif kind in _REGIONS or kind in _REGIONS.values():
            lesions.append(_lesion(result, value, case, height, width))
        elif kind not in ("labels", "relation"):
            raise ValueError(f"type: found {kind!r}, wanted one of {', '.join(_REGIONS.values())}, choices, textarea")
    if len(set(decisions)) > 1:
        raise ValueError(f"choices: found {', '.join(decisions)}, wanted one")
    if decisions:
        decision = decision_of(decisions[0], "choices")
        found.verdicts[case.id] = Verdict(decision, by, "\n".join(notes), case.counterfactual_of)
    if lesions:
        found.refined.append(Refined(case.id, tuple(without_refined(lesions)), by, confirmed=True))


def _lesion(result: Mapping[str, Any], value: Mapping[str, Any], case: Case, height: int, width: int) -> Lesion:
    """The lesion of a region."""
    size = (result.get("original_width"), result.get("original_height"))
    if size != (width, height):
        raise ValueError(f"region: found an image of {size[0]} x {size[1]} pixels, wanted {width} x {height}")
    if result.get("image_rotation"):
        raise ValueError(f"image_rotation: found {result['image_rotation']!r}, wanted 0 as in the case set")
    kind = next(name for name, labelled in _REGIONS.items() if result["type"] in (name, labelled))
    labels = value.get(_REGIONS[kind]) or value.get("labels")
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        raise ValueError(f"{_REGIONS[kind]}: found {labels!r}, wanted one label")
    finding = finding_of(labels[0], case)
    if kind == "rectangle":
        corners = _rectangle(value, height, width)
        left, top = corners.min(axis=0)
        right, bottom = corners.max(axis=0)
        return Lesion(finding, box_of(left, top, right, bottom, height, width))
    mask = decode(value["rle"], height, width) if kind == "brush" else _polygon(value, height, width)
    if not mask.any():
        raise ValueError(f"{kind} region: covers no pixel of the image")
    return Lesion(finding, bounds(mask), Rle.from_mask(mask))


def _polygon(value: Mapping[str, Any], height: int, width: int) -> Mask:
    """The mask of a polygon, whose corners are in percent of the sides."""
    points = np.array(value["points"], dtype=np.float64) * [width / 100, height / 100]
    return rasterise(points, height, width)


def _rectangle(value: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """The corners of a rectangle in pixels, 4 x 2; it is turned around its upper left corner, clockwise."""
    x, y, across, down = (float(value[name]) / 100 for name in ("x", "y", "width", "height"))
    angle = math.radians(float(value.get("rotation") or 0))
    along = across * width * np.array([math.cos(angle), math.sin(angle)])
    below = down * height * np.array([-math.sin(angle), math.cos(angle)])
    corner = np.array([x * width, y * height])
    return np.stack([corner, corner + along, corner + along + below, corner + below])
