"""Log-probabilities of completions, with the prompt computed once for its group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cogalign.generation.sampling import allowed_logits, expand_cache
from cogalign.models.load import LoadedModel, core_of
from cogalign.models.prompts import Inputs


def completion_logps(
    loaded: LoadedModel, model: Any, prompt: Inputs, ids: Tensor, group: int, temperature: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every token of the completions.

    The prompt runs once; its keys and values are shared by the group, and the gradient flows back
    through them. The distribution is that of sampling: image placeholders ruled out, logits divided
    by the temperature.

    Args:
        loaded: gives the family and the tokenizer.
        model: what is scored: the policy, or the reference.
        prompt: tensors of P prompts, left padded.
        ids: [P * G, T] of the rollout.
        group: G.
        temperature: the sampling temperature.
        mask: [P * G, T] of the rollout.

    Returns:
        Log-probabilities [P * G, T] and, without gradient, entropies [P * G, T] in nats.
    """
    family = loaded.family
    out = model(**prompt, use_cache=True, logits_to_keep=1)
    first = out.logits.repeat_interleave(group, 0)
    # the positions that this very model found: the reference may be another one than `loaded`
    start = family.next_position(core_of(model), prompt["attention_mask"]).repeat_interleave(group, 0)
    if ids.shape[1] > 1:
        past = prompt["attention_mask"].repeat_interleave(group, 0)
        rest = model(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([past, mask[:, :-1]], 1),
            position_ids=family.position_ids(start, 0, ids.shape[1] - 1),
            past_key_values=expand_cache(out.past_key_values, group),
            use_cache=True,
        ).logits
        first = torch.cat([first, rest], 1)
    banned = family.placeholder_ids(loaded.core, loaded.tokenizer)
    logp = (allowed_logits(first, banned) / temperature).log_softmax(-1)
    with torch.no_grad():
        # a banned token has probability 0, and 0 * -inf would be NaN
        entropy = -(logp.exp() * logp.masked_fill(logp.isinf(), 0)).sum(-1)
    return logp.gather(2, ids[..., None])[..., 0], entropy
