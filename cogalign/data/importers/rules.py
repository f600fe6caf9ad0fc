"""From a card's layout and a folder to photographs: which files there are and what the annotation says of each."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogalign.cognition.anatomy import key as plain
from cogalign.data.cards.card import Card, Label, Part, Table, as_template
from cogalign.data.cards.template import SUFFIXES, expand, expand_all, group_name, placeholders, regex_of
from cogalign.data.importers.base import Photograph, RawMask, Record, Rejected
from cogalign.data.importers.boxes import Boxes
from cogalign.data.importers.root import refuse_packed
from cogalign.data.importers.splits import OfficialSplit
from cogalign.data.importers.tables import Joined, Row, unmatched
from cogalign.data.importers.tree import Tree

_IMAGE = re.compile(r".*\.(?:" + "|".join(SUFFIXES) + ")", re.IGNORECASE)
_TRUE = ("1", "1.0", "true", "yes", "x")


def read_layout(root: Path, card: Card) -> Iterator[Record]:
    """The photographs of a card's layout.

    Raises:
        FileNotFoundError: archives are not unpacked, or a table that must be there is not.
        ValueError: a table or a file of boxes cannot be read.
    """
    tree = Tree(root)
    parts = [_PartReader(tree, part, card) for part in card.layout.parts]
    refuse_packed(tree, card, [path for part in parts for path, _ in part.images])
    yield from tree.refused
    yield from _without_repeats(parts)
    yield from unmatched([table for part in parts for table in part.tables])
    for boxes in {id(part.boxes): part.boxes for part in parts if part.boxes}.values():
        yield from boxes.unmatched()
    yield from _lonely_masks(tree, parts)


def _without_repeats(parts: list[_PartReader]) -> Iterator[Record]:
    """The photographs of all parts, with those whose key came before treated as the part says."""
    first: dict[str, Photograph] = {}
    for part in parts:
        for record in part.read():
            if isinstance(record, Rejected):
                yield record
            elif record.key not in first:
                first[record.key] = record
            elif part.part.repeats == "reject":
                earlier = first[record.key].path.relative_to(part.tree.root).as_posix()
                yield Rejected(record.path, f"its key {record.key!r} is that of {earlier} too")
            elif part.part.repeats == "merge":
                first[record.key] = _united(first[record.key], record)
    yield from first.values()


def _united(first: Photograph, again: Photograph) -> Photograph:
    """A photograph with the labels and boxes of both."""
    return replace(
        first,
        labels=tuple(dict.fromkeys((*first.labels, *again.labels))),
        boxes=tuple(dict.fromkeys((*first.boxes, *again.boxes))),
        mask=first.mask or again.mask,
        group=first.group or again.group,
        split=first.split or again.split,
        attributes={**again.attributes, **first.attributes},
    )


def _lonely_masks(tree: Tree, parts: list[_PartReader]) -> Iterator[Rejected]:
    """Files in the folders of masks that belong to no image."""
    used = set().union(*(part.masks_used for part in parts))
    for path in sorted(set().union(*(part.mask_files() for part in parts)) - used):
        yield Rejected(tree.root / path, "a mask without an image")


class _PartReader:
    """One part of a layout."""

    def __init__(self, tree: Tree, part: Part, card: Card) -> None:
        self.tree = tree
        self.part = part
        self.images = list(_images(tree, part))
        columns = _columns(part)
        self.tables = [Joined(tree, table, columns.get(table.name, set())) for table in part.tables]
        self.boxes = Boxes(tree, part.boxes, decide=_from_boxes(part)) if part.boxes else None
        self.split = OfficialSplit(tree, part.split) if part.split else None
        self.masks_used: set[str] = set()
        self.label_map = tuple(part.label_map.items())
        self.imaging = card.imaging

    def read(self) -> Iterator[Record]:
        """The photographs of the part."""
        for path, fields in self.images:
            rows: dict[str, list[Row]] = {}
            mask, problem = self._mask(fields)
            if self.boxes:
                self.boxes.mark(fields)
            try:
                for table in self.tables:
                    self._join(table, fields, rows)
                if problem := self.tree.problems.get(path, problem):
                    raise ValueError(problem)
                yield self._photograph(path, fields, rows, mask)
            except ValueError as error:
                yield Rejected(self.tree.root / path, str(error))

    def _join(self, table: Joined, fields: dict[str, str], rows: dict[str, list[Row]]) -> None:
        """Add an image's columns to its fields, or its rows if it may have several."""
        found = table.of(fields)
        if not found and table.table.required:
            raise ValueError(f"{table.paths[0].name} has no row for it")
        if table.table.many:
            rows[table.table.name] = found
        elif found:
            fields.update({f"{table.table.name}.{name}": value for name, value in found[0].items()})

    def _photograph(
        self, path: str, fields: Mapping[str, str], rows: Mapping[str, list[Row]], mask: RawMask | None
    ) -> Photograph:
        part = self.part
        self._agree(fields)
        if mask is None and part.mask is not None and part.mask.missing == "quarantine":
            raise ValueError(f"no mask: {part.mask.files} is not there")
        boxes, size = self.boxes.of(fields, rows) if self.boxes else ((), None)
        labels, source = self._labels(fields, rows)
        key = expand(part.key, fields) if part.key else fields["path"]
        if key is None:
            raise ValueError(f"no key: {part.key!r} names a field which it does not have")
        split, extra = self.split.of(fields) if self.split else (None, {})
        return Photograph(
            path=self.tree.root / path,
            key=key,
            labels=labels,
            label_from=source,
            none=part.none,
            label_map=self.label_map,
            organ=self._organ(fields),
            mask=mask,
            boxes=boxes,
            size=size,
            group=expand(part.group, fields) or "" if part.group else "",
            split=split,
            attributes={**self._attributes(fields, rows), **extra},
        )

    def _agree(self, fields: Mapping[str, str]) -> None:
        """Raise a `ValueError` if the layout and a table say different things."""
        for one, other in self.part.agree.items():
            first, second = (expand(as_template(text), fields) for text in (one, other))
            if first is not None and second is not None and plain(first) != plain(second):
                raise ValueError(f"{_where(one, self.part)} says {first!r}, {_where(other, self.part)} {second!r}")

    def _labels(self, fields: Mapping[str, str], rows: Mapping[str, list[Row]]) -> tuple[tuple[str, ...], Any]:
        """Class names, and where they come from if not from texts."""
        label = Label(text=self.part.label) if isinstance(self.part.label, str) else self.part.label
        if label is None:
            return (), None
        if label.source is not None:
            return (), label.source
        if label.columns:
            names = [
                name
                for name, template in label.columns.items()
                if any(text.lower() in _TRUE for text in expand_all(as_template(template), fields, rows))
            ]
            return tuple(names), "boxes" if not names else None
        texts = expand_all(label.text or "", fields, rows)
        if label.several:
            texts = [word.strip() for text in texts for word in text.split(label.several) if word.strip()]
        if not texts:
            raise ValueError(f"no class: {label.text!r} names a field which it does not have")
        return tuple(dict.fromkeys(texts)), None

    def _organ(self, fields: Mapping[str, str]) -> str | None:
        organ = self.part.organ
        if organ is None or isinstance(organ, str):
            return organ
        text = expand(as_template(organ.by), fields) or ""
        return organ.map.get(text) or {plain(name): value for name, value in organ.map.items()}.get(plain(text))

    def _mask(self, fields: Mapping[str, str]) -> tuple[RawMask | None, str]:
        """The mask files of an image, and what is wrong with one that must not be opened."""
        rule = self.part.mask
        if rule is None:
            return None, ""
        found = [
            (path, texts)
            for path, texts in self.tree.beside(rule.files, fields)
            if _IMAGE.fullmatch(path) and not any(regex_of(pattern).fullmatch(path) for pattern in rule.exclude)
        ]
        self.masks_used.update(path for path, _ in found)
        files = (
            (self.tree.root / path, (expand(rule.class_, {**fields, **texts}) or "") if rule.class_ else "")
            for path, texts in found
        )
        return RawMask(tuple(files), rule) if found else None, self.tree.problem(path for path, _ in found)

    def mask_files(self) -> set[str]:
        """The images of the folders in which this part's masks were found."""
        folders = {path.rpartition("/")[0] for path in self.masks_used}
        folders -= {path.rpartition("/")[0] for path, _ in self.images}
        excluded = self.part.mask.exclude if self.part.mask else ()
        return {
            path
            for path in self.tree.files
            if path.rpartition("/")[0] in folders
            and _IMAGE.fullmatch(path)
            and not any(regex_of(pattern).fullmatch(path) for pattern in excluded)
        }

    def _attributes(self, fields: Mapping[str, str], rows: Mapping[str, list[Row]]) -> dict[str, Any]:
        """What the card keeps beside: a text, or a list where a table has several."""
        found: dict[str, Any] = {}
        for name, template in self.part.attributes.items():
            texts = expand_all(as_template(template) if "." in template else template, fields, rows)
            if texts:
                found[name] = texts[0] if len(texts) == 1 else texts
        return found


