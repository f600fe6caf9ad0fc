"""Log-probabilities from hidden states, in chunks: [tokens, vocabulary] never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_NUMBERS, LEAST_TOKENS = 2**20, {"cpu": 128, "cuda": 1024}
"""Logits that exist at once (4 MiB in float32), but never fewer than those of so many tokens."""

NEVER = -1e30
"""The logit of a token that is never sampled, where -inf would cost a pass; its probability is 0, too."""

Head = Callable[[Tensor], Tensor]


def allowed_logits(logits: Tensor, banned: Tensor) -> Tensor:
    """Logits [..., V] in float32 (or float64) with the tokens `banned` ruled out: the policy's own distribution."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.index_fill(-1, banned, float("-inf")) if len(banned) else logits


def hidden_logps(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    banned: Tensor,
    temperature: float,
    vocabulary: int,
    with_entropy: bool = True,
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
        with_entropy: False spares the entropies, which are 0 then.
    """
    size = max(LEAST_TOKENS.get(hidden.device.type, 128), CHUNK_NUMBERS // vocabulary)
    logps, entropies = [], []
    for part, wanted in zip(hidden.split(size), ids.split(size), strict=True):
        chunk = _Chunk(head, banned, temperature, with_entropy)
        if torch.is_grad_enabled():
            logps.append(checkpoint(chunk.logps, part, wanted, use_reentrant=False))
        else:
            logps.append(chunk.logps(part, wanted))
        entropies.append(logps[-1].new_zeros(len(part)) if chunk.entropy is None else chunk.entropy)
    return torch.cat(logps), torch.cat(entropies)


class _Chunk:
    """One chunk of tokens; its entropy is computed the first time only, not again in the backward pass."""

    def __init__(self, head: Head, banned: Tensor, temperature: float, with_entropy: bool) -> None:
        self.head, self.banned, self.temperature, self.with_entropy = head, banned, temperature, with_entropy
        self.entropy: Tensor | None = None

    def logps(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities [K] of tokens `ids` [K] from `hidden` [K, hidden]."""
        logits = self.head(hidden)
        # as good as -inf, and a number: the entropy needs one pass over the logits less
        out = NEVER if logits.dtype == torch.bfloat16 else float("-inf")
        if logits.dtype != torch.float64:
            logits = logits.float()
        if len(self.banned) and (logits is hidden or logits._base is not None):
            logits = logits.index_fill(-1, self.banned, out)
        elif len(self.banned):
            # in place, and unknown to autograd: the gradient there is 0 without it
            logits.detach().index_fill_(-1, self.banned, out)
        if self.temperature != 1:
            logits = logits / self.temperature
        normaliser = logits.detach().logsumexp(-1)
        if self.with_entropy and self.entropy is None:
            entropy = _entropy if out != NEVER else _finite_entropy
            self.entropy = entropy(logits.detach(), normaliser)
        found: Tensor = _LogProb.apply(logits, ids, normaliser)
        return found


class _LogProb(torch.autograd.Function):
    """log softmax(logits)[id], and its gradient id - softmax, in as few passes over the logits as it takes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, normaliser: Tensor) -> Tensor:
        ctx.save_for_backward(logits, ids, normaliser)
        return logits.gather(1, ids[:, None])[:, 0] - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, normaliser = ctx.saved_tensors
        grad = gradients[0][:, None]
        chances = (logits - normaliser[:, None]).exp_()
        return chances.mul_(-grad).scatter_add_(1, ids[:, None], grad.to(logits.dtype)), None, None


def _entropy(logits: Tensor, normaliser: Tensor) -> Tensor:
    """Entropy [K] in nats. A token that cannot be drawn has probability 0, and 0 * -inf would be NaN."""
    chances = (logits - normaliser[:, None]).exp_()
    return normaliser - torch.linalg.vecdot(chances, logits.clamp(min=-1e30))


def _finite_entropy(logits: Tensor, normaliser: Tensor) -> Tensor:
    """As `_entropy`, of logits that are all numbers, without a product as large as they are."""
    chances = (logits - normaliser[:, None]).exp_()
    return normaliser - (chances[:, None] @ logits[:, :, None])[:, 0, 0]
