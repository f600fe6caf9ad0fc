"""ms-swift's JSONL: an object a line with `messages` and `images`; all other keys reach its reward functions as columns.

A case is held whole. One without an answer is a row with a question only, as GRPO takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.interchange.sample import (
    DEFAULT_QUESTION,
    IMAGE_TAG,
    Picture,
    Sample,
    asked,
    beside,
    divided,
    json_lines,
    messages_of,
    paired,
    tagged_sample,
)

SUFFIX = ".jsonl"
_WANTED = 'a list of messages such as {"role": "user", "content": "<image>..."}'
_NAMES = {"user": "user", "assistant": "assistant"}


def row(case: Case) -> dict[str, Any]:
    """The object of a case; its image is named as in the case set.

    Raises:
        ValueError: question or answer hold the tag of images.
    """
    messages = [{"role": "user", "content": IMAGE_TAG + asked(case, DEFAULT_QUESTION)}]
    if case.answer:
        messages.append({"role": "assistant", "content": case.answer})
    return {"messages": messages, "images": [case.file_name], **beside(case, without=("answer",))}


def read(path: Path) -> Iterator[Sample]:
    """The rows of a file, one at a time.

    Raises:
        ValueError: a line is no JSON object, or `messages` is missing or no list; names line and key.
    """
    for place, found in json_lines(path):
        messages = messages_of(path, place, found, "messages", _WANTED)
        own, extra = divided(found, ("messages", "images"))
        if messages and messages[0].get("role") == "system":
            extra["system"] = messages[0].get("content")
            messages = messages[1:]
        turns, problem = paired(messages, "role", "content", _NAMES)
        yield tagged_sample(place, pictures_of(found.get("images")), turns, own, extra, problem)


def pictures_of(images: Any) -> list[Picture]:
    """Images of a row: a path, a list of paths, or of objects with `path` and `bytes` as the library datasets has them."""
    listed = images if isinstance(images, list) else [images]
    found = []
    for image in listed:
        if isinstance(image, dict):
            content = image.get("bytes")
            found.append(Picture(str(image.get("path") or ""), content if isinstance(content, bytes) else None))
        elif image:
            found.append(Picture(str(image)))
    return found
