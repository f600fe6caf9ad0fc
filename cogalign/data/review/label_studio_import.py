"""Label Studio: annotations in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import image_size
from cogalign.data.review.annotations import Annotation, read_annotations
from cogalign.data.review.brush import decode
from cogalign.data.review.coco import box_of
from cogalign.data.review.fields import REPORT_CONTROLS
from cogalign.data.review.lesions import UNNAMED, Lesion, Refined, bounds, finding_of, without_refined
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


def parse_label_studio(content: Any, where: str, case_set: CaseSet) -> Annotations:
    """Lesions and verdicts of a parsed Label Studio export; see `lesions_and_verdicts`.

    Raises:
        ValueError: see `read_annotations` and `lesions_and_verdicts`.
    """
    return lesions_and_verdicts(read_annotations(content, where, case_set), case_set)


def lesions_and_verdicts(annotations: Iterable[Annotation], case_set: CaseSet) -> Annotations:
    """What annotators said of images and masks. Results of report controls are passed by.

    Of several annotations of a case one marked as ground truth wins, else the newest. Brush, polygon and
    rectangle regions, `choices` accept or reject and text areas (as remarks) are read. A rectangle that became a brush
    or polygon region of the same finding is dropped.

    Args:
        annotations: of one or more exports.
        case_set: the reviewed case set, findings as they were corrected.

    Raises:
        FileNotFoundError: an image of the case set is missing.
        ValueError: a region is damaged, of another type or of another image size. The message names task and case.
    """
    found = Annotations()
    newest: dict[str, Annotation] = {}
    for annotation in annotations:
        other = newest.get(annotation.case.id)
        if other is None or (annotation.ground_truth, annotation.when) >= (other.ground_truth, other.when):
            newest[annotation.case.id] = annotation
    for annotation in newest.values():
        try:
            _read(annotation, case_set, found)
        except (ValueError, TypeError, KeyError) as error:
            told = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{annotation.place}: {told}") from None
    return found


def _read(annotation: Annotation, case_set: CaseSet, found: Annotations) -> None:
    """Put the lesions and the verdict of an annotation to what was found."""
    case = case_set.by_id[annotation.case.id]
    width, height = image_size(case_set.path(case.file_name))
    lesions: list[Lesion] = []
    decisions: list[str] = []
    notes: list[str] = []
    for result in annotation.results:
        kind, value = result["type"], result.get("value", {})
        if result.get("from_name") in REPORT_CONTROLS:
            continue
        if kind == "choices":
            decisions += value["choices"]
        elif kind == "textarea":
            notes += [value["text"]] if isinstance(value["text"], str) else value["text"]
        elif kind in _REGIONS or kind in _REGIONS.values():
            lesions.append(_lesion(result, value, annotation.case, case, height, width))
        elif kind not in ("labels", "relation"):
            raise ValueError(f"type: found {kind!r}, wanted one of {', '.join(_REGIONS.values())}, choices, textarea")
    if len(set(decisions)) > 1:
        raise ValueError(f"choices: found {', '.join(decisions)}, wanted one")
    if decisions:
        decision = decision_of(decisions[0], "choices")
        found.verdicts[case.id] = Verdict(decision, annotation.by, "\n".join(notes), case.counterfactual_of)
    if lesions:
        found.refined.append(Refined(case.id, tuple(without_refined(lesions)), annotation.by, confirmed=True))


def _lesion(
    result: Mapping[str, Any], value: Mapping[str, Any], before: Case, case: Case, height: int, width: int
) -> Lesion:
    """The lesion of a region; `before` is the case as the reviewer got it, `case` as it is corrected."""
    size = (result.get("original_width"), result.get("original_height"))
    if size != (width, height):
        raise ValueError(f"region: found an image of {size[0]} x {size[1]} pixels, wanted {width} x {height}")
    if result.get("image_rotation"):
        raise ValueError(f"image_rotation: found {result['image_rotation']!r}, wanted 0 as in the case set")
    kind = next(name for name, labelled in _REGIONS.items() if result["type"] in (name, labelled))
    labels = value.get(_REGIONS[kind]) or value.get("labels")
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        raise ValueError(f"{_REGIONS[kind]}: found {labels!r}, wanted one label")
    finding = _finding(labels[0], before, case)
    if kind == "rectangle":
        corners = _rectangle(value, height, width)
        left, top = corners.min(axis=0)
        right, bottom = corners.max(axis=0)
        return Lesion(finding, box_of(left, top, right, bottom, height, width))
    mask = decode(value["rle"], height, width) if kind == "brush" else _polygon(value, height, width)
    if not mask.any():
        raise ValueError(f"{kind} region: covers no pixel of the image")
    return Lesion(finding, bounds(mask), Rle.from_mask(mask))


def _finding(label: str, before: Case, case: Case) -> str:
    """The finding of a label. One that the report's review replaced by a single other is that other."""
    if case.is_normal and not before.is_normal:
        raise ValueError(f"label: found a region of {label!r}, but the report says normal; delete one of the two")
    if before.findings != case.findings and len(case.findings) == 1 and not case.is_normal and label != UNNAMED:
        old = finding_of(label, replace(before, findings=(*before.findings, *case.findings)))
        return old if old in case.findings else case.findings[0]
    return finding_of(label, case)


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
