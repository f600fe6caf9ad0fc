"""What goes to an OpenAI-compatible endpoint and what comes back: turns, images, answers, tokens."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import httpx
import numpy as np

QUALITY = 95
"""Quality of the JPEG that is sent."""
CHARACTERS_PER_TOKEN = 4
MOST_TOKENS = 10**8
"""A server that tells more of one request is wrong; its count is not believed."""
IMAGE_TOKENS = 1024
"""Tokens of an image if nobody says better: one of 1024 x 1024 pixels at 32 x 32 pixels a token."""

Message = dict[str, Any]
"""A turn of a conversation: `role` and `content`."""


@dataclass(frozen=True)
class Usage:
    """What requests cost, in tokens."""

    prompt: int = 0
    completion: int = 0
    """What the model wrote, with what it thought."""
    requests: int = 0
    """Requests that were sent."""
    lost: int = 0
    """Requests that were sent and never answered: the provider may bill them, nobody told how much."""
    estimated: int = 0
    """Answers whose tokens the server did not tell; they are estimated."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def turn(role: str, text: str, images: Sequence[str] = ()) -> Message:
    """One turn of a conversation; images are data URIs (`data_uri`) and come first."""
    if not images:
        return {"role": role, "content": text}
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in images]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def estimate(messages: Sequence[Message], image_tokens: int = IMAGE_TOKENS) -> int:
    """About how many tokens messages have: four characters each, and `image_tokens` for an image."""
    total = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            total += image_tokens if "image_url" in part else -(-len(part["text"]) // CHARACTERS_PER_TOKEN)
    return total


def data_uri(image: np.ndarray) -> str:
    """An RGB image (height, width, 3; uint8) as an inline JPEG of the same size."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _body(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty if it is none."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _choice(response: httpx.Response) -> dict[str, Any]:
    """The first choice of a chat completion; empty if there is none."""
    choices = _body(response).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def content_of(response: httpx.Response) -> str | None:
    """The text of a chat completion, or None if the answer is none.

    A model that thought up to the token limit has written nothing: such an answer may come without any `content`, and is
    an empty text.
    """
    choice = _choice(response)
    message = choice.get("message")
    if not isinstance(message, dict):
        return "" if isinstance(choice.get("finish_reason"), str) else None
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def is_cut(response: httpx.Response) -> bool:
    """Whether the answer ended at the token limit."""
    return _choice(response).get("finish_reason") == "length"


def usage_of(response: httpx.Response, size: int) -> Usage:
    """Tokens of a response as the server tells them, else estimated; an error costs none unless it tells."""
    told = _body(response).get("usage")
    numbers = (
        [told.get(f"{kind}_tokens") for kind in ("prompt", "completion", "total")] if isinstance(told, dict) else []
    )
    prompt, completion, total = [
        number if isinstance(number, int) and 0 <= number <= MOST_TOKENS else 0 for number in numbers or (0, 0, 0)
    ]
    if prompt or completion:
        # Gemini counts what the model thought in the total alone.
        return Usage(prompt, max(completion, total - prompt), 1)
    if response.status_code >= 400:
        return Usage(requests=1)
    text = content_of(response) or ""
    return Usage(size, -(-len(text) // CHARACTERS_PER_TOKEN), 1, estimated=1)


def message_of(response: httpx.Response) -> str:
    """What an error answer says, in one line of any length."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return " ".join(response.text.split()) or response.reason_phrase
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())
