"""A card: what is known of a public data set, and rules that say how its files are read.

The keys of `datasets/<id>.yaml` are the fields of these classes (where a field's name is a word of Python, the key is
in its `named`). Texts with `{...}` are templates: their placeholders are the names in the pattern `images` of the part,
`name` (file name), `folder` (name of the folder), and the columns of the part's tables, `{table.column}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cogalign.cognition.anatomy import ORGANS
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.cards.strict import named, nearest_of
from cogalign.data.cards.template import placeholders, regex_of
from cogalign.data.sources import Licence

Findings = str | tuple[str, ...] | None
"""One id of the taxonomy, several, or None: the class is left out and counted."""


@dataclass(frozen=True)
class Table:
    """Rows that are joined to images. CSV, TSV, JSON lines, or a text of words (`delimiter: " "`: any white space)."""

    name: str
    file: str
    """Below the root; `*` is allowed, the files' rows are taken together. Column `_file`: the stem of the row's file."""
    key: dict[str, str]
    """Template by column: a row belongs to the image for which all of them agree."""
    delimiter: str = ","
    encoding: str = "utf-8"
    header: tuple[str, ...] = ()
    """Names of the columns of a file without a header line."""
    skip: int = 0
    """Lines before the header (or the first row) which are not of the table."""
    many: bool = False
    """Whether an image may have several rows: each template that names a column gives a text for each of them."""
    required: bool = False
    """Whether the import ends without it, and an image without a row is quarantined."""
    ignore_case: bool = False
    """Whether keys are compared by their letters and digits alone, in lower case."""
    columns: tuple[str, ...] = ()
    """Columns that must be there besides those that are named in templates."""


@dataclass(frozen=True)
class Label:
    """Where the class names of an image come from: exactly one of `text`, `columns` and `source`."""

    text: str | None = None
    several: str | None = None
    """What separates class names in `text`."""
    columns: dict[str, str] = field(default_factory=dict)
    """One-hot: template by class name; the class is there if the text is 1, true, yes or x."""
    source: Literal["boxes", "masks"] | None = named("from", default=None)

    def __post_init__(self) -> None:
        if sum((self.text is not None, bool(self.columns), self.source is not None)) != 1:
            raise ValueError("wanted exactly one of `text`, `columns` and `from`")


@dataclass(frozen=True)
class Organ:
    """The organ by a text: `map` of its values; a text that is not in it gives none."""

    by: str
    map: dict[str, str]


@dataclass(frozen=True)
class Ranges:
    """A number from 1 on: which of the ranges that begin at `starts` a number lies in."""

    of: str
    """Template of the number; a text that is none gives no placeholder."""
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.starts or list(self.starts) != sorted(set(self.starts)):
            raise ValueError(f"starts: found {list(self.starts)}, wanted whole numbers that rise")


@dataclass(frozen=True)
class MaskRule:
    """The masks of an image."""

    files: str
    """Path template; `*` is allowed. Of alternatives `a|b` the first that is there. If several files fit, all are read."""
    kind: Literal["binary", "colours", "values", "per_class"] = "binary"
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Class name by colour: a pixel brighter than 127 in a channel belongs to the nearest of these."""
    values: dict[str, str] = field(default_factory=dict)
    """Class name by grey value; 0 is none unless it is named."""
    class_: str | None = named("class", default=None)
    """`per_class`: template of the class name, of placeholders of `files`."""
    exclude: tuple[str, ...] = ()
    missing: Literal["quarantine", "none"] = "quarantine"
    empty: Literal["quarantine", "none", "normal"] = "quarantine"

    def __post_init__(self) -> None:
        wanted = {"colours": "colours", "values": "values", "per_class": "class_"}.get(self.kind)
        if wanted and not getattr(self, wanted):
            raise ValueError(f"kind {self.kind!r} wants the key `{wanted.rstrip('_')}`")
        for value in self.values:
            if not value.isdecimal():
                raise ValueError(f"values: found {value!r}, wanted a whole number as key")


