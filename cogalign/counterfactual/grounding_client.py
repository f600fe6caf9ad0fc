"""Asking a multimodal LLM for boxes: over HTTP at any OpenAI-compatible endpoint, or in this process."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import cv2
import httpx
import torch
from PIL import Image as Pillow

from cogalign.counterfactual.masks import Image
from cogalign.recipe import GroundingSettings, ModelSettings

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first repetition, doubled each time, up to the longest."""
QUALITY = 95
"""Quality of the JPEG that is sent."""
MISTAKES = (401, 403, 404, 405)
"""Answers that every other request would get too."""
HERE = ("127.0.0.1", "localhost", "::1")


class GroundingError(ConnectionError):
    """The endpoint cannot be used as the recipe says; the message never holds the key."""


class Grounder(Protocol):
    """Something that answers questions about images."""

    def ask(self, images: Sequence[Image], questions: Sequence[str]) -> list[str | None]:
        """One answer for each image (H x W x 3 uint8) and question; None where there was none."""
        ...

    def close(self) -> None:
        """Give back connections or memory."""
        ...


class EndpointGrounder:
    """Chat completions of an OpenAI-compatible endpoint, several requests at once.

    Args:
        settings: url, model, environment variable of the key, concurrency, timeout, retries.

    Raises:
        GroundingError: the recipe names no model for the endpoint or no address, or the key cannot be sent.
    """

    def __init__(self, settings: GroundingSettings) -> None:
        if not settings.url or not settings.model:
            raise GroundingError(
                f"counterfactual.masks.grounding: found url {settings.url!r} and model {settings.model!r}, wanted both: "
                "an endpoint such as http://127.0.0.1:8000/v1 and the name of a model that it serves"
            )
        self.settings = settings
        self._key = read_key(settings.api_key_env)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            url = httpx.URL(settings.url.rstrip("/") + "/")
        except httpx.InvalidURL as error:
            raise GroundingError(
                f"counterfactual.masks.grounding.url: found {settings.url!r} ({error}), wanted an endpoint such as "
                "http://127.0.0.1:8000/v1"
            ) from None
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(settings.timeout, connect=min(10.0, settings.timeout)),
            limits=httpx.Limits(max_connections=settings.concurrency),
            trust_env=url.host not in HERE,  # a proxy is of no use on this machine
        )
        self._limits: dict[str, Any] = {"max_tokens": settings.max_completion_length, "temperature": 0}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, images: Sequence[Image], questions: Sequence[str]) -> list[str | None]:
        """One answer a question; None where the endpoint refused this image or failed `retries` times more.

        Raises:
            GroundingError: key, address or model are wrong, or not one of the questions was answered because the
                endpoint failed.
        """
        if not images:
            return []
        with ThreadPoolExecutor(max(1, min(self.settings.concurrency, len(images)))) as pool:
            results = list(pool.map(self._ask, images, questions))
        answers = [answer for answer, _ in results]
        failures = [reason for answer, reason in results if answer is None and not reason.startswith("refused")]
        if failures and all(answer is None for answer in answers):
            raise GroundingError(
                f"{self.settings.url} failed {self.settings.retries + 1} times on each of {len(images)} requests: "
                f"{failures[0]}; what was found so far is kept"
            )
        return answers

    def _ask(self, image: Image, question: str) -> tuple[str | None, str]:
        """An answer, or None and why there is none."""
        reason = ""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_uri(image)}},
            {"type": "text", "text": question},
        ]
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                answer = self._send(content)
            except httpx.LocalProtocolError:
                reason = "LocalProtocolError: the request cannot be sent"  # its text would quote headers, so the key
                continue
            except httpx.RequestError as error:
                reason = self._clean(f"{type(error).__name__}: {error}")
                continue
            if answer.status_code < 400:
                text = _content(answer)
                if text is not None:
                    return text, ""
                reason = "the answer is no chat completion"
                continue
            reason = self._clean(f"HTTP {answer.status_code}: {_message(answer)}")
            if answer.status_code in MISTAKES:
                raise GroundingError(
                    f"{self.settings.url} refused model {self.settings.model!r} ({reason}); its key is read from the "
                    f"environment variable {self.settings.api_key_env}, which is {'set' if self._key else 'not set'}"
                )
            if answer.status_code < 500 and answer.status_code not in (408, 409, 425, 429):
                return None, f"refused: {reason}"
        return None, reason

    def _send(self, content: list[dict[str, Any]]) -> httpx.Response:
        """Post one question; newer models of OpenAI want another name for the length and no temperature."""
        body = {"model": self.settings.model, "messages": [{"role": "user", "content": content}]}
        answer = self._http.post("chat/completions", json={**body, **self._limits})
        if answer.status_code == 400 and "temperature" in self._limits and "max_completion_tokens" in answer.text:
            self._limits = {"max_completion_tokens": self.settings.max_completion_length}
            answer = self._http.post("chat/completions", json={**body, **self._limits})
        return answer

    def _clean(self, text: str) -> str:
        """The text without the key, should a server have repeated it."""
        return text.replace(self._key, "***") if self._key else text


class OwnGrounder:
    """The recipe's model, without any adapter, in this process; greedy decoding.

    Args:
        model: the model.
        max_completion_length: longest answer in tokens.
        device: where it runs.
    """

    def __init__(self, model: ModelSettings, max_completion_length: int, device: torch.device | str) -> None:
        from cogalign.models.load import load_model

        self._loaded = load_model(model, device=device)
        self._length = max_completion_length

    def ask(self, images: Sequence[Image], questions: Sequence[str]) -> list[str | None]:
        """One answer a question."""
        from cogalign.generation.hf import generate

        if not images:
            return []
        pictures = [Pillow.fromarray(image) for image in images]
        groups = generate(self._loaded, pictures, questions, max_completion_length=self._length)
        return [group[0].text for group in groups]

    def close(self) -> None:
        """Nothing is held but memory."""


def read_key(variable: str) -> str:
    """The key in an environment variable, without the blanks around it; an empty text where it is not set.

    Raises:
        GroundingError: it holds nothing, or what a header cannot carry; the message names the variable, not the key.
    """
    value = os.environ.get(variable)
    if value is None:
        return ""
    key = value.strip()
    wanted = "wanted the endpoint's key in printable ASCII, or unset it where the endpoint wants none"
    if not key:
        raise GroundingError(f"environment variable {variable}: found nothing or blanks only, {wanted}")
    if not all("!" <= letter <= "~" for letter in key):
        raise GroundingError(f"environment variable {variable}: found a blank, control or foreign character, {wanted}")
    return key


def data_uri(image: Image) -> str:
    """An RGB image as an inline JPEG of the same size."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _content(answer: httpx.Response) -> str | None:
    """The text of a chat completion, or None if the answer is none."""
    try:
        content = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _message(answer: httpx.Response) -> str:
    """What an error answer says, in one line."""
    try:
        body = answer.json()
    except ValueError:
        return " ".join(answer.text.split())[:300] or answer.reason_phrase
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300]
