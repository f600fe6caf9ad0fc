"""ColonVQA's JSON, as Qwen's tools read it: LLaVA's conversations whose `id` is the image's path.

Predictions are appended to a conversation as `{"from": "prediction", "value": ...}`; they are the attribute `prediction`.
A case is held whole; its own id stands beside as `case_id`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.interchange.choices import choices_in
from cogalign.data.interchange.llava import SUFFIX, WANTED, conversation, talk
from cogalign.data.interchange.sample import Sample, beside, divided, json_entries, messages_of

__all__ = ["SUFFIX", "read", "row"]

PREDICTION = "prediction"


def row(case: Case) -> dict[str, Any]:
    """The object of a case; raises ValueError if question or answer hold the tag of images."""
    said = case.attributes.get(PREDICTION)
    messages = conversation(case) + ([{"from": PREDICTION, "value": said}] if isinstance(said, str) else [])
    kept = beside(case, without=("id", "answer"))
    return {"id": case.file_name, "image": case.file_name, "conversations": messages, "case_id": case.id, **kept}


def read(path: Path) -> Iterator[Sample]:
    """The entries of a file.

    Raises:
        ValueError: the file is no list of objects, or `conversations` is missing; names entry and key.
    """
    for place, found in json_entries(path):
        messages = messages_of(path, place, found, "conversations", WANTED)
        own, extra = divided(found, ("image", "conversations", "id", "case_id"))
        if isinstance(found.get("case_id"), str):
            own["id"] = found["case_id"]
        said = [message.get("value") for message in messages if message.get("from") == PREDICTION]
        if said:
            extra[PREDICTION] = said[0] if len(said) == 1 else said
        rest = [message for message in messages if message.get("from") != PREDICTION]
        if rest and "attributes" not in own and (choices := choices_in(str(rest[0].get("value")))):
            extra["choices"] = choices
        yield talk(place, found, rest, own, extra)
