"""From the rows of a file to cases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cogalign.cognition.report import parse
from cogalign.cognition.taxonomy import FINDINGS, lookup, nearest
from cogalign.data.case import Case
from cogalign.data.interchange.sample import Sample, own_question

_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation",
           "validation": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the image of a row is in the new case set, and what is taken where the row says nothing."""

    file_name: str
    group: str
    """The image itself: questions about it stay in one split."""
    split: str
    id: str


def split_told(*names: str) -> str | None:
    """The split that the words of file names or of a path tell (`Val`, `test-00000-of-00001`); None if none does."""
    for name in names:
        for part in PurePosixPath(name.replace("\\", "/")).parts:
            for word in part.lower().replace("_", "-").replace(".", "-").split("-"):
                if word in _SPLITS:
                    return _SPLITS[word]
    return None


def cases_of(sample: Sample, place: Place) -> Iterator[Case]:
    """A case for each question of a row.

    Fields of a case that the row carries are taken as they are; `findings` that it does not carry come from an answer
    with a diagnosis line whose names the taxonomy all has, else the case is a question case.

    Raises:
        ValueError: a field of a case is of the wrong type, a finding is not in the taxonomy, or a row has neither
            findings nor an answer.
    """
    carried = {name: value for name, value in sample.own.items() if name not in ("question", "answer")}
    attributes = {**_attributes(carried.get("attributes")), **sample.extra}
    base = {"split": place.split, "group": place.group, "id": place.id, **carried, "attributes": attributes}
    several = len(sample.turns) > 1
    for number, (question, answer) in enumerate(sample.turns, start=1):
        case_id = f"{base['id']}-q{number}" if several else base["id"]
        own = own_question(question, sample.own)
        if not answer and not several:  # rows for reinforcement learning say what is right beside the question
            beside = (sample.own.get("answer"), sample.extra.get("solution"))
            answer = next((text for text in beside if isinstance(text, str)), "")
        row = base | {"id": case_id, "file_name": place.file_name, "question": own, "answer": answer}
        row["findings"] = _findings(carried["findings"]) if "findings" in carried else list(told(answer))
        for name in ("question", "answer"):
            row[name].encode()  # half a surrogate pair cannot be written: UnicodeEncodeError is a ValueError
        if not row["findings"] and not row["answer"].strip():
            raise ValueError("neither findings nor an answer")
        if not row["findings"] and not own:
            row["question"] = question
        yield Case.from_row(row)


def told(answer: str) -> tuple[str, ...]:
    """The findings of an answer's diagnosis line; none if it has none or the taxonomy lacks one of its names."""
    report = parse(answer)
    return () if report.unknown else report.diagnosis


def _findings(value: Any) -> list[str]:
    """Ids of the taxonomy; other names of a finding are understood."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"field 'findings': found {value!r}, wanted a list of findings")
    found = []
    for name in value:
        finding = FINDINGS.get(name) or lookup(name)
        if finding is None:
            raise ValueError(
                f"field 'findings': found {name!r}, which is not in the taxonomy; nearest: {nearest(name)!r}"
            )
        found.append(finding.id)
    return found


def _attributes(value: Any) -> Mapping[str, Any]:
    """The attributes that a row carries, as JSON text or object; other values become one attribute."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {"attributes": value}
    return value if isinstance(value, Mapping) else {} if value is None else {"attributes": value}
