"""COCO instance files: lesions out, refined lesions in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.images import image_size
from cogalign.data.paths import inside
from cogalign.data.review.lesions import UNNAMED, Lesion, Refined, bounds, finding_of, lesions_of, without_refined
from cogalign.data.review.polygons import outlines, rasterise
from cogalign.data.review.rle import Mask, Rle
from cogalign.training.atomic import write_json
from cogalign.training.progress import track

CASE_KEY = "cogalign_id"
"""Key of an image that holds the case's id."""


def export_coco(case_set: CaseSet, out: Path) -> Path:
    """Write the lesions of a case set as one COCO instance file.

    One annotation a lesion. Its `segmentation` is a list of polygons; it is a run-length encoding where the lesion
    has holes, which polygons cannot say. Either gives the very same mask when it is read again. A lesion of which
    only the box is known has an empty `segmentation`: draw its outline. Counterfactuals are left out: their
    masks are the regions of the edit.

    Args:
        case_set: factual cases.
        out: the JSON file.

    Raises:
        FileNotFoundError, ValueError: an image or mask is missing or damaged, or all cases are counterfactuals.
    """
    cases = [case for case in case_set.cases if case.counterfactual_of is None]
    if not cases:
        raise ValueError(f"{case_set.root}: all cases are counterfactuals, wanted a case set with lesions to outline")
    categories = {name: number for number, name in enumerate([*FINDINGS, UNNAMED], start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, case in enumerate(track(cases, "export COCO"), start=1):
        width, height = image_size(case_set.path(case.file_name))
        images.append({"id": number, "file_name": case.file_name, "width": width, "height": height, CASE_KEY: case.id})
        for lesion in lesions_of(case, case_set.mask(case)):
            category = categories.get(lesion.finding or UNNAMED)
            if category is None:
                raise ValueError(f"case {case.id!r}: finding {lesion.finding!r} is not in the taxonomy")
            annotations.append(_annotation(len(annotations) + 1, number, category, lesion))
    write_json(
        out,
        {
            "info": {"description": f"Lesions of {case_set.root.name}, written by cogalign"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": "finding"} for name, number in categories.items()
            ],
        },
    )
    return out


def _annotation(number: int, image: int, category: int, lesion: Lesion) -> dict[str, Any]:
    """The annotation of a lesion."""
    xmin, ymin, xmax, ymax = lesion.box
    area = lesion.region.area if lesion.region is not None else (xmax - xmin) * (ymax - ymin)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
        "area": area,
        "iscrowd": 0,
        "segmentation": [] if lesion.region is None else segmentation(lesion.region),
    }


def segmentation(region: Rle) -> list[list[float]] | dict[str, Any]:
    """A region as polygons, or as run lengths where polygons would not give the same mask."""
    mask = region.mask()
    polygons, hole = outlines(mask)
    if not hole:
        drawn = np.zeros_like(mask)
        for polygon in polygons:
            drawn |= rasterise(polygon, *mask.shape)
        if np.array_equal(drawn, mask):
            return [polygon.ravel().tolist() for polygon in polygons]
    return {"counts": list(region.counts), "size": [region.height, region.width]}


@dataclass(frozen=True)
class _Picture:
    """An image of the file: its case and size."""

    case: Case
    height: int
    width: int


def parse_coco(content: Any, where: str, case_set: CaseSet) -> list[Refined]:
    """Lesions of a parsed COCO instance file, for the cases that have annotations in it.

    Polygons (a list means their union), uncompressed and compressed run lengths are read. An image is found by
    `cogalign_id`, else by its `file_name`. A bare box that became a segmentation of the same finding is dropped. A
    file does not tell which images somebody looked at: see `Refined.confirmed`.

    Args:
        content: the parsed file.
        where: its name, for messages.
        case_set: the reviewed case set.

    Raises:
        FileNotFoundError: an image of the case set is missing.
        ValueError: the file is no COCO instance file; an image, category or size is not the case set's; a
            segmentation is damaged. The message names the entry.
    """
    if not is_coco(content):
        raise ValueError(f"{where}: wanted a COCO instance file with images, annotations and categories")
    pictures = {}
    for entry in _objects(content, "images", where):
        pictures[_id(entry, "id", where, "images")] = _picture(entry, where, case_set)
    labels = {
        _id(entry, "id", where, "categories"): entry.get("name") for entry in _objects(content, "categories", where)
    }
    lesions: dict[str, list[Lesion]] = defaultdict(list)
    for number, entry in enumerate(_objects(content, "annotations", where), start=1):
        place = f"{where}: annotation {entry.get('id', number)}"
        picture = pictures.get(entry.get("image_id"))  # type: ignore[arg-type]
        if picture is None:
            raise ValueError(f"{place}: image_id: found {entry.get('image_id')!r}, which is not among the images")
        label = labels.get(entry.get("category_id"))  # type: ignore[arg-type]
        if not isinstance(label, str):
            raise ValueError(
                f"{place}: category_id: found {entry.get('category_id')!r}, which is not among the categories"
            )
        try:
            lesion = _lesion(entry, finding_of(label, picture.case), picture)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place} (case {picture.case.id!r}): {error}") from None
        lesions[picture.case.id].append(lesion)
    return [Refined(case_id, tuple(without_refined(found))) for case_id, found in lesions.items()]


