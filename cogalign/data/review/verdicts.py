"""Verdicts of reviewers: the gallery's `verdicts.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Decision = Literal["accept", "reject"]
DECISIONS: tuple[Decision, ...] = ("accept", "reject")
FORMAT = "cogalign-verdicts"
"""Value of `format` in a verdict file."""
VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """What a reviewer said of a case.

    Args:
        decision: accept or reject.
        by: who; empty if not told.
        note: a remark.
        of: for a counterfactual, the id of its source case.
    """

    decision: Decision
    by: str = ""
    note: str = ""
    of: str | None = None


def parse_verdicts(content: Any, where: str) -> dict[str, Verdict]:
    """The verdicts of a parsed `verdicts.json` by case id.

    Args:
        content: the parsed file.
        where: its name, for messages.

    Raises:
        ValueError: it is no verdict file, or an entry is damaged or comes twice with different decisions.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'{where}: wanted an object with "format": "{FORMAT}", as the gallery writes it')
    if content.get("version") != VERSION:
        raise ValueError(f"{where}: version: found {content.get('version')!r}, wanted {VERSION}")
    entries = content.get("verdicts")
    if not isinstance(entries, list):
        raise ValueError(f"{where}: verdicts: found {type(entries).__name__}, wanted a list")
    by = text_of(content, "by", where)
    verdicts: dict[str, Verdict] = {}
    for number, entry in enumerate(entries, start=1):
        place = f"{where}: verdict {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
            raise ValueError(f"{place}: found {entry!r}, wanted an object with an id")
        verdict = Verdict(
            decision_of(entry.get("verdict"), place),
            by,
            text_of(entry, "note", place),
            text_of(entry, "of", place) or None,
        )
        add_verdict(verdicts, entry["id"], verdict, place)
    return verdicts


def add_verdict(verdicts: dict[str, Verdict], case_id: str, verdict: Verdict, where: str) -> None:
    """Put a verdict to the others.

    Raises:
        ValueError: the case has another decision already.
    """
    other = verdicts.setdefault(case_id, verdict)
    if other.decision != verdict.decision:
        raise ValueError(
            f"{where}: case {case_id!r}: found {verdict.decision!r}, but {other.decision!r} before"
            f"{f' by {other.by}' if other.by else ''}; wanted one verdict a case"
        )


def merge_verdicts(parts: Iterable[tuple[str, Mapping[str, Verdict]]]) -> dict[str, Verdict]:
    """The verdicts of several files (name and verdicts each).

    Raises:
        ValueError: two files disagree on a case; the message names both decisions.
    """
    merged: dict[str, Verdict] = {}
    for where, verdicts in parts:
        for case_id, verdict in verdicts.items():
            add_verdict(merged, case_id, verdict, where)
    return merged


def decision_of(value: object, where: str) -> Decision:
    """A decision from a file.

    Raises:
        ValueError: it is neither accept nor reject.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in DECISIONS:
        raise ValueError(f"{where}: verdict: found {value!r}, wanted one of {', '.join(DECISIONS)}")
    return word


def text_of(entry: Mapping[str, Any], name: str, where: str) -> str:
    """A text field that may be missing.

    Raises:
        ValueError: it is no text.
    """
    value = entry.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name}: found {value!r}, wanted a text")
    return value


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON in UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
