"""Log-probabilities from hidden states, in chunks: [tokens, vocabulary] never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_NUMBERS, LEAST_TOKENS = 2**20, {"cpu": 128, "cuda": 1024}
"""Logits that exist at once (4 MiB in float32), but never fewer than those of so many tokens."""

Head = Callable[[Tensor], Tensor]


def allowed_logits(logits: Tensor, banned: Tensor) -> Tensor:
    """Logits [..., V] in float32 (or float64) with the tokens `banned` ruled out: the policy's own distribution."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.index_fill(-1, banned, float("-inf")) if len(banned) else logits


def hidden_logps(
    head: Head, hidden: Tensor, ids: Tensor, banned: Tensor, temperature: float, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Log-probability and (without gradient) entropy in nats of each token, both [K].

    Computed chunk by chunk; in the backward pass each chunk's logits are computed again.

    Args:
        head: from hidden states [K, hidden] to logits [K, V].
        hidden: [K, hidden], the state that predicts each token.
        ids: [K], the tokens.
        banned: ids of tokens that are never sampled.
        temperature: the logits are divided by it.
        vocabulary: V, for the size of the chunks.
    """
    size = max(LEAST_TOKENS.get(hidden.device.type, 128), CHUNK_NUMBERS // vocabulary)
    logps, entropies = [], []
    for part, wanted in zip(hidden.split(size), ids.split(size), strict=True):
        chunk = _Chunk(head, banned, temperature)
        if torch.is_grad_enabled():
            logps.append(checkpoint(chunk.logps, part, wanted, use_reentrant=False))
        else:
            logps.append(chunk.logps(part, wanted))
        assert chunk.entropy is not None
        entropies.append(chunk.entropy)
    return torch.cat(logps), torch.cat(entropies)


class _Chunk:
    """One chunk of tokens; its entropy is computed the first time only, not again in the backward pass."""

    def __init__(self, head: Head, banned: Tensor, temperature: float) -> None:
        self.head, self.banned, self.temperature = head, banned, temperature
        self.entropy: Tensor | None = None

    def logps(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities [K] of tokens `ids` [K] from `hidden` [K, hidden]."""
        logits = allowed_logits(self.head(hidden), self.banned) / self.temperature
        normaliser = logits.logsumexp(-1)
        if self.entropy is None:
            self.entropy = self._entropy(logits.detach(), normaliser.detach())
        return logits.gather(1, ids[:, None])[:, 0] - normaliser

    def _entropy(self, logits: Tensor, normaliser: Tensor) -> Tensor:
        # a token that cannot be drawn has probability 0, and 0 * -inf would be NaN
        chances = (logits - normaliser[:, None]).exp_()
        finite = logits.index_fill(-1, self.banned, 0.0) if len(self.banned) else logits
        return normaliser - (chances * finite).sum(-1)
