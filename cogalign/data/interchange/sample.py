"""What the formats share: a question and an answer about an image, and the fields of a case that stand beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cogalign.data import caseset
from cogalign.data.case import Case
from cogalign.recipe import DataSettings

DEFAULT_QUESTION = DataSettings.question
"""Asked where a case has no question of its own: the recipe's default."""
IMAGE_TAG = "<image>"
OWN = tuple(item.name for item in fields(Case) if item.name != "file_name")
"""Keys of a row that are fields of a case, as in `metadata.jsonl`; the image has a key of the format."""


@dataclass(frozen=True)
class Picture:
    """An image as a file has it: its path there, or its bytes, or both; or the key under which it came before."""

    path: str = ""
    content: bytes | None = None
    key: str = ""
    """What several rows call the same image by; empty: its path."""


@dataclass(frozen=True)
class Sample:
    """One row of a file in any format."""

    place: str
    """Where it stands, for messages: `line 7`."""
    pictures: tuple[Picture, ...]
    turns: tuple[tuple[str, str], ...]
    """Questions and answers, in order."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a case that the row carries (some of `OWN`); they win over what the format says in its own way."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that the row carries; it goes to the attributes."""
    problem: str = ""
    """Why the row cannot become a case, though it is of the format; empty if it can."""


def beside(case: Case, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a case as keys of a row, in `metadata.jsonl`'s form; what `without` names the format says itself."""
    return {name: value for name, value in case.to_row().items() if name in OWN and name not in without}


def divided(row: Mapping[str, Any], used: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a row that are fields of a case, and the others, both without those in `used` and without nulls."""
    rest = {name: value for name, value in row.items() if name not in used and value is not None}
    own = {name: rest.pop(name) for name in OWN if name in rest}
    return own, rest


def asked(case: Case, question: str) -> str:
    """What the case asks: its own question, else `question`.

    Raises:
        ValueError: the question or the answer holds the tag of images, which a tool would count as one more image.
    """
    text = case.question or question
    for name, value in (("question", text), ("answer", case.answer)):
        if IMAGE_TAG in value:
            raise ValueError(
                f"case {case.id!r}: field {name!r} holds {IMAGE_TAG!r}, which stands for an image in this format"
            )
    return text


def own_question(text: str, own: Mapping[str, Any]) -> str:
    """The question of a case: `text`, or what the row carries of it where the two say the same.

    A case without a question of its own is written with the default one; an empty text beside it says so. Spaces around
    a tag of images get lost in the text. Whoever edits the text edits the question.
    """
    carried = own.get("question")
    if carried == "" and text == DEFAULT_QUESTION:
        return ""
    return carried if isinstance(carried, str) and carried.strip() == text.strip() else text


def without_tags(text: str) -> tuple[str, int]:
    """A question without the tags of its images, and how many there were."""
    count = text.count(IMAGE_TAG)
    if not count:
        return text, 0
    bare = text.replace(IMAGE_TAG, "")
    return bare.strip("\n") if count > 1 or not text.startswith(IMAGE_TAG) else bare.removeprefix("\n"), count


def plain_text(content: Any) -> str | None:
    """The text of a message: itself, or its text parts one a line, a tag for each image; None if it is neither."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    texts = [IMAGE_TAG if part.get("type") in ("image", "image_url") else part.get("text") for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def paired(messages: Any, role: str, text: str, names: Mapping[str, str]) -> tuple[list[tuple[str, str]], str]:
    """Questions and answers of a list of messages, and what is wrong with it (empty if nothing is).

    Args:
        messages: objects with the keys `role` and `text`.
        role: key of who speaks.
        text: key of what is said.
        names: `user` or `assistant` by the format's word; other speakers are a problem.
    """
    turns: list[tuple[str, str]] = []
    question: str | None = None
    for message in messages:
        who, said = names.get(str(message.get(role))), plain_text(message.get(text))
        if who is None or said is None:
            return [], f"a message from {message.get(role)!r}, wanted {', '.join(names)} with a text"
        if (who == "user") != (question is None):
            return [], "questions and answers do not alternate"
        if who == "user":
            question = said
        else:
            turns.append((str(question), said))
            question = None
    if question is not None:
        turns.append((question, ""))
    return turns, "" if turns else "no question"


def tagged_sample(
    place: str, pictures: Sequence[Picture], turns: Sequence[tuple[str, str]], own: Mapping[str, Any],
    extra: Mapping[str, Any], problem: str,
) -> Sample:  # fmt: skip
    """A sample of a format whose questions hold a tag for each image; more tags than images are a problem."""
    bare = [(without_tags(question), answer) for question, answer in turns]
    tags = sum(count for (_, count), _ in bare)
    if not problem and tags > len(pictures):
        problem = f"{tags} tags {IMAGE_TAG} for {len(pictures)} images"
    plain = tuple((question, answer) for (question, _), answer in bare)
    return Sample(place, tuple(pictures), plain, own, extra, problem)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line of a JSONL file, one at a time.

    Raises:
        ValueError: a line is no JSON object; names file and line.
    """
    for number, row in caseset.json_lines(path):
        if isinstance(row, caseset.JsonError):
            raise ValueError(f"{path} line {number}: not JSON ({row}), wanted one object a line")
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number}: found {type(row).__name__}, wanted one JSON object a line")
        yield f"line {number}", row


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each entry of a JSON list; a JSONL file of the same objects will do.

    Raises:
        ValueError: the file is no JSON list of objects; names file and entry.
    """
    with path.open("rb") as stream:
        if stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
            yield from json_lines(path)
            return
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}), wanted a list of objects") from None
    if not isinstance(content, list):
        raise ValueError(f"{path}: found {type(content).__name__}, wanted a JSON list of objects")
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} entry {number}: found {type(row).__name__}, wanted an object")
        yield f"entry {number}", row


def wanted(path: Path, place: str, row: Mapping[str, Any], name: str, kind: type, text: str) -> Any:
    """The value of a key that a row must have.

    Raises:
        ValueError: it is missing or of another type; names file, place and key.
    """
    value = row.get(name)
    if not isinstance(value, kind):
        found = f"found {str(value)[:60]!r}" if name in row else f"missing among {', '.join(map(str, row))[:200]}"
        raise ValueError(f"{path} {place}: key {name!r}: {found}, wanted {text}")
    return value


def messages_of(path: Path, place: str, row: Mapping[str, Any], name: str, text: str) -> list[dict[str, Any]]:
    """A key that holds a list of messages; raises ValueError as `wanted` does."""
    found: list[dict[str, Any]] = wanted(path, place, row, name, list, text)
    if not all(isinstance(message, dict) for message in found):
        raise ValueError(f"{path} {place}: key {name!r}: found {str(found)[:60]!r}, wanted {text}")
    return found