def is_coco(content: Any) -> bool:
    """Whether a parsed JSON file looks like a COCO instance file."""
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _objects(content: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The list of objects under a key."""
    for entry in content[key]:
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {key}: found {entry!r}, wanted objects")
    entries: list[dict[str, Any]] = content[key]
    return entries


def _id(entry: Mapping[str, Any], name: str, where: str, key: str) -> int | str:
    """The id of an entry."""
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{where}: {key}: {name}: found {value!r}, wanted a number or a text")
    return value


def _picture(entry: Mapping[str, Any], where: str, case_set: CaseSet) -> _Picture:
    """The case of an image of the file, after a check of its size."""
    place = f"{where}: image {entry.get('id')!r}"
    case = _case(entry, place, case_set)
    width, height = image_size(case_set.path(case.file_name))
    found = (entry.get("width"), entry.get("height"))
    if found != (width, height):
        raise ValueError(f"{place} (case {case.id!r}): found {found[0]} x {found[1]} pixels, wanted {width} x {height}")
    return _Picture(case, height, width)


def _case(entry: Mapping[str, Any], place: str, case_set: CaseSet) -> Case:
    """The case that an image of the file means."""
    case_id, file_name = entry.get(CASE_KEY), entry.get("file_name")
    if case_id is not None:
        if isinstance(case_id, str) and case_id in case_set.by_id:
            return case_set.by_id[case_id]
        near = get_close_matches(str(case_id), case_set.by_id, n=1, cutoff=0.0)
        raise ValueError(
            f"{place}: {CASE_KEY}: found {case_id!r}, which {case_set.root} does not have; nearest: {near[0]!r}"
        )
    if not isinstance(file_name, str):
        raise ValueError(f"{place}: found neither {CASE_KEY} nor file_name")
    try:
        wanted = inside(case_set.root, file_name)
    except ValueError as error:
        raise ValueError(f"{place}: file_name: {error}") from None
    matches = [case for case in case_set.cases if case_set.path(case.file_name) == wanted]
    if not matches:
        raise ValueError(f"{place}: file_name: found {file_name!r}, which is no image of {case_set.root}")
    return matches[0]


def _lesion(entry: Mapping[str, Any], finding: str, picture: _Picture) -> Lesion:
    """The lesion of an annotation."""
    shape = entry.get("segmentation")
    if shape:
        mask = _region(shape, picture.height, picture.width)
        if not mask.any():
            raise ValueError("segmentation: covers no pixel of the image")
        return Lesion(finding, bounds(mask), Rle.from_mask(mask))
    return Lesion(finding, _box(entry.get("bbox"), picture.height, picture.width))


def _region(shape: object, height: int, width: int) -> Mask:
    """The mask of a `segmentation`."""
    if isinstance(shape, dict):
        if shape.get("size") != [height, width]:
            raise ValueError(
                f"segmentation.size: found {shape.get('size')!r}, wanted {[height, width]} (height, width)"
            )
        counts = shape.get("counts")
        if not isinstance(counts, str | list):
            raise ValueError(f"segmentation.counts: found {type(counts).__name__}, wanted a list or a text")
        return Rle.from_counts(counts, height, width).mask()
    if not isinstance(shape, list) or not all(isinstance(polygon, list) for polygon in shape):
        raise ValueError("segmentation: wanted a list of polygons or an object with counts and size")
    mask = np.zeros((height, width), dtype=bool)
    for polygon in shape:
        values = [value for value in polygon if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(values) != len(polygon) or len(values) % 2 or len(values) < 6:
            raise ValueError(
                f"segmentation: found a polygon of {len(polygon)} values, wanted x, y of at least 3 corners"
            )
        mask |= rasterise(np.array(values, dtype=np.float64).reshape(-1, 2), height, width)
    return mask


def _box(box: object, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that a COCO box (x, y, width, height) touches."""
    numbers = isinstance(box, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    if not isinstance(box, list) or not numbers or len(box) != 4:
        raise ValueError(f"bbox: found {box!r}, wanted x, y, width and height, or a segmentation")
    return box_of(box[0], box[1], box[0] + box[2], box[1] + box[3], height, width)


def box_of(left: float, top: float, right: float, bottom: float, height: int, width: int) -> tuple[int, int, int, int]:
    """The box in whole pixels, clipped to the image; a part of less than a thousandth of a pixel does not count.

    Raises:
        ValueError: nothing of the box lies in the image.
    """
    if not np.isfinite([left, top, right, bottom]).all():
        raise ValueError("box: found a coordinate that is not finite")
    slack = 1e-3
    xmin, ymin = max(0, int(np.floor(left + slack))), max(0, int(np.floor(top + slack)))
    xmax, ymax = min(width, int(np.ceil(right - slack))), min(height, int(np.ceil(bottom - slack)))
    if xmin >= xmax or ymin >= ymax:
        raise ValueError(
            f"box: {left:g}, {top:g} to {right:g}, {bottom:g} lies outside the image of {width} x {height}"
        )
    return xmin, ymin, xmax, ymax
