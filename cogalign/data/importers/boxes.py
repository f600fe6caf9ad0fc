"""Boxes in the schemas of the data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogalign.data.cards.card import BoxRule, as_template
from cogalign.data.cards.template import alternatives, expand, regex_of
from cogalign.data.importers.base import RawBox, Rejected
from cogalign.data.importers.tables import Row, read_text
from cogalign.data.importers.tree import Tree

Found = tuple[tuple[RawBox, ...], tuple[int, int] | None]
"""Boxes, and width and height if the annotation states them."""

_SHORT = 16
"""A text file with a box has more bytes."""


class Boxes:
    """The boxes of the images of one part.

    Args:
        tree: the files of the data set.
        rule: where boxes stand.
        decide: whether the class of an image comes from its boxes, so that one without a file would count as normal. Then
            an image without a text file is refused where others have an empty one: there, no file means a lost one.

    Raises:
        ValueError: a file of all boxes is not what the rule says.
    """

    def __init__(self, tree: Tree, rule: BoxRule, *, decide: bool = False) -> None:
        self.rule = rule
        self._tree = tree
        self._decide = decide and rule.files is not None
        self._empty = next(self._empty_files(), "") if self._decide else ""
        self._without: list[str] = []
        self._paths = tree.all(rule.file) if rule.file else []
        self._entries: dict[str, Any] = {}
        self._asked: set[str] = set()
        for path in self._paths:
            self._entries.update(_object(path) if rule.format == "kvasir" else _coco_entries(path))
        self._by_end: dict[str, list[str]] = {}
        for name in self._entries if rule.format == "coco" else ():
            self._by_end.setdefault(name.rpartition("/")[2], []).append(name)

    def of(self, fields: Mapping[str, str], rows: Mapping[str, Sequence[Row]]) -> Found:
        """The boxes of an image.

        Args:
            fields: what templates may name.
            rows: rows of the tables with several rows an image.

        Raises:
            ValueError: its boxes do not parse, or there are none and the rule wants some.
        """
        if self.rule.format in ("kvasir", "coco"):
            found = self._entry(fields)
        elif self.rule.format in ("voc", "yolo"):
            found = self._lines(fields), None
        else:
            found = tuple(_table_boxes(self.rule, fields, rows)), None
        if not found[0] and self.rule.missing == "quarantine":
            raise ValueError("no box, though the card says that every image has one")
        return found

    def unmatched(self) -> Iterator[Rejected]:
        """One line for entries without an image, and one for images that count as images without a box for want of a file."""
        if self._without:
            count, first = len(self._without), self._without[0]
            folder = re.split(r"[{*]", self.rule.files or "")[0].rpartition("/")[0]
            reason = f"{count} images have no box file and count as images without a box, the first: {first}"
            yield Rejected(self._tree.root / folder, reason)
        names = [name for name in self._entries if name not in self._asked]
        if names:
            yield Rejected(self._paths[0], f"{len(names)} rows have no image, the first: {names[0]}")

    def mark(self, fields: Mapping[str, str]) -> str:
        """Note that the image of these fields is there; gives the name of its entry."""
        default = "{stem}" if self.rule.format == "kvasir" else "{name}"
        wanted = expand(self.rule.key or default, fields) or ""
        if wanted not in self._entries:
            ends = [name for name in self._by_end.get(wanted.rpartition("/")[2], []) if name.endswith(f"/{wanted}")]
            wanted = ends[0] if len(ends) == 1 else wanted
        self._asked.add(wanted)
        return wanted

    def _entry(self, fields: Mapping[str, str]) -> Found:
        entry = self._entries.get(self.mark(fields))
        if entry is None:
            return (), None
        try:
            stated = entry["width"], entry["height"]
            size = None if None in stated and self.rule.format == "coco" else (int(stated[0]), int(stated[1]))
            return tuple(self._from_object(box) for box in entry["bbox"]), size
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"its entry in the box file does not parse: {entry!r}"[:300]) from None

    def _from_object(self, box: Mapping[str, Any]) -> RawBox:
        label = str(box.get("label") or self.rule.label or "")
        return _box(label, *(float(box[name]) for name in ("xmin", "ymin", "xmax", "ymax")))

    def _lines(self, fields: Mapping[str, str]) -> tuple[RawBox, ...]:
        """The boxes of an image's own text files."""
        boxes = []
        found = list(self._tree.beside(self.rule.files or "", fields))
        if problem := self._tree.problem(path for path, _ in found):
            raise ValueError(problem)
        if self._decide and not found:
            if self._empty:
                raise ValueError(f"no box file, though images without a box have an empty one ({self._empty})")
            self._without.append(fields["path"])
        for path, _ in found:
            for number, line in enumerate(read_text(self._tree.root / path).splitlines(), start=1):
                if not line.strip():
                    continue
                try:
                    boxes.append(_yolo(line, self.rule) if self.rule.format == "yolo" else _voc(line, self.rule))
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{path} line {number}: found {line[:80]!r}, not a box ({error})") from None
        return tuple(boxes)

    def _empty_files(self) -> Iterator[str]:
        """The files of boxes that hold none."""
        patterns = [regex_of(pattern) for pattern in alternatives(self.rule.files or "")]
        for path in self._tree.files:
            file = self._tree.root / path
            fits = path not in self._tree.problems and any(one.fullmatch(path) for one in patterns)
            if fits and file.stat().st_size < _SHORT and not file.read_bytes().strip():
                yield path


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}, wanted an object with one entry for each image")
    return content


