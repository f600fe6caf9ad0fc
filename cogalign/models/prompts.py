"""From images and questions to tensors: left-padded prompts, and completions appended on the right.

One layout for SFT, sampling and scoring, `[padding | prompt | completion | padding]`, made by the same
two functions: the token ids that are trained are the token ids that are sampled and scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cogalign.models.content import Distinct
from cogalign.models.families import Family
from cogalign.models.inputs import Inputs, token_names

Images = Image.Image | Sequence[Image.Image]
"""The image of a prompt, or its images."""


def chat_prompt(processor: Any, question: str, images: int = 1) -> str:
    """The text of a prompt: its images, then the question, then the head of the answer."""
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode_prompts(processor: Any, images: Sequence[Images], questions: Sequence[str]) -> Inputs:
    """Tensors of P prompts: `input_ids`, `attention_mask` [P, L] (left padded), pixels and what the family needs.

    Args:
        processor: of the model; on which side its tokenizer pads does not matter.
        images: the image of each prompt, or all images of each prompt (any number, none included).
        questions: one a prompt.

    Raises:
        ValueError: numbers of images and questions differ, or a question holds an image placeholder.
    """
    if len(images) != len(questions):
        raise ValueError(f"found {len(images)} images and {len(questions)} questions, wanted as many of each")
    placeholders = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    for question in questions:
        for placeholder in placeholders:
            if placeholder and placeholder in question:
                raise ValueError(f"question {question!r}: the image placeholder {placeholder} may not occur in it")
    rows = [[each] if isinstance(each, Image.Image) else list(each) for each in images]
    texts = [chat_prompt(processor, question, len(row)) for question, row in zip(questions, rows, strict=True)]
    pictures = {"images": rows} if any(rows) else {}
    batch = processor(text=texts, **pictures, padding=True, padding_side="left", return_tensors="pt")
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def distinct_prompts(family: Family, core: Any, prompt: Inputs) -> tuple[Inputs, Tensor]:
    """The prompts that differ in tokens or in images.

    Args:
        family: of the model. Where it does not share prompts, all count as different.
        core: the transformers model.
        prompt: tensors of P prompts.

    Returns:
        Tensors of the D <= P prompts that differ, in the order in which they occur first (the same object if all
        differ), and the place [P] of each prompt among them.
    """
    mask = prompt["attention_mask"].bool()
    everyone = torch.arange(len(mask), device=mask.device)
    texts = prompt["input_ids"].masked_fill(~mask, -1).tolist()
    tokens = [tuple(token for token in text if token >= 0) for text in texts]
    if len(set(tokens)) == len(tokens) or not family.shares_prompts(core):
        return prompt, everyone
    apart = family.split(core, prompt)
    distinct = Distinct()
    places = distinct.add(apart)
    if len(distinct.known) == len(apart):
        return prompt, everyone
    pad = int(prompt["input_ids"][~mask][0]) if bool((~mask).any()) else 0  # none is padded: all may be of one length
    return family.join(distinct.known, pad), everyone.new_tensor(places)


def encode_answers(processor: Any, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of answers, each closed by the end-of-sequence token."""
    tokenizer = processor.tokenizer
    return [[*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for answer in answers]


def pad_completions(completions: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded token ids [N, T] and their mask [N, T]."""
    length = max(1, max((len(c) for c in completions), default=1))
    ids = torch.full((len(completions), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(completions), length), dtype=torch.long)
    for row, completion in enumerate(completions):
        ids[row, : len(completion)] = torch.as_tensor(list(completion), dtype=torch.long)
        mask[row, : len(completion)] = 1
    return ids, mask


def append_completions(prompt: Inputs, ids: Tensor, mask: Tensor) -> tuple[Inputs, Tensor]:
    """Full sequences of P prompts with one completion each, and labels (-100 on prompt and padding).

    Args:
        prompt: tensors of `encode_prompts`.
        ids: [P, T] of `pad_completions`.
        mask: [P, T], its mask.
    """
    of_tokens = token_names(prompt)
    full: Inputs = {}
    for name, value in prompt.items():
        if name == "input_ids":
            full[name] = torch.cat([value, ids], 1)
        elif name == "attention_mask":
            full[name] = torch.cat([value, mask], 1)
        elif name in of_tokens:  # per-token types: completions hold text only
            full[name] = torch.cat([value, torch.zeros_like(ids)], 1)
        else:
            full[name] = value
    ignored = torch.full_like(prompt["input_ids"], -100)
    labels = torch.cat([ignored, ids.masked_fill(mask == 0, -100)], 1)
    return full, labels


def to_device(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The tensors on `device`."""
    return {name: value.to(device) for name, value in inputs.items()}
