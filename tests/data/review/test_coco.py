import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from cogalign.data.caseset import CaseSet
from cogalign.data.review.coco import export_coco, parse_coco, segmentation
from cogalign.data.review.rle import Rle


@pytest.fixture
def exported(cases: CaseSet, tmp_path: Path) -> dict[str, Any]:
    return json.loads(export_coco(cases, tmp_path / "coco.json").read_text())


def refined(content: Any, cases: CaseSet) -> dict[str, np.ndarray | None]:
    return {item.case_id: item.mask() for item in parse_coco(content, "changed.json", cases)}


def of_image(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    image = next(image for image in content["images"] if image["cogalign_id"] == name)
    return [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]


def test_one_annotation_a_lesion_with_its_finding(exported: dict[str, Any]) -> None:
    names = {category["id"]: category["name"] for category in exported["categories"]}
    first, second = of_image(exported, "two")
    assert (names[first["category_id"]], first["bbox"], first["area"]) == ("polyp", [2, 3, 10, 6], 60)
    assert (names[second["category_id"]], second["bbox"], second["area"]) == ("erosion", [30, 20, 20, 13], 260)
    assert first["segmentation"] == [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]
    assert of_image(exported, "normal") == []


def test_a_lesion_with_a_hole_is_run_lengths(exported: dict[str, Any]) -> None:
    (entry,) = of_image(exported, "ring")
    assert entry["segmentation"]["size"] == [40, 56] and sum(entry["segmentation"]["counts"]) == 40 * 56
    assert entry["area"] == 16 * 20 - 4 * 8


def test_a_box_without_mask_waits_for_an_outline(exported: dict[str, Any]) -> None:
    (entry,) = of_image(exported, "boxed")
    assert (entry["bbox"], entry["segmentation"]) == ([10, 10, 20, 15], [])


def test_all_masks_come_back_exactly(exported: dict[str, Any], cases: CaseSet) -> None:
    masks = refined(exported, cases)
    for name in ("ring", "two"):
        assert np.array_equal(masks[name], cases.mask(cases.by_id[name]))
    assert masks["boxed"] is None and "normal" not in masks


@settings(max_examples=100, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=14)))
def test_any_region_comes_back_from_its_segmentation(mask: np.ndarray) -> None:
    from cogalign.data.review.coco import _region

    shape = segmentation(Rle.from_mask(mask))
    assert np.array_equal(_region(shape, *mask.shape), mask) or (shape == [] and not mask.any())


def test_compressed_run_lengths_and_several_annotations_make_one_mask(exported: dict[str, Any], cases: CaseSet) -> None:
    (entry,) = of_image(exported, "boxed")
    left, right = np.zeros((40, 56), dtype=bool), np.zeros((40, 56), dtype=bool)
    left[10:20, 10:18], right[12:25, 22:30] = True, True
    entry["segmentation"] = {"counts": "j<:n00000000000000V_1", "size": [40, 56]}
    exported["annotations"].append(
        {**entry, "id": 99, "segmentation": [[22, 12, 30, 12, 30, 25, 22, 25]], "bbox": [22, 12, 8, 13]}
    )
    assert np.array_equal(refined(exported, cases)["boxed"], left | right)


def test_images_are_found_by_file_name_where_an_editor_dropped_the_id(exported: dict[str, Any], cases: CaseSet) -> None:
    for image in exported["images"]:
        del image["cogalign_id"]
    assert np.array_equal(refined(exported, cases)["ring"], cases.mask(cases.by_id["ring"]))


def change(content: dict[str, Any], part: str, **fields: Any) -> dict[str, Any]:
    content[part][0].update(fields)
    return content


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("images", {"cogalign_id": "rong"}, "image 1: cogalign_id: found 'rong'.*nearest: 'ring'"),
        ("images", {"cogalign_id": None, "file_name": "images/other.png"}, "file_name: found 'images/other.png'"),
        ("images", {"cogalign_id": None, "file_name": "../cases/images/ring.png"}, "stays inside"),
        ("images", {"cogalign_id": None, "file_name": "/etc/hostname"}, "stays inside"),
        ("images", {"width": 55}, "case 'ring'.*found 55 x 40 pixels, wanted 56 x 40"),
        ("images", {"id": None}, "images: id: found None"),
        ("annotations", {"image_id": 77}, "annotation 1: image_id: found 77"),
        ("annotations", {"category_id": 777}, "category_id: found 777"),
        ("annotations", {"category_id": 3}, "wanted one of the case's findings: polyp"),
        ("annotations", {"segmentation": [[1, 2, 3]]}, "polygon of 3 values"),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "polygon of 6 values"),
        ("annotations", {"segmentation": {"counts": [4, 4], "size": [40, 56]}}, "add up to 8"),
        ("annotations", {"segmentation": {"counts": [4], "size": [56, 40]}}, r"found \[56, 40\], wanted \[40, 56\]"),
        ("annotations", {"segmentation": [[90, 90, 99, 90, 99, 99]]}, "covers no pixel"),
        ("annotations", {"segmentation": [], "bbox": [1, 2]}, r"bbox: found \[1, 2\]"),
        ("annotations", {"segmentation": [], "bbox": [90, 2, 4, 4]}, "outside the image"),
        ("categories", {"id": None}, "categories: id"),
    ],
)
def test_what_does_not_fit_is_one_clear_message(
    exported: dict[str, Any], cases: CaseSet, part: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refined(change(exported, part, **fields), cases)


def test_an_unknown_category_names_the_nearest(exported: dict[str, Any], cases: CaseSet) -> None:
    for category in exported["categories"]:
        category["name"] += "x"
    with pytest.raises(ValueError, match="found 'polypx', which is not in the taxonomy; nearest: 'polyp'"):
        refined(exported, cases)


def test_counterfactuals_have_no_lesions_to_outline(pairs: CaseSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all cases are counterfactuals"):
        export_coco(pairs, tmp_path / "coco.json")
