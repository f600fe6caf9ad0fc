"""Drawing tokens: temperature, top-k and nucleus as in transformers' processors, then the inverse of the distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def only_likeliest(logits: Tensor, top_k: int) -> Tensor:
    """Logits [N, V] with -inf for all but the `top_k` likeliest tokens (and those equal to the last of them)."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k, -1).values[:, -1:], float("-inf"))


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits [N, V] with -inf outside the smallest set of tokens whose probability reaches `top_p`."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= top_p  # the token that crosses top_p stays in
    return logits.masked_fill(outside.scatter(1, order, outside), float("-inf"))


def pick(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token [N] at which the cumulative probability first exceeds `uniform` [N] in [0, 1).

    Looked up in two steps, blocks of tokens first: a cumulative sum over a whole vocabulary costs more than the model
    when it is small. A token of probability 0 is never picked: the cumulative sum does not rise there.

    Args:
        probabilities: [N, V], not negative; their sums need not be 1.
        uniform: float64.
    """
    rows, vocabulary = probabilities.shape
    size = math.isqrt(vocabulary - 1) + 1
    blocks = functional.pad(probabilities, (0, -vocabulary % size)).view(rows, -1, size)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    place = (uniform * cumulative[:, -1])[:, None]
    block = torch.searchsorted(cumulative, place, right=True).clamp_max_(blocks.shape[1] - 1)
    before = functional.pad(cumulative, (1, 0)).gather(1, block)
    inner = blocks.gather(1, block[..., None].expand(-1, -1, size))[:, 0].cumsum(-1, dtype=torch.float64)
    # rounding may put the rest at the block's very end: stay below it, where the last possible token is
    rest = torch.minimum(place - before, inner[:, -1:] * (1 - 1e-12))
    return (block * size + torch.searchsorted(inner, rest, right=True))[:, 0]


def draw(logits: Tensor, temperature: float, top_p: float, top_k: int, uniform: Tensor | None) -> Tensor:
    """One token [N] for each row of logits [N, V] (float32).

    Args:
        logits: -inf for tokens that are ruled out.
        temperature: the logits are divided by it.
        top_p: see `nucleus`.
        top_k: see `only_likeliest`; 0 for all.
        uniform: [N] in [0, 1), float64, picks from the distribution; None takes the likeliest token.
    """
    if uniform is None:
        return logits.argmax(-1)
    kept = nucleus(only_likeliest(logits / temperature, top_k), top_p)
    return pick(kept.softmax(-1), uniform)