def _images(tree: Tree, part: Part) -> Iterator[tuple[str, dict[str, str]]]:
    """Path and fields of every image of a part."""
    expression = regex_of(part.images)
    excluded = [regex_of(pattern) for pattern in part.exclude]
    names = placeholders(part.images)
    for path in tree.files:
        match = expression.fullmatch(path)
        if match is None or any(one.fullmatch(path) for one in excluded):
            continue
        folder, _, name = path.rpartition("/")
        fields = {"name": name, "folder": folder.rpartition("/")[2], "path": path.rpartition(".")[0]}
        fields |= {one: match[group_name(one)] for one in names}
        yield path, fields | _ranges(part, fields)


def _ranges(part: Part, fields: Mapping[str, str]) -> dict[str, str]:
    """The numbers of the ranges that an image lies in."""
    found = {}
    for name, ranges in part.ranges.items():
        text = expand(ranges.of, fields) or ""
        if text.isdecimal() and int(text) >= ranges.starts[0]:
            found[name] = str(bisect_right(ranges.starts, int(text)))
    return found


def _from_boxes(part: Part) -> bool:
    """Whether the class of an image comes from its boxes."""
    return not isinstance(part.label, str) and part.label is not None and part.label.source == "boxes"


def _columns(part: Part) -> dict[str, set[str]]:
    """The columns that templates of a part name, by table."""
    found: dict[str, set[str]] = {}
    for text in _texts(part):
        for name in placeholders(text):
            table, dot, column = name.partition(".")
            if dot:
                found.setdefault(table, set()).add(column)
    return found


def _texts(part: Part) -> Iterator[str]:
    """All templates of a part that may name a column."""
    label = Label(text=part.label) if isinstance(part.label, str) else part.label
    if label is not None:
        yield from (text for text in (label.text, *map(as_template, label.columns.values())) if text)
    yield from (text for text in (part.key, part.group) if text)
    yield from (as_template(text) for pair in part.agree.items() for text in pair)
    yield from part.attributes.values()
    if part.organ is not None and not isinstance(part.organ, str):
        yield as_template(part.organ.by)
    if part.boxes is not None:
        yield from (as_template(text) for text in part.boxes.columns.values())
    if part.split is not None and part.split.source:
        yield part.split.source
    if part.split is not None and part.split.folds is not None and part.split.folds.file is None:
        yield as_template(part.split.folds.column)


def _where(text: str, part: Part) -> str:
    """A template of `agree` in words: the file of the table, or the folder."""
    names = placeholders(as_template(text))
    table = next((one for one in part.tables if names and names[0].startswith(f"{one.name}.")), None)
    return _file_name(table) if table else "the folder"


def _file_name(table: Table) -> str:
    return table.file.rpartition("/")[2]
