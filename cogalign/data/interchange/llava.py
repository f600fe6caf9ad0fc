"""LLaVA's conversations: a JSON list of objects with `id`, `image` and `conversations`.

A case is held whole: fields that LLaVA does not know stand beside, where it does not look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.interchange.ms_swift import pictures_of
from cogalign.data.interchange.sample import (
    DEFAULT_QUESTION,
    IMAGE_TAG,
    Sample,
    asked,
    beside,
    divided,
    json_entries,
    messages_of,
    paired,
    tagged_sample,
)

SUFFIX = ".json"
NAMES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
WANTED = 'a list of messages such as {"from": "human", "value": "<image>\\n..."}'


def conversation(case: Case) -> list[dict[str, str]]:
    """Question and answer of a case; raises ValueError as `asked` does."""
    question = f"{IMAGE_TAG}\n{asked(case, DEFAULT_QUESTION)}"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": case.answer}]


def row(case: Case) -> dict[str, Any]:
    """The object of a case; raises ValueError as `asked` does."""
    kept = beside(case, without=("id", "answer"))
    return {"id": case.id, "image": case.file_name, "conversations": conversation(case), **kept}


def read(path: Path) -> Iterator[Sample]:
    """The entries of a file (a JSON list, or a line each).

    Raises:
        ValueError: the file is no list of objects, or `conversations` is missing; names entry and key.
    """
    for place, found in json_entries(path):
        messages = messages_of(path, place, found, "conversations", WANTED)
        own, extra = divided(found, ("image", "images", "conversations"))
        yield talk(place, found, messages, own, extra)


def talk(
    place: str,
    row: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    own: dict[str, Any],
    extra: dict[str, Any],
) -> Sample:
    """The sample of an entry whose messages have `from` and `value`."""
    if messages and messages[0].get("from") == "system":
        extra["system"] = messages[0].get("value")
        messages = messages[1:]
    if isinstance(own.get("id"), int):
        own["id"] = str(own["id"])
    turns, problem = paired(messages, "from", "value", NAMES)
    return tagged_sample(place, pictures_of(row.get("image") or row.get("images")), turns, own, extra, problem)
