"""Boxes proposed by a multimodal LLM: the prompt, and a parser that takes whatever such models answer."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cogalign.cognition.taxonomy import FINDINGS, lookup
from cogalign.data.case import Box, Case

Coordinates = Literal["auto", "pixels", "thousand", "unit"]

LONGEST = 20_000
"""Characters of an answer that are read."""
MOST_BOXES = 32
"""Boxes taken from one answer; a model that repeats itself writes more."""
MOST_FAILURES = 200
"""Brackets that may lead to nothing before the rest of an answer is not read: brackets in brackets cost time."""
BEYOND = 1.02
"""Pixel coordinates may exceed the image by this factor; `auto` takes larger ones for thousandths."""
GEMINI = "box_2d"
"""Under this key numbers are [ymin, xmin, ymax, xmax] in thousandths, as Gemini writes them."""
KEYS = ("bbox_2d", "bbox", "box", GEMINI, "bounding_box", "boundingbox", "boxes", "bboxes", "coordinates")
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"),
           ("left", "top", "right", "bottom"))  # fmt: skip
SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
LABELS = ("label", "finding", "class", "name", "category")

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_TAGGED = re.compile(r"<(?:\|box_start\||box)>(.*?)(?:<(?:\|box_end\||/box)>|$)", re.DOTALL)
_FOUR = re.compile(rf"[\[(]\s*({_NUMBER})[\s,;]+({_NUMBER})[\s,;]+({_NUMBER})[\s,;]+({_NUMBER})\s*[\])]")
_POINTS = re.compile(
    rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])][\s,;]*(?:to|and|-)?\s*[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]"
)
_TRAILING = re.compile(r",\s*([}\]])")


def grounding_prompt(case: Case, width: int, height: int, coordinates: Coordinates = "auto") -> str:
    """The question for the boxes of a case's lesions.

    Args:
        case: its findings and organ are named, if the taxonomy knows them.
        width: of the image that the model is shown, in pixels.
        height: likewise.
        coordinates: what numbers are asked for; `auto` leaves that to the model.
    """
    names = [FINDINGS[name].name.lower() for name in case.findings if name in FINDINGS and not FINDINGS[name].normal]
    what = f"every {' and every '.join(names)}" if names else "every focal lesion"
    where = f" of the {case.organ.replace('_', ' ')}" if case.organ != "unknown" else ""
    scale = {
        "auto": "",
        "pixels": f" Give pixels; the image is {width} wide and {height} high.",
        "thousand": " Give whole numbers from 0 to 1000, in thousandths of the image's width and height.",
        "unit": " Give fractions from 0 to 1 of the image's width and height.",
    }[coordinates]
    label = names[0] if len(names) == 1 else "what it is"
    return (
        f"This is an endoscopic image{where}. Find {what} in it and draw the tightest box around each one, so that its "
        "whole outline lies inside. Leave out folds, bubbles, reflections, instruments, text and the dark frame. "
        "Answer with JSON only: a list with one object for each lesion, such as "
        f'[{{"bbox_2d": [x1, y1, x2, y2], "label": "{label}"}}], where x1, y1 is the upper left corner and x2, y2 the '
        f"lower right one.{scale} If you see none, answer []."
    )


@dataclass(frozen=True)
class _Raw:
    """Four numbers as the model wrote them, in the order xmin, ymin, xmax, ymax."""

    numbers: tuple[float, float, float, float]
    label: str | None = None
    thousand: bool = False


def parse_boxes(
    text: str, width: int, height: int, coordinates: Coordinates = "auto", finding: str = "lesion"
) -> list[Box]:
    """The boxes of an answer, in pixels, cut at the image's borders. Total: any text gives a list.

    JSON (in prose, code fences, with trailing commas, single quotes, or cut off), box tokens of Qwen-VL and InternVL,
    and plain tuples are understood. Swapped corners are put right; boxes without area inside the image are dropped.

    `auto` decides once for an answer: fractions if no number exceeds 1, else thousandths if all are at most 1000 and
    one leaves the image, else pixels. It cannot tell thousandths from pixels where both fit: name the model's own scale
    where it is known. Numbers under the key `box_2d` are [ymin, xmin, ymax, xmax], with `auto` in thousandths.

    Args:
        text: what the model wrote.
        width: of the image in pixels.
        height: likewise.
        coordinates: what the numbers mean.
        finding: given to boxes whose label the taxonomy does not know.
    """
    raws = list(_raw_boxes(text[:LONGEST]))
    scale = coordinates if coordinates != "auto" else _told_scale(raws, width, height)
    boxes: dict[Box, None] = {}
    for raw in raws:
        known = lookup(raw.label) if raw.label else None
        own = "thousand" if raw.thousand and coordinates == "auto" and scale != "unit" else scale
        box = _to_pixels(raw, width, height, own, known.id if known is not None else finding)
        if box is not None:
            boxes[box] = None
        if len(boxes) == MOST_BOXES:
            break
    return list(boxes)


def _told_scale(raws: Sequence[_Raw], width: int, height: int) -> Coordinates:
    """What the numbers of an answer mean, by their size."""
    numbers = [abs(number) for raw in raws for number in raw.numbers]
    if not numbers or max(numbers) <= 1:
        return "unit"
    x = max(max(raw.numbers[0], raw.numbers[2]) for raw in raws)
    y = max(max(raw.numbers[1], raw.numbers[3]) for raw in raws)
    leaves = x > BEYOND * width or y > BEYOND * height
    return "thousand" if leaves and max(numbers) <= 1000 else "pixels"


def _to_pixels(raw: _Raw, width: int, height: int, scale: Coordinates, finding: str) -> Box | None:
    """A box rounded outwards and cut at the image's borders; None if nothing of it is left."""
    x_factor, y_factor = {"unit": (width, height), "thousand": (width / 1000, height / 1000)}.get(scale, (1, 1))
    x, y = sorted(raw.numbers[::2]), sorted(raw.numbers[1::2])
    xmin, xmax = (min(max(value * x_factor, 0.0), float(width)) for value in x)
    ymin, ymax = (min(max(value * y_factor, 0.0), float(height)) for value in y)
    if not (xmin < xmax and ymin < ymax):
        return None
    # A hair's breadth of rounding must not add a pixel.
    return Box(
        finding,
        math.floor(xmin + 1e-6),
        math.floor(ymin + 1e-6),
        max(math.ceil(xmax - 1e-6), math.floor(xmin + 1e-6) + 1),
        max(math.ceil(ymax - 1e-6), math.floor(ymin + 1e-6) + 1),
    )


