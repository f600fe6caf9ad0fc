"""A case: one image with what is known of it. One row of a case set's `metadata.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

Keywords = dict[str, list[str]]
"""Three keywords for each of `location`, `morphology` and `microvasculature`."""


@dataclass(frozen=True)
class Box:
    """A lesion's box in pixels; `xmax` and `ymax` are exclusive."""

    finding: str
    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True)
class Case:
    """One image with what is known of it.

    Paths are relative to the case set's folder. A counterfactual is a case too: the last fields say
    of what and how; its `mask_file_name` is the region that the intervention touched.
    """

    id: str
    file_name: str
    findings: tuple[str, ...]
    """Ids of the taxonomy, e.g. `("polyp",)`; `("normal",)` when there is none; empty for a question case."""
    split: str
    organ: str = "unknown"
    """`esophagus`, `stomach`, `small_bowel`, `colon` or `unknown`."""
    group: str = ""
    """Patient, video or sequence: a group never crosses splits. Empty: the case is its own group."""
    dataset: str = ""
    """The data set that the case comes from."""
    licence: str = ""
    mask_file_name: str | None = None
    """PNG, one channel, 255 on any lesion, 0 elsewhere; as large as the image."""
    boxes: tuple[Box, ...] = ()
    question: str = ""
    """Replaces the recipe's question for this case; empty: the recipe's."""
    answer: str = ""
    """What a model should say: the rendered report (or the plain description for the tiny base)."""
    keywords: Keywords = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    """Anything else that is known, plain JSON values (phantom: cues, colours, positions)."""
    counterfactual_of: str | None = None
    intervention: str | None = None
    fill: str | None = None
    source_file_name: str | None = None
    """The image the counterfactual was made from, copied into the counterfactual case set."""
    background_of: str | None = None
    """Id of the case whose background a transplant lies on."""

    @property
    def is_normal(self) -> bool:
        """Whether nothing was found."""
        return self.findings == ("normal",)

    @property
    def is_question(self) -> bool:
        """Whether it only asks and answers (visual question answering): nobody said what is found."""
        return not self.findings

    def to_row(self) -> dict[str, Any]:
        """The row of `metadata.jsonl`: all keys in a fixed order, so that every row has the same columns.

        `attributes` is a JSON text, because its keys differ from row to row and a column of a table has one type.
        """
        row: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        row["findings"] = list(self.findings)
        row["boxes"] = [asdict(box) for box in self.boxes]
        row["keywords"] = {section: list(words) for section, words in self.keywords.items()}
        row["attributes"] = json.dumps(self.attributes, sort_keys=True, ensure_ascii=False)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Case:
        """A case from a row of `metadata.jsonl`. `attributes` may be a JSON text or an object.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type; the message names it.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(row) - set(known))
        if unknown:
            nearest = get_close_matches(unknown[0], known, n=1, cutoff=0.5)
            hint = f"nearest: {nearest[0]!r}" if nearest else f"known: {', '.join(known)}"
            raise ValueError(f"field {unknown[0]!r}: unknown ({hint})")
        for name in ("id", "file_name", "split"):
            _require(isinstance(row.get(name), str) and bool(row[name]), name, row.get(name), "a non-empty text")
        values = {name: value for name, value in row.items() if value is not None}
        for name in _TEXT_FIELDS:
            _require(isinstance(values.get(name, ""), str), name, row.get(name), "a text")
        findings = row.get("findings")
        asks = bool(values.get("question")) and bool(values.get("answer"))
        wanted = 'a list of findings such as ["polyp"]; none only where question and answer are both set'
        _require((bool(findings) or asks) and _is_texts(findings or []), "findings", findings, wanted)
        values["findings"] = tuple(findings or ())
        values["boxes"] = _boxes(values.get("boxes", []))
        values["keywords"] = _keywords(values.get("keywords", {}))
        values["attributes"] = _attributes(values.get("attributes", {}))
        return cls(**values)


_TEXT_FIELDS = ("organ", "group", "dataset", "licence", "mask_file_name", "question", "answer", "counterfactual_of",
                "intervention", "fill", "source_file_name", "background_of")  # fmt: skip


def _require(condition: bool, name: str, found: object, wanted: str) -> None:
    """Raise a `ValueError` that names the field, what was found and what is wanted."""
    if not condition:
        raise ValueError(f"field {name!r}: found {found!r}, wanted {wanted}")


def _is_texts(value: object) -> bool:
    """Whether `value` is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _boxes(value: object) -> tuple[Box, ...]:
    """Boxes from a list of objects with the fields of `Box`."""
    wanted = "a list of boxes such as {" + ", ".join(f'"{f.name}"' for f in fields(Box)) + "}"
    _require(isinstance(value, list), "boxes", value, wanted)
    assert isinstance(value, list)
    names = {f.name for f in fields(Box)}
    for box in value:
        _require(isinstance(box, dict) and set(box) == names, "boxes", box, wanted)
        sides = [box[name] for name in names - {"finding"}]
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        _require(isinstance(box["finding"], str) and whole, "boxes", box, "a finding and four whole numbers")
    return tuple(Box(**box) for box in value)


def _keywords(value: object) -> Keywords:
    """Keywords from an object of lists; a section without keywords may be null."""
    _require(isinstance(value, dict), "keywords", value, 'an object such as {"location": ["cecum"]}')
    assert isinstance(value, dict)
    kept = {section: words for section, words in value.items() if words is not None}
    for section, words in kept.items():
        _require(_is_texts(words), f"keywords.{section}", words, "a list of texts")
    return kept


def _attributes(value: object) -> dict[str, Any]:
    """Attributes from a JSON text or an object."""
    try:
        decoded = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"field 'attributes': not JSON ({error})") from None
    _require(isinstance(decoded, dict), "attributes", value, "an object, or its JSON text")
    assert isinstance(decoded, dict)
    return decoded
