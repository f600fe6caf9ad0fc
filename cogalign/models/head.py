"""Log-probabilities from hidden states, in chunks: [tokens, vocabulary] never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_NUMBERS = 2**22
"""Logits that exist at once (16 MiB in float32)."""

Head = Callable[[Tensor], Tensor]


def allowed_logits(logits: Tensor, banned: Tensor) -> Tensor:
    """Logits [..., V] in float32 (or float64) with the tokens `banned` ruled out: the policy's own distribution."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.index_fill(-1, banned, float("-inf")) if len(banned) else logits


def chunk_logps(
    head: Head, hidden: Tensor, ids: Tensor, banned: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and (without gradient) entropy in nats of each token, both [K], in one piece.

    Args:
        head: from hidden states [K, hidden] to logits [K, V].
        hidden: [K, hidden], the state that predicts each token.
        ids: [K], the tokens.
        banned: ids of tokens that are never sampled.
        temperature: the logits are divided by it.
    """
    logits = allowed_logits(head(hidden), banned) / temperature
    normaliser = logits.logsumexp(-1)
    with torch.no_grad():
        # a token that cannot be drawn has probability 0, and 0 * -inf would be NaN
        expected = ((logits - normaliser[:, None]).exp_() * logits.masked_fill(logits.isinf(), 0)).sum(-1)
        entropy = normaliser - expected
    return logits.gather(1, ids[:, None])[:, 0] - normaliser, entropy


def hidden_logps(
    head: Head, hidden: Tensor, ids: Tensor, banned: Tensor, temperature: float, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """As `chunk_logps`, computed chunk by chunk; in the backward pass each chunk's logits are computed again.

    Args:
        head: see `chunk_logps`.
        hidden: see `chunk_logps`.
        ids: see `chunk_logps`.
        banned: see `chunk_logps`.
        temperature: see `chunk_logps`.
        vocabulary: V, for the size of the chunks.
    """
    size = max(1, CHUNK_NUMBERS // vocabulary)
    found = []
    for part, wanted in zip(hidden.split(size), ids.split(size), strict=True):
        if torch.is_grad_enabled():
            found.append(checkpoint(chunk_logps, head, part, wanted, banned, temperature, use_reentrant=False))
        else:
            found.append(chunk_logps(head, part, wanted, banned, temperature))
    logps, entropies = zip(*found, strict=True)
    return torch.cat(logps), torch.cat(entropies)