@dataclass(frozen=True)
class BoxRule:
    """The boxes of an image."""

    format: Literal["kvasir", "voc", "yolo", "coco", "corners", "csv"]
    file: str | None = None
    """`kvasir`, `coco`: the JSON file (or files: `*`) of all images; of alternatives `a|b` the first that is there."""
    files: str | None = None
    """`voc`, `yolo`: template of the text file of an image; `*` and alternatives `a|b` are allowed."""
    key: str | None = None
    """`kvasir`: template of the entry (`{stem}`); `coco`: of the end of `file_name`, or of
    `case_name/file_name` (`{name}`)."""
    label: str | None = None
    """Class name where the format has none; `csv`, `corners`: a template."""
    order: tuple[str, ...] = ("xmin", "ymin", "xmax", "ymax", "label")
    """`voc`: what stands in a line, of xmin, ymin, xmax, ymax, width, height, label, `_` (anything)."""
    delimiter: str = " "
    """`voc`: what separates the words of a line; a blank: any white space."""
    names: tuple[str, ...] = ()
    """`yolo`: class name by number."""
    columns: dict[str, str] = field(default_factory=dict)
    """`csv`: template of xmin, ymin, xmax, ymax (or width, height), label; `corners`: of x1, y1 ... x4, y4."""
    missing: Literal["quarantine", "none"] = "none"

    def __post_init__(self) -> None:
        wanted = {"kvasir": "file", "coco": "file", "voc": "files", "yolo": "files"}.get(self.format, "columns")
        if not getattr(self, wanted):
            raise ValueError(f"format {self.format!r} wants the key `{wanted}`")
        if self.format == "yolo" and not (self.names or self.label):
            raise ValueError("format 'yolo' wants `names` or `label`")
        sides = ("xmin", "ymin", "xmax", "ymax", "width", "height", "label", "_")
        for name in self.order:
            if name not in sides:
                raise ValueError(f"order: found {name!r}, {nearest_of(name, list(sides))}")
        known = sides[:-1] if self.format == "csv" else tuple(f"{axis}{n}" for axis in "xy" for n in "1234")
        for name in self.columns:
            if name not in known:
                raise ValueError(f"columns: found {name!r}, {nearest_of(name, list(known))}")


@dataclass(frozen=True)
class Folds:
    """A table of fold numbers, or (without `file`) a column `table.column` of the part's own tables."""

    column: str
    """A text that ends in a number counts as it; `_file` is the stem of the row's file."""
    file: str | None = None
    key: dict[str, str] = field(default_factory=dict)
    delimiter: str = ","

    def __post_init__(self) -> None:
        if (self.file is None) != (not self.key):
            raise ValueError("`file` and `key` belong together")


@dataclass(frozen=True)
class SplitRule:
    """The data set's own split: of a text (`from`, `values`), of lists, of a table of folds, or folds and one other."""

    source: str | None = named("from", default=None)
    """Template of the split's own name."""
    values: dict[str, str] = field(default_factory=dict)
    """`train`, `validation` or `test` (or another name) by the data set's own name."""
    lists: dict[str, str] = field(default_factory=dict)
    """File by split. A text file has one key a line; with several keys (`key` is a mapping) it is a table."""
    key: str | dict[str, str] = "{stem}"
    """Template of a line of a list, or template by column."""
    delimiter: str = ","
    folds: Folds | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.lists:
            raise ValueError("wanted `from` or `lists`, not both")
        if self.source is None and not self.lists and self.folds is None:
            raise ValueError("wanted one of `from`, `lists`, `folds`")


@dataclass(frozen=True)
class Part:
    """Images that are found by one pattern, and what is known of them."""

    images: str
    name: str = ""
    exclude: tuple[str, ...] = ()
    key: str | None = None
    tables: tuple[Table, ...] = ()
    ranges: dict[str, Ranges] = field(default_factory=dict)
    """Further placeholders by name."""
    agree: dict[str, str] = field(default_factory=dict)
    """Template or `table.column` by template or `table.column`: texts that must be alike, if both are there."""
    label: str | Label | None = None
    """A template or a constant. None: the images have no class (question sets)."""
    label_map: dict[str, Findings] = field(default_factory=dict)
    """Goes before the card's own."""
    none: str | None = "normal"
    organ: str | Organ | None = None
    mask: MaskRule | None = None
    boxes: BoxRule | None = None
    group: str | None = None
    split: SplitRule | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    repeats: Literal["reject", "skip", "merge"] = "reject"
    """What becomes of an image whose key an earlier one has: quarantine; left out, since it is known already; or its
    labels and boxes are added to the earlier one."""

    def __post_init__(self) -> None:
        known = [*placeholders(self.images), "name", "folder", "path", *self.ranges]
        for template in (self.images, *self.exclude):
            regex_of(template)
        tables = [table.name for table in self.tables]
        for where, template, extra in _templates(self):
            for name in placeholders(template):
                table, dot, _ = name.partition(".")
                if name in known or name in extra or (dot and table in tables):
                    continue
                raise ValueError(
                    f"{where}: the template {template!r} names {name!r}, "
                    + nearest_of(name, [*known, *(f"{one}.<column>" for one in tables)])
                )


@dataclass(frozen=True)
class Layout:
    """Where the files are."""

    root_markers: tuple[str, ...]
    """Patterns (`*`, `**`) which all must exist below the root. `a|b`: one of them is enough."""
    parts: tuple[Part, ...] = ()
    archives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.root_markers:
            raise ValueError("root_markers: found none, wanted at least one")


