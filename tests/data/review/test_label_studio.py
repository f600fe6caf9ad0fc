import base64
import json
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from cogalign.data.caseset import CaseSet
from cogalign.data.review.brush import encode
from cogalign.data.review.label_studio import export_label_studio
from cogalign.data.review.label_studio_import import Annotations, parse_label_studio
from cogalign.data.review.lesions import Lesion


def tasks(case_set: CaseSet, images: Any = "link") -> list[dict[str, Any]]:
    folder = export_label_studio(case_set, case_set.root.parent / "ls", images)
    return json.loads((folder / "tasks.json").read_text())


def task(case_set: CaseSet, name: str) -> dict[str, Any]:
    return next(task for task in tasks(case_set) if task["data"]["cogalign_id"] == name)


def annotated(exported: dict[str, Any], *results: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The task as it comes back with an annotation of some results, else of its own prediction."""
    result = list(results) or exported["predictions"][0]["result"]
    return {**exported, "annotations": [{"id": 1, "completed_by": 7, "result": result, **fields}]}


def read(case_set: CaseSet, *content: Any) -> Annotations:
    return parse_label_studio(list(content), "export.json", case_set)


def region(kind: str, value: dict[str, Any], **fields: Any) -> dict[str, Any]:
    common = {"original_width": 56, "original_height": 40, "image_rotation": 0, "to_name": "image"}
    return {**common, "type": kind, "value": value, **fields}


RECTANGLE = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["polyp"]}


def test_an_accepted_prediction_comes_back_as_the_same_mask(cases: CaseSet) -> None:
    found = read(cases, *(annotated(t) for t in tasks(cases) if "predictions" in t))
    by_id = {item.case_id: item for item in found.refined}
    assert by_id.keys() == {"ring", "two", "boxed"}
    for name in ("ring", "two"):
        assert np.array_equal(by_id[name].mask(), cases.mask(cases.by_id[name]))
    assert [lesion.finding for lesion in by_id["two"].lesions] == ["polyp", "erosion"]
    assert by_id["boxed"].lesions == (Lesion("polyp", (10, 10, 30, 25)),)
    assert all(item.by == "7" and item.confirmed for item in found.refined)


def test_tasks_that_nobody_annotated_say_nothing(cases: CaseSet) -> None:
    assert read(cases, *tasks(cases)) == Annotations()


def test_links_are_relative_to_the_case_set_and_inline_images_are_its_bytes(cases: CaseSet) -> None:
    assert task(cases, "ring")["data"]["image"] == "/data/local-files/?d=images/ring.png"
    inline = tasks(cases, "inline")[0]["data"]
    kind, data = inline["image"].split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == cases.path(cases.by_id[inline["cogalign_id"]].file_name).read_bytes()


def test_the_configuration_has_a_control_for_all_that_is_written_and_read(cases: CaseSet, pairs: CaseSet) -> None:
    folder = export_label_studio(cases, cases.root.parent / "ls")
    config = ElementTree.fromstring((folder / "labelling.xml").read_text())
    names = {element.get("name") for element in config}
    assert {r["from_name"] for t in tasks(cases) for p in t.get("predictions", []) for r in p["result"]} <= names
    assert [label.get("value") for label in config.find("BrushLabels") or []] == ["polyp", "erosion", "lesion"]
    assert [choice.get("value") for choice in config.find("Choices") or []] == ["accept", "reject"]
    export_label_studio(pairs, folder)
    config = ElementTree.fromstring((folder / "labelling.xml").read_text())
    assert [image.get("value") for image in config.findall("Image")] == ["$source", "$image"]
    assert config.find("BrushLabels") is None


def test_counterfactuals_get_a_verdict_beside_their_source(pairs: CaseSet) -> None:
    exported = task(pairs, "ring-removal")
    assert exported["data"]["source"].endswith("sources/ring.png")
    (prediction,) = exported["predictions"]
    assert [result["value"] for result in prediction["result"]] == [{"choices": ["accept"]}]
    note = region("textarea", {"text": ["rim", "left"]})
    back = annotated(
        exported, {"type": "choices", "value": {"choices": ["reject"]}}, note, completed_by={"email": "a@b.c"}
    )
    verdict = read(pairs, back).verdicts["ring-removal"]
    assert (verdict.decision, verdict.by, verdict.note, verdict.of) == ("reject", "a@b.c", "rim\nleft", "ring")


def test_the_newest_annotation_wins_and_cancelled_ones_do_not_count(cases: CaseSet) -> None:
    exported = task(cases, "boxed")
    dates = {"1": "2026-03-01T10:00:00Z", "2": "2026-03-02T09:00:00.5+02:00", "3": "2026-03-05T00:00:00Z"}
    exported["annotations"] = [
        {"completed_by": int(who), "created_at": "2026-01-01T00:00:00Z", "updated_at": when, "was_cancelled": who == "3",
         "result": [region("rectanglelabels", {**RECTANGLE, "x": 10 * int(who)})]}
        for who, when in dates.items()
    ]  # fmt: skip
    (item,) = read(cases, exported).refined
    assert item.by == "2" and item.lesions[0].box == (11, 20, 40, 30)
    exported["annotations"].reverse()
    assert read(cases, exported).refined == [item]


def test_a_brush_takes_the_place_of_the_predicted_rectangle(cases: CaseSet) -> None:
    exported = task(cases, "boxed")
    mask = np.zeros((40, 56), dtype=bool)
    mask[12:22, 12:28] = True
    brush = region("brushlabels", {"format": "rle", "rle": encode(mask), "brushlabels": ["Polyp"]})
    (item,) = read(cases, annotated(exported, *exported["predictions"][0]["result"], brush)).refined
    assert [lesion.box for lesion in item.lesions] == [(12, 12, 28, 22)]
    assert np.array_equal(item.mask(), mask)


def test_polygons_are_in_percent_of_the_sides(cases: CaseSet) -> None:
    square = {"points": [[25, 25], [50, 25], [50, 75], [25, 75]], "closed": True, "polygonlabels": ["polyp"]}
    (item,) = read(cases, annotated(task(cases, "boxed"), region("polygonlabels", square))).refined
    expected = np.zeros((40, 56), dtype=bool)
    expected[10:30, 14:28] = True
    assert np.array_equal(item.mask(), expected)


def test_a_turned_rectangle_becomes_the_box_around_it(cases: CaseSet) -> None:
    turned = {**RECTANGLE, "x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90}
    (item,) = read(cases, annotated(task(cases, "boxed"), region("rectanglelabels", turned))).refined
    # 14 x 10 pixels, turned around (28, 10): 10 to the left, 14 down.
    assert item.lesions[0].box == (18, 10, 28, 24)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([region("rectanglelabels", RECTANGLE, original_width=57)], "found an image of 57 x 40 pixels, wanted 56 x 40"),
        ([region("rectanglelabels", RECTANGLE, image_rotation=90)], "image_rotation: found 90"),
        ([region("rectanglelabels", {**RECTANGLE, "x": 150})], "outside the image"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": []})], "wanted one label"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["ulcer"]})], "the case's findings: polyp"),
        ([region("rectanglelabels", {"rectanglelabels": ["polyp"]})], "missing 'x'"),
        ([region("brushlabels", {"rle": [0, 0, 0, 9], "brushlabels": ["polyp"]})], "rle: holds 9 values, wanted 8960"),
        ([region("brushlabels", {"brushlabels": ["polyp"]})], "missing 'rle'"),
        ([region("brushlabels", {"rle": encode(np.zeros((40, 56), bool)), "brushlabels": ["polyp"]})], "no pixel"),
        ([region("polygonlabels", {"points": [[1, 2]], "polygonlabels": ["polyp"]})], "polygon"),
        ([region("ellipselabels", {})], "found 'ellipselabels', wanted one of brushlabels"),
        ([region("choices", {"choices": ["perhaps"]})], "found 'perhaps', wanted one of accept, reject"),
        ([region("choices", {"choices": ["accept", "reject"]})], "found accept, reject, wanted one"),
    ],
)
def test_a_damaged_region_names_task_and_case(cases: CaseSet, results: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read(cases, annotated({**task(cases, "boxed"), "id": 31}, *results))
    assert "export.json: task 31 (case 'boxed')" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"cogalign_id": "bosed"}}, "found 'bosed'.*nearest: 'boxed'"),
        ({"data": None}, "found no data, wanted .*format JSON"),
        ({"annotations": {"1": 2}}, "annotations: found dict"),
        ({"annotations": [{"id": 1}]}, "annotation without result"),
        ({"annotations": [{"result": [], "updated_at": "yesterday"}]}, "updated_at: found 'yesterday'"),
    ],
)
def test_another_export_is_refused(cases: CaseSet, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(cases, {**annotated(task(cases, "boxed")), **change})


def test_what_is_no_list_of_tasks_is_refused(cases: CaseSet) -> None:
    with pytest.raises(ValueError, match="a list of tasks"):
        parse_label_studio({}, "x.json", cases)
