"""Log-probabilities of completions, with the prompt computed once for its group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cogalign.generation.cache import selected_cache
from cogalign.generation.sampling import allowed_logits
from cogalign.models.load import LoadedModel, core_of
from cogalign.models.prompts import Inputs

BUCKETS = 2
"""Groups of completions of like length that are computed together."""


def completion_logps(
    loaded: LoadedModel, model: Any, prompt: Inputs, ids: Tensor, group: int, temperature: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every token of the completions.

    The prompt runs once; its keys and values are shared by the group, and the gradient flows back
    through them. The distribution is that of sampling: image placeholders ruled out, logits divided
    by the temperature. At padding both results are 0.

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
    family, prompts = loaded.family, prompt["attention_mask"]
    out = model(**prompt, use_cache=True, logits_to_keep=1)
    # the positions that this very model found: the reference may be another one than `loaded`
    start = family.next_position(core_of(model), prompts)
    banned = family.placeholder_ids(loaded.core, loaded.tokenizer)
    lengths = mask.sum(1)
    order = lengths.argsort()
    logps, entropies = [], []
    for rows in order.chunk(BUCKETS):  # short completions are not computed to the length of the longest
        owner, length = rows // group, max(1, int(lengths[rows].max()))
        logits = out.logits[owner]
        if length > 1:
            rest = model(
                input_ids=ids[rows, : length - 1],
                attention_mask=torch.cat([prompts[owner], mask[rows, : length - 1]], 1),
                position_ids=family.position_ids(start[owner], 0, length - 1),
                past_key_values=selected_cache(out.past_key_values, owner),
                use_cache=True,
            ).logits
            logits = torch.cat([logits, rest], 1)
        logp, entropy = token_logps(allowed_logits(logits, banned) / temperature, ids[rows, :length])
        missing = (0, ids.shape[1] - length)
        logps.append(torch.nn.functional.pad(logp, missing))
        entropies.append(torch.nn.functional.pad(entropy, missing))
    back = order.argsort()
    return torch.cat(logps)[back], torch.cat(entropies)[back]


def token_logps(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and (without gradient) entropy in nats of each token, both [N, T].

    Args:
        logits: [N, T, V]; -inf for tokens that cannot be drawn.
        ids: [N, T], the tokens that were drawn.
    """
    normaliser = logits.logsumexp(-1)
    with torch.no_grad():
        # a token that cannot be drawn has probability 0, and 0 * -inf would be NaN
        expected = ((logits - normaliser[..., None]).exp() * logits.masked_fill(logits.isinf(), 0)).sum(-1)
        entropy = normaliser - expected
    return logits.gather(2, ids[..., None])[..., 0] - normaliser, entropy