@dataclass(frozen=True)
class Expected:
    """What the whole data set holds; None: not known."""

    images: int | None = None
    classes: dict[str, int] = field(default_factory=dict)
    """Images by the data set's own class name."""
    masks: int | None = None
    boxes: int | None = None
    groups: int | None = None
    questions: int | None = None


@dataclass(frozen=True)
class Checksum:
    """SHA-256 of a file of the data set or of its archive."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256: found {self.sha256!r}, wanted 64 hexadecimal digits in lower case")


@dataclass(frozen=True)
class Card:
    """A public data set."""

    id: str
    title: str
    summary: str
    homepage: str
    obtain: str
    citation: str
    licence: Licence
    imaging: Literal["endoscopy", "capsule"]
    layout: Layout
    light: str = "unknown"
    defects: tuple[str, ...] = ()
    unknowns: tuple[str, ...] = ()
    expected: Expected = Expected()
    checksums: tuple[Checksum, ...] = ()
    label_map: dict[str, Findings] = field(default_factory=dict)
    reader: str | None = None
    """Module of `cogalign.data.importers.readers` that reads the files where the rules cannot."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id):
            raise ValueError(f"id: found {self.id!r}, wanted small letters, digits and single hyphens")
        if not self.layout.parts and self.reader is None:
            raise ValueError("layout.parts: found none, wanted at least one part, or a `reader`")
        for where, found in _named_findings(self):
            if found not in FINDINGS:
                raise ValueError(f"{where}: the taxonomy has no {found!r}, {nearest_of(found, list(FINDINGS))}")
        for where, organ in _named_organs(self):
            if organ not in (*ORGANS, "unknown"):
                raise ValueError(f"{where}: found the organ {organ!r}, {nearest_of(organ, list(ORGANS))}")


def _named_findings(card: Card) -> Iterable[tuple[str, str]]:
    """Key and id of every finding that a card names."""
    maps = [("label_map", card.label_map)]
    for index, part in enumerate(card.layout.parts):
        maps.append((f"layout.parts[{index}].label_map", part.label_map))
        if part.none is not None:
            yield f"layout.parts[{index}].none", part.none
    for where, label_map in maps:
        for name, value in label_map.items():
            yield from ((f"{where}.{name}", one) for one in ([value] if isinstance(value, str) else value or ()))


def _named_organs(card: Card) -> Iterable[tuple[str, str]]:
    """Key and id of every organ that a card names."""
    for index, part in enumerate(card.layout.parts):
        if isinstance(part.organ, str):
            yield f"layout.parts[{index}].organ", part.organ
        elif part.organ is not None:
            yield from ((f"layout.parts[{index}].organ.map.{name}", one) for name, one in part.organ.map.items())


def _templates(part: Part) -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """Key, text and further allowed placeholders of every template of a part."""
    for name in ("key", "group"):
        if getattr(part, name) is not None:
            yield name, getattr(part, name), ()
    label = Label(text=part.label) if isinstance(part.label, str) else part.label
    if label is not None:
        yield from (("label", text, ()) for text in (label.text, *label.columns.values()) if text is not None)
    if isinstance(part.organ, Organ):
        yield "organ.by", part.organ.by, ()
    yield from ((f"ranges.{name}.of", one.of, ()) for name, one in part.ranges.items())
    for table in part.tables:
        yield from ((f"tables.{table.name}.key", text, ()) for text in table.key.values())
    yield from (("agree", as_template(text), ()) for pair in part.agree.items() for text in pair)
    yield from ((f"attributes.{name}", text, ()) for name, text in part.attributes.items())
    if part.mask is not None:
        free = placeholders(part.mask.class_) if part.mask.class_ else ()
        yield "mask.files", part.mask.files, free
        if part.mask.class_:
            yield "mask.class", part.mask.class_, placeholders(part.mask.files)
    if part.boxes is not None:
        texts = (part.boxes.files, part.boxes.key, part.boxes.label, *map(as_template, part.boxes.columns.values()))
        yield from (("boxes", text, ()) for text in texts if text is not None)
    if part.split is not None:
        keys = list(part.split.key.values()) if isinstance(part.split.key, dict) else [part.split.key]
        keys = keys if part.split.lists else []
        folds = part.split.folds
        own = [*folds.key.values(), *([] if folds.file else [as_template(folds.column)])] if folds else []
        yield from (("split", text, ()) for text in (part.split.source, *keys, *own) if text is not None)


def as_template(text: str) -> str:
    """`table.column` as a template; a text that has a placeholder stays as it is."""
    return text if "{" in text else "{" + text + "}"
