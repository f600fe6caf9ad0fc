"""Sampling for families whose prompts cannot be shared: transformers' own `generate` on repeated prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from cogalign.generation.draw import draw
from cogalign.generation.uniforms import Uniforms
from cogalign.models.inputs import Inputs, left_padded, tiled
from cogalign.training.heartbeat import beat
from cogalign.training.progress import say

if TYPE_CHECKING:
    from cogalign.generation.sampling import SamplingSettings


@cache
def warn_plain(model_type: str) -> None:
    """Say once what it costs that the prompts of this kind of model are not shared."""
    say(
        f"{model_type}: prompts of this kind of model are not shared between completions (no class for it in "
        "cogalign.models.families, or a sliding window or capped logits); each prompt and each of its images is "
        "computed once for every completion, in sampling and again in every scoring pass"
    )


@torch.no_grad()
def plain_sample(
    core: Any,
    prompt: Inputs,
    settings: SamplingSettings,
    ends: Sequence[int],
    banned: Tensor,
    pad_id: int,
    uniforms: Uniforms | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """G completions for each of P prompts.

    Args:
        core: the transformers model, in eval mode.
        prompt: tensors of P prompts, padded on either side.
        settings: how tokens are drawn; nothing is taken from the model's `generation_config`.
        ends: tokens that end a completion.
        banned: ids of tokens that are never sampled.
        pad_id: what stands behind a completion.
        uniforms: random numbers of the P * G completions; None takes the likeliest tokens.

    Returns:
        `ids`, `mask` [P * G, T] and `finished` [P * G] of a rollout, in the order of the prompts.
    """
    warn_plain(core.config.model_type)
    group, length = settings.num_generations, prompt["input_ids"].shape[1]
    repeated = tiled(left_padded(prompt), group)
    drawing = [] if uniforms is None else [_Drawing(settings, uniforms)]
    with _only(core, _config(settings, ends, banned, pad_id)):
        ids = core.generate(**repeated, logits_processor=LogitsProcessorList(drawing))[:, length:]
    # copy after copy of the batch -> completions of a prompt side by side
    ids = ids.view(group, -1, ids.shape[1]).transpose(0, 1).flatten(0, 1)
    return cut(ids, ends, pad_id)


def cut(ids: Tensor, ends: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask [N, T] up to and with the first of `ends`, and whether there was one [N]."""
    ended = torch.isin(ids, torch.tensor(list(ends), device=ids.device)).long()
    kept = ended.cumsum(1) - ended == 0
    return ids.masked_fill(~kept, pad_id), kept.long(), ended.any(1)


class _Drawing(LogitsProcessor):
    """Draws the next tokens as `cogalign.generation.draw` does, and leaves `generate` no other choice.

    Its own sampling takes random numbers in the order of the batch; ours belong to their completions.
    """

    def __init__(self, settings: SamplingSettings, uniforms: Uniforms) -> None:
        self.settings, self.uniforms = settings, uniforms

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [G * P, V] that allow one token a row; the rows are copy after copy of the prompts."""
        beat()
        how = self.settings
        uniform = self.uniforms.next().view(-1, how.num_generations).t().flatten()
        token = draw(scores, how.temperature, how.top_p, how.top_k, uniform)
        return torch.full_like(scores, float("-inf")).scatter(1, token[:, None], 0.0)


def _config(settings: SamplingSettings, ends: Sequence[int], banned: Tensor, pad_id: int) -> Any:
    """All that `generate` goes by. What is None here would become transformers' default."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,  # `_Drawing` draws
        max_new_tokens=settings.max_completion_length,
        suppress_tokens=banned.tolist() or None,
        eos_token_id=list(ends),
        pad_token_id=pad_id,
        use_cache=True,
    )


@contextmanager
def _only(core: Any, config: Any) -> Iterator[None]:
    """Inside the block `generate` knows no other settings: it would fill gaps from the model's own."""
    before = core.generation_config
    core.generation_config = config
    try:
        yield
    finally:
        core.generation_config = before