def _raw_boxes(text: str) -> Iterator[_Raw]:
    """Boxes by the first form that gives any: box tokens, JSON, plain tuples."""
    tagged = [_raw(numbers[i : i + 4]) for numbers in map(_numbers, _TAGGED.findall(text))
              for i in range(0, len(numbers) - 3, 4)]  # fmt: skip
    found = [raw for raw in tagged if raw is not None]
    if not found:
        found = [raw for value in _json_values(text) for raw in _walk(value)]
    if not found:
        matches = sorted([*_FOUR.finditer(text), *_POINTS.finditer(text)], key=lambda match: match.start())
        found = [raw for match in matches if (raw := _raw(match.groups())) is not None]
    yield from found


def _numbers(text: str) -> list[str]:
    """The numbers in a text."""
    return re.findall(_NUMBER, text)


def _json_values(text: str) -> Iterator[Any]:
    """Outermost parts of a text that parse as JSON objects or lists, mended if need be."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for place, letter in enumerate(text):
        if letter in "{[":
            opened.append(place)
        elif letter in "}]" and opened:
            ends[opened.pop()] = place + 1
    covered = failures = 0
    for start in sorted(ends):
        if start < covered:
            continue
        part = text[start : ends[start]]
        value = _decoded(part) if failures < MOST_FAILURES and re.search(r"\d", part) else None
        failures += value is None
        if isinstance(value, dict | list):
            covered = ends[start]
            yield value


def _decoded(text: str) -> Any:
    """The value of a JSON text, with trailing commas or as Python writes it; None if it is neither."""
    mended = _TRAILING.sub(r"\1", text)
    for read in (json.loads, ast.literal_eval):
        try:
            return read(mended)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _walk(value: Any, label: str | None = None, depth: int = 0) -> Iterator[_Raw]:
    """All boxes in a JSON value."""
    if depth > 12:
        return
    if isinstance(value, Mapping):
        keys = {str(key).strip().lower(): item for key, item in value.items()}
        own = next((str(keys[key]) for key in LABELS if isinstance(keys.get(key), str)), label)
        corners = _named(keys)
        if corners is not None:
            yield _Raw(corners.numbers, own)
            return
        boxed = next((key for key in KEYS if key in keys), None)
        if boxed == GEMINI:
            for raw in _walk(keys[boxed], own, depth + 1):
                ymin, xmin, ymax, xmax = raw.numbers
                yield _Raw((xmin, ymin, xmax, ymax), own, thousand=True)
            return
        for key, item in keys.items() if boxed is None else [(boxed, keys[boxed])]:
            if isinstance(item, Mapping | list | tuple):
                yield from _walk(item, own or (key if boxed is None else None), depth + 1)
    elif isinstance(value, list | tuple):
        flat = value
        if len(value) == 2 and all(isinstance(item, list | tuple) and len(item) == 2 for item in value):
            flat = [*value[0], *value[1]]
        plain = _raw(flat)
        if plain is not None:
            yield _Raw(plain.numbers, label)
            return
        for item in value:
            yield from _walk(item, label, depth + 1)


def _named(keys: Mapping[str, Any]) -> _Raw | None:
    """A box whose numbers have names."""
    for names in CORNERS:
        if all(name in keys for name in names):
            return _raw([keys[name] for name in names])
    for names in SIZES:
        if all(name in keys for name in names):
            placed = _raw([keys[name] for name in names])
            if placed is None:
                return None
            x, y, wide, high = placed.numbers
            return _Raw((x, y, x + wide, y + high))
    return None


def _raw(values: Sequence[Any]) -> _Raw | None:
    """Four numbers, or None if that is not what the values are."""
    if len(values) != 4 or any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except (ValueError, OverflowError):
        return None
    return _Raw((numbers[0], numbers[1], numbers[2], numbers[3])) if all(map(math.isfinite, numbers)) else None
