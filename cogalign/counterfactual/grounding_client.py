"""Asking a multimodal LLM for boxes: over HTTP at any OpenAI-compatible endpoint, or in this process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from PIL import Image as Pillow

from cogalign.counterfactual.masks import Image
from cogalign.models.endpoint import FIRST_PAUSE, Answer, ChatEndpoint, EndpointError, EndpointSettings, read_key
from cogalign.models.endpoint_http import shown
from cogalign.models.endpoint_wire import data_uri, turn
from cogalign.recipe import GroundingSettings, ModelSettings

NAME = "counterfactual.masks.grounding"
"""Of the settings in a recipe."""


class GroundingError(EndpointError):
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
                f"{NAME}: found url {settings.url!r} and model {settings.model!r}, wanted both: "
                "an endpoint such as http://127.0.0.1:8000/v1 and the name of a model that it serves"
            )
        self.settings = settings
        given = EndpointSettings(
            url=settings.url,
            model=settings.model,
            api_key_env=settings.api_key_env,
            max_completion_length=settings.max_completion_length,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            retries=settings.retries,
        )
        try:
            self._endpoint = ChatEndpoint(given, name=NAME, key=read_key(settings.api_key_env), first_pause=FIRST_PAUSE)
        except EndpointError as error:
            raise GroundingError(str(error)) from None

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def ask(self, images: Sequence[Image], questions: Sequence[str]) -> list[str | None]:
        """One answer a question; None where the endpoint refused this image, failed `retries` times more, or the model
        wrote nothing up to the token limit.

        Raises:
            GroundingError: key, address or model are wrong, or not one of the questions was answered because the
                endpoint failed or the token limit is too low.
        """
        if not images:
            return []
        with ThreadPoolExecutor(max(1, min(self.settings.concurrency, len(images)))) as pool:
            results = list(pool.map(self._ask, images, questions))
        failures = [result.reason for result in results if result.text is None and not result.refused]
        if failures and all(result.text is None for result in results):
            raise GroundingError(
                f"{shown(self.settings.url or '')} failed {self.settings.retries + 1} times on each of {len(images)} requests: "
                f"{failures[0]}; what was found so far is kept"
            )
        silent = [result.cut and not (result.text or "").strip() for result in results]
        if all(silent):
            raise GroundingError(
                f"{shown(self.settings.url or '')}: all of {len(images)} answers ended at the token limit before the model wrote "
                f"anything; raise {NAME}.max_completion_length (found {self.settings.max_completion_length}): what a "
                "reasoning model thinks counts"
            )
        return [None if empty else result.text for result, empty in zip(results, silent, strict=True)]

    def _ask(self, image: Image, question: str) -> Answer:
        """One answer."""
        try:
            return self._endpoint.ask([turn("user", question, [data_uri(image)])])
        except EndpointError as error:
            raise GroundingError(str(error)) from None


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
