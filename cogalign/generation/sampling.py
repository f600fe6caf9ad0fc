"""Sampling G completions for each prompt: the prompt is computed once, its KV cache shared by the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogalign.generation.cache import in_place_cache
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


def _draw(logits: Tensor, settings: SamplingSettings, uniform: Tensor | None) -> Tensor:
    """One token [N] for each row of logits [N, V]; `uniform` [N] in [0, 1) picks it from the distribution."""
    if uniform is None:
        return logits.argmax(-1)
    kept = nucleus(logits / settings.temperature, settings.top_p)
    cumulative = kept.softmax(-1, dtype=torch.float64).cumsum(-1)
    # the first token whose cumulative probability exceeds the number drawn: one of probability 0 never does
    place = uniform * cumulative[:, -1]
    return torch.searchsorted(cumulative, place[:, None], right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


class _Rows:
    """The completions that still go on: what the model needs of them, and where they belong in the result."""

    def __init__(self, places: Tensor, start: Tensor, past: Tensor | None, cache: Any) -> None:
        self.places, self.start, self.past, self.cache = places, start, past, cache

    def keep(self, going: Tensor) -> None:
        """Drop the rows that are not `going` [N]."""
        indices = going.nonzero()[:, 0]
        self.places, self.start = self.places[indices], self.start[indices]
        self.past = None if self.past is None else self.past[indices]
        self.cache.batch_select_indices(indices)


@torch.no_grad()
def sample(
    loaded: LoadedModel, prompt: Inputs, settings: SamplingSettings, generator: torch.Generator | None = None
) -> Rollout:
    """Draw `settings.num_generations` completions for each of the P prompts.

    The prompts run once; finished completions leave the batch while the rest go on.

    Args:
        loaded: the model; its mode (train or eval) is put to eval while sampling.
        prompt: tensors of `encode_prompts` on the model's device.
        settings: how tokens are drawn.
        generator: source of randomness on the model's device.
    """
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        return _sample(loaded, prompt, settings, generator)
    finally:
        loaded.model.train(was_training)


def _sample(
    loaded: LoadedModel, prompt: Inputs, settings: SamplingSettings, generator: torch.Generator | None
) -> Rollout:
    model, family, group, limit = loaded.model, loaded.family, settings.num_generations, settings.max_completion_length
    out = model(**prompt, use_cache=True, logits_to_keep=1)
    logits = out.logits[:, -1].repeat_interleave(group, 0)
    total, device = len(logits), logits.device
    mask = prompt["attention_mask"]
    rows = _Rows(
        places=torch.arange(total, device=device),
        start=family.next_position(loaded.core, mask).repeat_interleave(group, 0),
        # without padding every row sees all that is cached, and no mask has to be applied
        past=None if bool(mask.all()) else mask.repeat_interleave(group, 0),
        cache=in_place_cache(out.past_key_values, group, limit),
    )
    banned = family.placeholder_ids(loaded.core, loaded.tokenizer)
    ends = torch.tensor(end_ids(loaded), device=device)
    ids = torch.full((total, limit), loaded.tokenizer.pad_token_id, device=device)
    lengths = torch.full((total,), limit, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    for step in range(limit):
        uniform = None
        if settings.temperature > 0:  # drawn for all rows, so that a row's numbers do not depend on the others' ends
            uniform = torch.rand(total, generator=generator, device=device, dtype=torch.float64)[rows.places]
        token = _draw(allowed_logits(logits, banned), settings, uniform)
        ids[rows.places, step] = token
        ended = torch.isin(token, ends)
        if bool(ended.any()):
            finished[rows.places[ended]] = True
            lengths[rows.places[ended]] = step + 1
            if bool(ended.all()):
                break
            rows.keep(~ended)
            token = token[~ended]
        if step + 1 == limit:
            break
        if rows.past is not None:
            rows.past = torch.cat([rows.past, torch.ones_like(rows.past[:, :1])], 1)
        logits = model(
            input_ids=token[:, None],
            attention_mask=rows.past,
            position_ids=family.position_ids(rows.start, step, 1),
            past_key_values=rows.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    longest = int(lengths.max())
    kept = torch.arange(longest, device=device)[None] < lengths[:, None]
    return Rollout(ids[:, :longest], kept.long(), finished)
