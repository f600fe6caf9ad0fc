"""Sampling G completions for each prompt: the prompt is computed once, its KV cache shared by the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn. Temperature 0 takes the likeliest token."""

    max_completion_length: int
    num_generations: int = 1
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Rollout:
    """Completions of P prompts, G each, in the order of the prompts.

    `ids` [P * G, T] right padded; `mask` [P * G, T] is 1 up to and with the end-of-sequence token;
    `finished` [P * G] says whether that token came before the length limit.
    """

    ids: Tensor
    mask: Tensor
    finished: Tensor


def end_ids(loaded: LoadedModel) -> list[int]:
    """Tokens that end a completion."""
    ends = getattr(loaded.core.generation_config, "eos_token_id", None)
    ids = [ends] if isinstance(ends, int) else list(ends or [])
    return sorted({*ids, loaded.tokenizer.eos_token_id})


def expand_cache(cache: Any, group: int) -> Any:
    """The cache with each prompt's keys and values repeated for its `group` completions (gradient flows back)."""
    if group > 1:
        cache.batch_repeat_interleave(group)
    return cache


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits [N, V] with -inf outside the smallest set of tokens whose probability reaches `top_p`."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= top_p  # the token that crosses top_p stays in
    return logits.masked_fill(outside.scatter(1, order, outside), float("-inf"))


def allowed_logits(logits: Tensor, banned: list[int]) -> Tensor:
    """Logits [..., V] in float32 with image placeholders ruled out: the policy's own distribution."""
    logits = logits.float()
    if not banned:
        return logits
    return logits.index_fill(-1, torch.tensor(banned, device=logits.device), float("-inf"))


def _draw(logits: Tensor, settings: SamplingSettings, generator: torch.Generator | None) -> Tensor:
    """One token [N] for each row of logits [N, V]."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    kept = nucleus(logits / settings.temperature, settings.top_p)
    return torch.multinomial(kept.softmax(-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def sample(
    loaded: LoadedModel, prompt: Inputs, settings: SamplingSettings, generator: torch.Generator | None = None
) -> Rollout:
    """Draw `settings.num_generations` completions for each of the P prompts.

    Args:
        loaded: the model; its mode (train or eval) is put to eval while sampling.
        prompt: tensors of `encode_prompts` on the model's device.
        settings: how tokens are drawn.
        generator: source of randomness on the model's device.
    """
    model, family, group = loaded.model, loaded.family, settings.num_generations
    was_training = model.training
    model.eval()
    try:
        out = model(**prompt, use_cache=True, logits_to_keep=1)
        cache = expand_cache(out.past_key_values, group)
        logits = out.logits[:, -1].repeat_interleave(group, 0)
        start = family.next_position(loaded.core, prompt["attention_mask"]).repeat_interleave(group, 0)
        past = prompt["attention_mask"].repeat_interleave(group, 0)
        banned = family.placeholder_ids(loaded.core, loaded.tokenizer)
        ends = torch.tensor(end_ids(loaded), device=logits.device)
        pad = loaded.tokenizer.pad_token_id
        done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        ids, masks = [], []
        for step in range(settings.max_completion_length):
            token = _draw(allowed_logits(logits, banned), settings, generator)
            ids.append(torch.where(done, pad, token))
            masks.append(~done)
            done = done | torch.isin(token, ends)
            if step + 1 == settings.max_completion_length or bool(done.all()):
                break
            past = torch.cat([past, torch.ones_like(past[:, :1])], 1)
            out = model(
                input_ids=ids[-1][:, None],
                attention_mask=past,
                position_ids=family.position_ids(start, step, 1),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1]
    finally:
        model.train(was_training)
    return Rollout(torch.stack(ids, 1), torch.stack(masks, 1).long(), done)
