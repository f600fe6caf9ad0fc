"""Label Studio's two JSON exports say the same."""

from typing import Any

import numpy as np
import pytest

from cogalign.cognition.report import parse
from cogalign.data.caseset import CaseSet
from cogalign.data.review.annotations import read_annotations
from cogalign.data.review.label_studio_import import parse_label_studio
from cogalign.data.review.report_import import report_reviews
from tests.data.review.conftest import handed_in
from tests.data.review.test_report_review import exported


def minimal(task: dict[str, Any], annotation: dict[str, Any] | None) -> dict[str, Any]:
    """A row of JSON-MIN as label-studio-sdk 2.x writes it: one value is bare, several are an object or a list."""
    row: dict[str, Any] = {**task["data"], "id": task["id"]}
    found: dict[str, list[Any]] = {}
    for result in annotation["result"] if annotation else []:
        value = dict(result["value"])
        for side in ("original_width", "original_height"):
            if side in result:
                value[side] = result[side]
        (content,) = [value[key] for key in ("choices", "text") if key in value] or [[]]
        value = content[0] if len(content) == 1 else value
        found.setdefault(result["from_name"], []).append(value)
    for name, values in found.items():
        row[name] = values[0] if len(values) == 1 and name.startswith(("report", "verdict", "note")) else values
    annotation = annotation or {}
    row |= {"annotator": annotation.get("completed_by"), "annotation_id": annotation.get("id")}
    return row | {name: annotation.get(name) for name in ("created_at", "updated_at", "lead_time")}


def test_both_formats_give_the_same_reviews_and_masks(reported: CaseSet) -> None:
    tasks = exported(reported)
    made = {
        name: handed_in(task, 3, "revised", findings=["Ulcer", "Polyp"], note=["b"]) for name, task in tasks.items()
    }
    made["two"] = handed_in(tasks["two"], 4, "pass")
    full = [{**task, "annotations": [made[name]]} for name, task in tasks.items()]
    small = [minimal(task, made[name]) for name, task in tasks.items()]
    reviews = [report_reviews([("x", read_annotations(content, "x", reported))])[0] for content in (full, small)]
    assert [(r.case.id, r.annotation.by, r.annotation.time, r.verdict, r.remark, r.after) for r in reviews[0]] == [
        (r.case.id, r.annotation.by, r.annotation.time, r.verdict, r.remark, r.after) for r in reviews[1]
    ]
    assert reviews[1][0].after["findings"] == ("ulcer", "polyp") and reviews[1][0].annotation.lead_time == 12.5
    one, other = (parse_label_studio(content[1:2], "x", reported).refined[0] for content in (full, small))
    assert np.array_equal(one.mask(), other.mask()) and one.lesions == other.lesions


def test_a_row_that_nobody_annotated_says_nothing(reported: CaseSet) -> None:
    rows = [minimal(task, None) for task in exported(reported).values()]
    assert read_annotations(rows, "x", reported) == []


def test_a_control_of_others_in_json_min_is_refused_by_name(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    row = minimal(task, handed_in(task, 1, "pass")) | {"stars": {"rating": 4}}
    with pytest.raises(ValueError, match="type: found 'stars'"):
        parse_label_studio([row], "x", reported)
    with pytest.raises(ValueError, match="stars: found '4', wanted a text or an object"):
        parse_label_studio([row | {"stars": 4}], "x", reported)


def test_annotations_of_several_users_keep_their_names_and_times(reported: CaseSet) -> None:
    task = exported(reported)["one"]
    people = ({"id": 1, "email": "a@b.c"}, {"id": 2, "username": "cem"}, {"id": 3}, 4, None)
    content = [{**task, "annotations": [handed_in(task, who) for who in people]}]
    assert [found.by for found in read_annotations(content, "x", reported)] == ["a@b.c", "cem", "3", "4", ""]
    assert read_annotations(content, "x", reported)[0].time == "2026-03-01T11:00:00.500000+00:00"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (["no", "object"], "found the result .*wanted an object with a type"),
        ({"value": {}}, "wanted an object with a type"),
        ({"type": "textarea", "value": "text"}, "value: found 'text', wanted an object"),
    ],
)
def test_a_damaged_result_names_task_and_case(reported: CaseSet, result: Any, message: str) -> None:
    task = exported(reported)["one"]
    content = [{**task, "annotations": [{"id": 1, "result": [result]}]}]
    with pytest.raises(ValueError, match=rf"x: task 1 \(case 'one'\).*{message}"):
        read_annotations(content, "x", reported)


def test_the_prediction_itself_is_a_report_that_reads_back(reported: CaseSet) -> None:
    for name, task in exported(reported).items():
        content = [{**task, "annotations": [handed_in(task, 1)]}]
        (review,), told = report_reviews([("x", read_annotations(content, "x", reported))])
        assert not told and review.verdict is None
        assert all(review.decision(field) == "pass" for field in review.after)
        assert review.after["findings"] == parse(reported.by_id[name].answer).diagnosis
