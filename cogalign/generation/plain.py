"""Sampling for families whose prompts cannot be shared: transformers' own `generate` on repeated prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cogalign.models.inputs import Inputs, left_padded, tiled
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
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """G completions for each of P prompts.

    Args:
        core: the transformers model, in eval mode.
        prompt: tensors of P prompts, padded on either side.
        settings: how tokens are drawn; nothing is taken from the model's `generation_config`.
        ends: tokens that end a completion.
        banned: ids of tokens that are never sampled.
        pad_id: what stands behind a completion.
        generator: source of randomness; None for torch's own.

    Returns:
        `ids`, `mask` [P * G, T] and `finished` [P * G] of a rollout, in the order of the prompts.
    """
    warn_plain(core.config.model_type)
    group, length = settings.num_generations, prompt["input_ids"].shape[1]
    repeated = tiled(left_padded(prompt), group)
    with _only(core, _config(settings, ends, banned, pad_id)), _seeded(generator, repeated["input_ids"].device):
        ids = core.generate(**repeated)[:, length:]
    # copy after copy of the batch -> completions of a prompt side by side
    ids = ids.view(group, -1, ids.shape[1]).transpose(0, 1).flatten(0, 1)
    return cut(ids, ends, pad_id)


def cut(ids: Tensor, ends: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask [N, T] up to and with the first of `ends`, and whether there was one [N]."""
    ended = torch.isin(ids, torch.tensor(list(ends), device=ids.device)).long()
    kept = ended.cumsum(1) - ended == 0
    return ids.masked_fill(~kept, pad_id), kept.long(), ended.any(1)


def _config(settings: SamplingSettings, ends: Sequence[int], banned: Tensor, pad_id: int) -> Any:
    """All that `generate` goes by. What is None here would become transformers' default (`top_k` 50)."""
    from transformers import GenerationConfig

    how: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
    return GenerationConfig(
        **how,
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


@contextmanager
def _seeded(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Inside the block torch's own random numbers follow `generator`; afterwards they are as if nothing had been."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
