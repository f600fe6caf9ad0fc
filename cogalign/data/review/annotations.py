"""Label Studio's exports, JSON and JSON-MIN, as one kind of list: who made which results for which case, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.review.fields import DIGEST, FIELD_OF, FINDINGS_FIELD, REPORT_NOTE, REPORT_VERDICT
from cogalign.data.review.label_studio import BRUSH, CASE_KEY, IMAGE, NOTE, POLYGON, RECTANGLE, VERDICT

_REGIONS = {BRUSH: "brushlabels", POLYGON: "polygonlabels", RECTANGLE: "rectanglelabels"}
_BOOKS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")
"""What JSON-MIN writes beside the task's data and the controls."""
_DATA = (CASE_KEY, DIGEST, IMAGE, "about", "source")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Annotation:
    """What one annotator handed in for one case.

    Args:
        case: of the reviewed case set.
        by: the annotator: e-mail address, else number; empty if the file does not tell.
        when: last change; long ago if the file does not tell.
        results: Label Studio's results.
        place: file and task, for messages.
        lead_time: seconds that it took; None if the file does not tell.
        ground_truth: it was marked as the one that counts.
        report: digest of the report as it was exported; empty if it was not.
    """

    case: Case
    by: str
    when: datetime
    results: tuple[dict[str, Any], ...]
    place: str
    lead_time: float | None = None
    ground_truth: bool = False
    report: str = ""

    @property
    def time(self) -> str:
        """The last change as a text; empty if it is not known."""
        return "" if self.when == _LONG_AGO else self.when.isoformat()

    @property
    def has_regions(self) -> bool:
        """Whether something is drawn on the image."""
        return any(result["type"] not in ("choices", "textarea") for result in self.results)


def is_label_studio(content: Any) -> bool:
    """Whether a parsed JSON file looks like a Label Studio export."""
    return isinstance(content, list) and all(isinstance(task, dict) for task in content) and bool(content)


def read_annotations(content: Any, where: str, case_set: CaseSet) -> list[Annotation]:
    """The annotations of a parsed export, in the order of the file.

    Skipped (cancelled) annotations, drafts and predictions do not count.

    Args:
        content: the parsed file, JSON or JSON-MIN.
        where: its name, for messages.
        case_set: the reviewed case set.

    Raises:
        ValueError: the file is another export, a task is not the case set's, or an annotation is damaged; the message
            names the task.
    """
    if not is_label_studio(content):
        raise ValueError(f"{where}: wanted Label Studio's export in format JSON, a list of tasks")
    return [found for number, task in enumerate(content, start=1) for found in _of_task(number, task, where, case_set)]


def _of_task(number: int, task: dict[str, Any], where: str, case_set: CaseSet) -> Iterator[Annotation]:
    """The annotations of one task that count."""
    place = f"{where}: task {task.get('id', number)}"
    if "data" not in task and CASE_KEY in task:
        task = _full(task)
    if not isinstance(task.get("data"), dict):
        raise ValueError(
            f"{place}: found no data, wanted Label Studio's export in format JSON (not CSV), or JSON-MIN of a project "
            f"of cogalign with {CASE_KEY} in each task"
        )
    annotations = task.get("annotations") or task.get("completions") or []
    if not isinstance(annotations, list):
        raise ValueError(f"{place}: annotations: found {type(annotations).__name__}, wanted a list")
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise ValueError(f"{place}: found an annotation without result, wanted format JSON")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        case = _case(task["data"], place, case_set)
        yield _annotation(annotation, case, f"{place} (case {case.id!r})", str(task["data"].get(DIGEST) or ""))


def _annotation(annotation: Mapping[str, Any], case: Case, place: str, report: str) -> Annotation:
    """An annotation with its fields checked."""
    for result in annotation["result"]:
        if not isinstance(result, dict) or not isinstance(result.get("type"), str):
            raise ValueError(f"{place}: found the result {str(result)[:60]!r}, wanted an object with a type")
        if not isinstance(result.get("value", {}), dict):
            raise ValueError(f"{place}: value: found {str(result['value'])[:60]!r}, wanted an object")
    lead = annotation.get("lead_time")
    return Annotation(
        case=case,
        by=_annotator(annotation),
        when=_when(annotation, place),
        results=tuple(annotation["result"]),
        place=place,
        lead_time=float(lead) if isinstance(lead, int | float) else None,
        ground_truth=bool(annotation.get("ground_truth")),
        report=report,
    )


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
        return _LONG_AGO
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


def _full(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of JSON-MIN (one annotation) as a task of JSON. A row without annotation gives a task without.

    JSON-MIN leaves out the types of the controls, which their names give back, and who marked a ground truth.
    """
    data = {name: row[name] for name in _DATA if name in row}
    if row.get("annotation_id") is None:
        return {"id": row.get("id"), "data": data}
    results = [
        result for name, value in row.items() if name not in (*_DATA, *_BOOKS) for result in _results(name, value)
    ]
    annotation = {
        "id": row["annotation_id"],
        "completed_by": row.get("annotator"),
        "result": results,
        **{name: row.get(name) for name in ("created_at", "updated_at", "lead_time")},
    }
    return {"id": row.get("id"), "data": data, "annotations": [annotation]}


def _results(name: str, value: Any) -> Iterator[dict[str, Any]]:
    """The results of one control of a JSON-MIN row: a text, an object, or a list of them."""
    kind = _kind(name)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            item = {"choices": [item]} if kind == "choices" else {"text": [item]}
        if not isinstance(item, dict):
            raise ValueError(f"JSON-MIN: {name}: found {str(item)[:60]!r}, wanted a text or an object")
        size = {side: item[side] for side in ("original_width", "original_height") if side in item}
        rest = {key: part for key, part in item.items() if key not in size}
        yield {"from_name": name, "type": kind, "value": rest, **size}


def _kind(name: str) -> str:
    """The type of the results of a control, by its name; the name itself for a control of another project."""
    if name in _REGIONS:
        return _REGIONS[name]
    if name in (VERDICT, REPORT_VERDICT) or FIELD_OF.get(name) == FINDINGS_FIELD:
        return "choices"
    if name in (NOTE, REPORT_NOTE) or name in FIELD_OF:
        return "textarea"
    return name