def _coco_entries(path: Path) -> dict[str, Any]:
    """The images of a COCO file by file name, in the schema of Kvasir.

    SUN-SEG's form is read too: `annotation`, whose `id` is the image's, and `case_name` before a name without suffix.
    """
    content = _object(path)
    try:
        names = {row["id"]: str(row["name"]) for row in content.get("categories", [])}
        entries: dict[Any, dict[str, Any]] = {}
        for row in content["images"]:
            name = "/".join(str(row[part]) for part in ("case_name", "file_name") if part in row)
            entries[row["id"]] = {"name": name, "width": row.get("width"), "height": row.get("height"), "bbox": []}
        for row in content["annotations"] if "annotations" in content else content["annotation"]:
            x, y, width, height = map(float, row["bbox"])
            label = names.get(row.get("category_id"))
            box = {"label": label, "xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
            entries[row["image_id"] if "image_id" in row else row["id"]]["bbox"].append(box)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not COCO: {type(error).__name__} at {error}") from None
    return {entry["name"]: entry for entry in entries.values()}


def _voc(line: str, rule: BoxRule) -> RawBox:
    """A line of sides and a class name; a class name may hold blanks if it stands at the end."""
    words = line.split() if rule.delimiter == " " else [word.strip() for word in line.split(rule.delimiter)]
    if rule.order[-1] == "label":
        last = len(rule.order) - 1
        words = [*words[:last], " ".join(words[last:])]
    if len(words) < len(rule.order):
        raise ValueError(f"wanted {' '.join(rule.order)}")
    return _sides(dict(zip(rule.order, words, strict=False)), rule.label or "")


def _yolo(line: str, rule: BoxRule) -> RawBox:
    """A line of class number, centre, width and height, as shares of the image; a confidence may follow."""
    number, *rest = line.split()
    if len(rest) not in (4, 5):
        raise ValueError("wanted a class number and 4 numbers, or 5 with a confidence; polygons are not read")
    x, y, width, height = map(float, rest[:4])
    label = rule.names[int(number)] if rule.names else rule.label or ""
    if int(number) < 0:
        raise ValueError("wanted a class number from 0")
    return RawBox(label, x - width / 2, y - height / 2, x + width / 2, y + height / 2, relative=True)


def _table_boxes(rule: BoxRule, fields: Mapping[str, str], rows: Mapping[str, Sequence[Row]]) -> Iterator[RawBox]:
    """A box for each row of the table whose columns the rule names; a row with an empty side has none."""
    templates = {name: as_template(text) for name, text in rule.columns.items()}
    table = next((text[1:].partition(".")[0] for text in templates.values()), "")
    for row in rows.get(table, [{}]):
        known = {**fields, **{f"{table}.{name}": value for name, value in row.items()}}
        texts = {name: expand(template, known) for name, template in templates.items()}
        label = texts.pop("label", None) or (expand(rule.label, known) if rule.label else "") or ""
        if any(text is None for text in texts.values()):
            continue
        try:
            yield _corners(texts, label) if rule.format == "corners" else _sides(texts, label)
        except (KeyError, ValueError):
            raise ValueError(f"its box in the table {table!r} does not parse: {texts}") from None


def _corners(texts: Mapping[str, str | None], label: str) -> RawBox:
    """The box around four corners; they are edges, so that the largest coordinates are the first outside the box."""
    numbers = {name: float(text or "") for name, text in texts.items()}
    x = [value for name, value in numbers.items() if name.startswith("x")]
    y = [value for name, value in numbers.items() if name.startswith("y")]
    return _box(label, min(x), min(y), max(x), max(y))


def _sides(texts: Mapping[str, str | None], label: str) -> RawBox:
    """The box of named sides; width and height may stand for xmax and ymax."""
    numbers = {name: float(text or "") for name, text in texts.items() if name not in ("label", "_")}
    xmax = numbers["xmin"] + numbers["width"] if "width" in numbers else numbers["xmax"]
    ymax = numbers["ymin"] + numbers["height"] if "height" in numbers else numbers["ymax"]
    return _box(texts.get("label") or label, numbers["xmin"], numbers["ymin"], xmax, ymax)


def _box(label: str, xmin: float, ymin: float, xmax: float, ymax: float) -> RawBox:
    if not all(abs(side) < 1e9 for side in (xmin, ymin, xmax, ymax)):
        raise ValueError("a side is not finite")
    if not label:
        raise ValueError("a box without a class name")
    return RawBox(label, xmin, ymin, xmax, ymax)
