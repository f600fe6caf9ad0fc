"""One photograph: decoded once, checked, and its files written. Runs in worker processes."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogalign.cognition.anatomy import landmark_of
from cogalign.cognition.keywords import extract
from cogalign.cognition.report import render
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.cognition.templates import template_report
from cogalign.data.cards.card import Card
from cogalign.data.case import Box, Case
from cogalign.data.images import Fingerprint, Unreadable, fingerprint, load_pixels, resize_image, resize_mask
from cogalign.data.importers.base import Photograph, RawBox
from cogalign.data.importers.labels import Decision, LabelMap, LeftOut, decide, organ_of
from cogalign.data.importers.masks import class_masks, mask_png
from cogalign.data.overlays import find_overlays, scaled, scaled_overlays
from cogalign.data.paths import inside

SPLITS = ("train", "validation", "test")
_TOLERANCE = 2  # pixels by which a box may leave its image before the photograph is refused
_SLACK, _RELATIVE_SLACK = 0.0005, 0.01  # pixels from a whole number that are no part of a pixel
_PARIS = re.compile(r"(?:0-?)?I{1,3}[a-z+/ I]{0,8}")


@dataclass(frozen=True)
class Settings:
    """What is the same for all photographs of an import."""

    card: Card
    root: Path
    out: Path
    reference: bool
    side: int | None


@dataclass(frozen=True)
class Job:
    """A photograph, the id of its case, and the stem of its files."""

    photograph: Photograph
    case_id: str
    stem: str


@dataclass(frozen=True)
class Done:
    """What became of a photograph: a row of `metadata.jsonl`, or a reason, or the classes that the card leaves out."""

    row: dict[str, Any] | None = None
    print_: Fingerprint | None = None
    reason: str = ""
    left_out: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Class names of labels, masks and boxes that the card maps to null, beside others that it keeps."""
    again: bool = False
    """The reason does not lie in the files (the disk failed, a link may be allowed later): the next run tries again."""


def work(settings: Settings, job: Job) -> Done:
    """Decode, check and write one photograph. Whatever is wrong with its files becomes `Done.reason`.

    Raises:
        OSError: the case set cannot be written.
    """
    try:
        return _import(settings, job)
    except LeftOut as error:
        return Done(left_out=error.labels)
    except (Unreadable, FileNotFoundError) as error:
        return Done(reason=str(error), again=True)
    except ValueError as error:
        return Done(reason=str(error))


def _import(settings: Settings, job: Job) -> Done:
    photograph = job.photograph
    for path in photograph.files:
        try:
            inside(settings.root, path.relative_to(settings.root))  # a symbolic link may lead out
        except ValueError as error:
            raise Unreadable(str(error)) from None
    image, plain = load_pixels(photograph.path)
    height, width = image.shape[:2]
    if photograph.size is not None and photograph.size != (width, height):
        stated = f"{photograph.size[0]} x {photograph.size[1]}"
        raise ValueError(f"found {width} x {height} pixels, the box file says {stated}")
    names = LabelMap(settings.card, photograph)
    mask, classes, decision = _masks(photograph, names, (height, width))
    boxes, unused = _boxes(photograph.boxes, names, width, height, settings.side)
    if mask is not None and not mask.any():
        mask, decision = _without_lesion(photograph, mask, decision)
    print_ = fingerprint(image)
    overlays: dict[str, list[list[int]]] | None = None
    if settings.side is not None:
        # Letters are too small to be found once the image is shrunk.
        overlays = scaled_overlays(find_overlays(image), width, height, settings.side)
        classes = {name: _shrunk(known, width, height, settings.side) for name, known in classes.items()}
        image = resize_image(image, settings.side)
        small = resize_mask(mask, settings.side) if mask is not None else None
        if mask is not None and small is not None and mask.any() and not small.any():
            raise ValueError(f"its lesion is too small for a side of {settings.side} pixels")
        mask = small
    file_name = _write_image(settings, job, image, plain)
    if mask is not None:
        (settings.out / "masks" / f"{job.stem}.png").write_bytes(mask_png(mask))
    case = _case(settings.card, job, decision, file_name, mask is not None, boxes, classes)
    if overlays is not None:
        case = replace(case, attributes={**case.attributes, "overlays": overlays})
    row = case.to_row()
    thumbnail = np.rint(print_.thumbnail).clip(0, 255).astype(np.uint8)
    return Done(row, replace(print_, thumbnail=thumbnail), ignored=(*decision.ignored, *unused))


def _masks(
    photograph: Photograph, names: LabelMap, shape: tuple[int, int]
) -> tuple[np.ndarray | None, dict[str, Any], Decision]:
    """The mask of all lesions, what is known of each class in it, and what the image shows."""
    if photograph.mask is None:
        return None, {}, decide(photograph, names)
    parts = class_masks(photograph.mask)
    for part in parts.values():
        if part.shape != shape:
            found = f"found {shape[1]} x {shape[0]} pixels"
            raise ValueError(f"{found}, its mask has {part.shape[1]} x {part.shape[0]}")
    decision = decide(photograph, names, [name for name in parts if name])
    union = np.zeros(shape, dtype=bool)
    classes = {}
    for name, part in parts.items():
        findings = names.of(name) if name else ()
        if findings is None:
            continue
        union = part if len(parts) == 1 else union | part
        if name:
            classes[name] = {"finding": findings[0], "pixels": int(part.sum()), "box": _around(part)}
    return union, classes, decision


