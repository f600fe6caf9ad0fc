"""Attention of many completions to one prompt whose keys and values exist once.

transformers' attention layers call the function below instead of their own (`attention_through`). A completion's token
attends to its prompt, whose keys and values are those of the group, and to the completion before it. Both parts are
computed apart and put together with their log-sum-exp, as in blockwise attention (Dao et al., FlashAttention, eq. 3-4):
softmax over all keys = the parts, each weighted by its share of the normaliser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

NAME = "cogalign_shared_prefix"
"""Name under which transformers finds the function."""


class Attention(Protocol):
    """Attends to a shared prompt, and to what came after it."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Output [B, T, heads, D] for `query` [B, heads, T, D] and new `key`, `value` [B, kv heads, T', D]."""
        ...


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P prompts, one pair of tensors [P, kv heads, L, D] for each layer.

    `bias` [P, 1, 1, L] is -inf on padding and 0 elsewhere; None where no prompt is padded.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    bias: Tensor | None

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor], mask: Tensor) -> Prefix:
        """From keys and values, and the prompts' attention mask [P, L]."""
        bias = None
        if not bool(mask.all()):
            bias = torch.zeros(mask.shape, dtype=keys[0].dtype, device=mask.device)
            bias = bias.masked_fill(mask == 0, float("-inf"))[:, None, None]
        return cls(keys, values, bias)


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    shared_prefix: Attention | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function in transformers' form.

    Raises:
        TypeError: the layer asks for something that sharing cannot do, or does not pass `shared_prefix` on.
    """
    if shared_prefix is None or sliding_window is not None or softcap is not None:
        raise TypeError(
            f"{type(module).__name__}: shared prompts need plain causal attention; found "
            f"shared_prefix={shared_prefix is not None}, sliding_window={sliding_window}, softcap={softcap}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared_prefix.attend(int(module.layer_idx), query, key, value, scale), None


@contextmanager
def attention_through(
    text_model: Any, name: str = NAME, function: Callable[..., Any] = shared_prefix_attention
) -> Iterator[None]:
    """Inside the block the layers of `text_model` attend by a function of ours, and no mask is made for them.

    Args:
        text_model: the language model.
        name: under which transformers finds the function.
        function: an attention function in transformers' form.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, function)
    configs = _configs(text_model)
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


_KNOWN: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()


def _configs(text_model: Any) -> dict[int, Any]:
    """The settings that the layers of a language model read, most often one object."""
    if text_model not in _KNOWN:
        parts = [part for part in text_model.modules() if hasattr(part, "config")]
        _KNOWN[text_model] = {id(part.config): part.config for part in parts}
    return _KNOWN[text_model]


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention [P, heads, T, D] and its log-sum-exp [P, heads, T] over the keys of a prompt, by the CPU's flash kernel.

    There is no gradient.
    """
    mask = None if bias is None else bias.expand(-1, 1, query.shape[2], -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scaling
    )
    return out, lse.to(out.dtype)


def prompt_attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention [P, kv heads, T, D] of few queries to prompts, and its log-sum-exp [P, kv heads, T, 1].

    Args:
        query: [P, kv heads, T, D], scaled.
        keys: [P, kv heads, D, L].
        values: [P, kv heads, L, D].
        bias: [P, 1, 1, L], -inf on padding; None where there is none.
    """
    scores = query @ keys
    if bias is not None:
        scores += bias
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights @ values).div_(total), total.log().add_(largest)


class Groups:
    """Rows of one prompt side by side, so that they are computed together against its keys.

    Args:
        owner: [N], the prompt of each row, ascending.

    Attributes:
        present: [P], the prompts that have rows.
        owner: [N], the place of each row's prompt in `present`.
    """

    def __init__(self, owner: Tensor) -> None:
        self.present, self.owner = owner.unique_consecutive(return_inverse=True)
        rows = torch.arange(len(owner), device=owner.device)
        counts = self.owner.bincount()
        rank = rows - (counts.cumsum(0) - counts)[self.owner]
        self.width = int(counts.max())
        self.table = torch.zeros((len(counts), self.width), dtype=torch.long, device=owner.device)
        self.table[self.owner, rank] = rows
        self.place = self.owner * self.width + rank
        self.whole = len(owner) == self.table.numel()  # every prompt has as many rows: no look-up is needed

    def together(self, rows: Tensor) -> Tensor:
        """Rows [N, kv heads, T, D] as [P, kv heads, width * T, D]."""
        table = rows.view(-1, self.width, *rows.shape[1:]) if self.whole else rows[self.table]
        return table.transpose(1, 2).flatten(2, 3)

    def apart(self, values: Tensor) -> Tensor:
        """[P, kv heads, width * T, D] as rows [N, kv heads, T, D]."""
        rows = values.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self.whole else rows[self.place]


class DecodeAttention:
    """One new token a row; rows of one prompt are computed together against its keys.

    Args:
        prefix: of P prompts.
        owner: [N], the prompt of each row, ascending.
    """

    def __init__(self, prefix: Prefix, owner: Tensor) -> None:
        self.keys = [key.transpose(-1, -2) for key in prefix.keys]
        self.values = list(prefix.values)
        if owner.device.type == "cpu":  # read once for every token: in the order in which they are read
            self.keys, self.values = ([x.contiguous() for x in part] for part in (self.keys, self.values))
        self.bias = prefix.bias
        self._group(owner)

    def _group(self, owner: Tensor) -> None:
        """Put the rows of each prompt side by side; prompts without rows leave."""
        self.groups = Groups(owner)
        present = self.groups.present
        if len(present) < len(self.keys[0]):
            self.keys, self.values = ([x[present] for x in part] for part in (self.keys, self.values))
            self.bias = None if self.bias is None else self.bias[present]

    def keep(self, indices: Tensor) -> None:
        """Go on with the rows `indices` only."""
        self._group(self.groups.owner[indices])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `Attention.attend` with T = 1; `key` and `value` hold the completion so far."""
        n, heads, _, width = query.shape
        shared = key.shape[1]
        repeats = heads // shared
        query = query.reshape(n, shared, repeats, width) * scaling
        together = self.groups.together(query)
        parts = prompt_attention(together, self.keys[layer], self.values[layer], self.bias)
        out, lse = (self.groups.apart(part) for part in parts)
        scores = query @ key.transpose(-1, -2)
        weights = torch.cat([lse, scores], -1).softmax(-1)  # the prompt as a whole is one more "key"
        result = torch.addcmul(weights[..., 1:] @ value, weights[..., :1], out)
        return result.reshape(n, 1, heads, width)
