"""Completions for images and questions, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from cogalign.generation.drafts import Drafts
from cogalign.generation.sampling import Rollout, SamplingSettings, sample
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import encode_prompts, to_device
from cogalign.training.progress import track

FIRST = 4
"""Prompts that are answered token by token before answers are guessed."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    """Whether it ended by itself, before the length limit."""


def decode(loaded: LoadedModel, rollout: Rollout) -> list[Completion]:
    """The texts of a rollout."""
    completions = []
    for ids, mask, finished in zip(rollout.ids, rollout.mask, rollout.finished, strict=True):
        tokens = ids[mask.bool()].tolist()
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        completions.append(Completion(text, tuple(tokens), bool(finished)))
    return completions


def generate(
    loaded: LoadedModel,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_completion_length: int,
    batch_size: int = 64,
    num_generations: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    description: str | None = None,
    drafts: Drafts | None = None,
) -> list[list[Completion]]:
    """`num_generations` completions for each image and question; temperature 0 is greedy.

    Args:
        loaded: the model.
        images: one a prompt.
        questions: one a prompt.
        max_completion_length: longest completion in tokens.
        batch_size: prompts computed at once.
        num_generations: completions of a prompt.
        temperature: of the sampling; 0 takes the likeliest token.
        top_p: nucleus of the sampling; 1 for all tokens.
        seed: makes sampling repeatable.
        description: shows progress under this name.
        drafts: answers that this model gave before, for greedy decoding; those that it gives are added. None: there are none.
    """
    settings = SamplingSettings(max_completion_length, num_generations, temperature, top_p)
    generator = None
    if temperature > 0 and seed is not None:
        generator = torch.Generator(device=loaded.device).manual_seed(seed)
    # a model's answers resemble one another: those that it gave are guesses of those to come
    known = (Drafts() if drafts is None else drafts) if temperature == 0 else None
    first = batch_size if known is None or known else min(FIRST, batch_size)
    starts: Sequence[int] = [0, *range(first, len(images), batch_size)] if images else []
    completions: list[list[Completion]] = []
    for start in track(starts, description) if description else starts:
        stop = start + (batch_size if start else first)
        prompt = to_device(encode_prompts(loaded.processor, images[start:stop], questions[start:stop]), loaded.device)
        flat = decode(loaded, sample(loaded, prompt, settings, generator, drafts=known))
        completions += [flat[i : i + num_generations] for i in range(0, len(flat), num_generations)]
    return completions