def _around(mask: np.ndarray) -> list[int]:
    """xmin, ymin, xmax, ymax (exclusive) of the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _without_lesion(photograph: Photograph, mask: np.ndarray, decision: Decision) -> tuple[np.ndarray | None, Decision]:
    """Mask and decision of an image whose mask is empty, as the card's rule says."""
    rule = photograph.mask.rule.empty if photograph.mask else "none"
    if rule == "none":
        return None, decision
    if rule == "normal":
        if photograph.boxes:
            raise ValueError("its mask is empty, though it has a box")
        return None, replace(decision, findings=("normal",))
    if any(FINDINGS[one].focal for one in decision.findings):
        raise ValueError(f"its mask is empty, though the class is {', '.join(map(repr, decision.labels))}")
    return mask, decision


def _boxes(
    boxes: Sequence[RawBox], names: LabelMap, width: int, height: int, side: int | None
) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    """Boxes with the taxonomy's findings, and the class names of those that the card leaves out."""
    found, unused = [], []
    for box in boxes:
        findings = names.of(box.label)
        if findings is None:
            unused.append(box.label)
        else:
            found.append(_box(box, findings[0], width, height, side))
    return tuple(found), tuple(dict.fromkeys(unused))


def _box(box: RawBox, finding: str, width: int, height: int, side: int | None) -> Box:
    """A box in whole pixels, clipped to the image and scaled to a square of `side`.

    It is rounded outwards, except what is nearly whole: shares of six decimals are off by up to 0.0075 pixels of 10,000.
    """
    across, down = (width, height) if box.relative else (1, 1)
    slack = _RELATIVE_SLACK if box.relative else _SLACK
    low = [math.floor(value + slack) for value in (box.xmin * across, box.ymin * down)]
    high = [math.ceil(value - slack) for value in (box.xmax * across, box.ymax * down)]
    xmin, ymin, xmax, ymax = max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height)
    outside = max(abs(xmin - low[0]), abs(ymin - low[1]), abs(xmax - high[0]), abs(ymax - high[1]))
    if xmin >= xmax or ymin >= ymax or outside > _TOLERANCE:
        raise ValueError(f"box {(*low, *high)} leaves the image of {width} x {height} pixels")
    return Box(finding, *(scaled((xmin, ymin, xmax, ymax), width, height, side) if side else (xmin, ymin, xmax, ymax)))


def _shrunk(known: Mapping[str, Any], width: int, height: int, side: int) -> dict[str, Any]:
    """What is known of a class's mask, for an image that is made a square of `side` pixels."""
    pixels = round(known["pixels"] * side * side / (width * height))
    return {**known, "pixels": pixels, "box": list(scaled(known["box"], width, height, side))}


def _write_image(settings: Settings, job: Job, image: np.ndarray, plain: bool) -> str:
    """Write the image and give its name in the case set: the bytes as they are, a link, or a PNG of the pixels.

    A PNG is written where the size changes, and of what not every library reads alike (TIFF, 16 bits, transparency, a
    rotation in the EXIF).
    """
    source = job.photograph.path
    keeps = plain and settings.side is None
    name = f"images/{job.stem}{source.suffix.lower() if keeps else '.png'}"
    target = settings.out / name
    target.unlink(missing_ok=True)
    if not keeps:
        Image.fromarray(image).save(target, format="PNG", compress_level=1)
    elif settings.reference:
        target.symlink_to(os.path.abspath(source))
    else:
        shutil.copyfile(source, target)
    return name


def _case(
    card: Card,
    job: Job,
    decision: Decision,
    file_name: str,
    has_mask: bool,
    boxes: tuple[Box, ...],
    classes: Mapping[str, Any],
) -> Case:
    """The case of a photograph."""
    photograph = job.photograph
    organ = organ_of(photograph, decision)
    attributes = _attributes(card, photograph, decision, classes)
    answer, keywords = photograph.answer, dict[str, list[str]]()
    if decision.findings:
        landmark = next((label for label in decision.labels if landmark_of(label)), None)
        paris = str(attributes.get("paris", ""))
        text, keywords = _told(decision.findings, organ, landmark, paris if _PARIS.fullmatch(paris) else None)
        answer = answer or text
    return Case(
        id=job.case_id,
        file_name=file_name,
        findings=decision.findings,
        split=photograph.split if photograph.split in SPLITS else "train",
        organ=organ,
        group=f"{card.id}:{photograph.group}" if photograph.group else "",
        dataset=card.title,
        licence=card.licence.name,
        mask_file_name=f"masks/{job.stem}.png" if has_mask else None,
        boxes=boxes,
        question=photograph.question,
        answer=answer,
        keywords=keywords,
        attributes=attributes,
    )


@cache
def _told(
    findings: tuple[str, ...], organ: str, landmark: str | None, paris: str | None
) -> tuple[str, dict[str, list[str]]]:
    """The report of what the classes say, and its keywords; many photographs share one."""
    report = template_report(findings, organ, landmark, paris=paris)
    return render(report), extract(report)


def _attributes(card: Card, photograph: Photograph, decision: Decision, classes: Mapping[str, Any]) -> dict[str, Any]:
    """What is known besides."""
    found: dict[str, Any] = {"file": photograph.path.name, "imaging": card.imaging}
    if decision.labels:
        found["class"] = decision.labels[0] if len(decision.labels) == 1 else list(decision.labels)
    if card.light != "unknown":
        found["light"] = card.light
    if photograph.split:
        found["official_split"] = photograph.split
    if classes:
        found["masks"] = dict(classes)
    return {**found, **photograph.attributes}
