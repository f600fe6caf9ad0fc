"""Completions of one prompt in one row: no padding between them, each attends to the prompt and to itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cogalign.models.shared_prefix import Prefix, prefix_attention


@dataclass(frozen=True)
class Layout:
    """Where the tokens of N completions stand in P packed rows of S tokens.

    `unpack` [N, M] is the flat place (row * S + column) of each completion's tokens, `valid` [N, M] says which of them
    exist; `pack` [P, S] is the flat place (n * M + t) of the token in each packed place, 0 where there is none;
    `offset` [P, S] counts a completion's tokens from 0; `owner` [N] is each completion's row.
    """

    owner: Tensor
    unpack: Tensor
    valid: Tensor
    pack: Tensor
    offset: Tensor

    @classmethod
    def of(cls, lengths: Tensor, owner: Tensor, rows: int) -> Layout:
        """From the completions' lengths [N] and their rows [N] (ascending).

        Raises:
            ValueError: `owner` is not ascending.
        """
        if bool((owner.diff() < 0).any()):
            raise ValueError("owner: found completions of one prompt that do not stand together")
        before = lengths.cumsum(0) - lengths
        totals = torch.zeros(rows, dtype=torch.long, device=lengths.device).index_add_(0, owner, lengths)
        start = before - (totals.cumsum(0) - totals)[owner]  # column of each completion's first token
        size, longest = max(1, int(totals.max())), max(1, int(lengths.max()))
        steps = torch.arange(longest, device=lengths.device)
        valid = steps[None] < lengths[:, None]
        unpack = ((owner * size + start)[:, None] + steps[None]).masked_fill(~valid, 0)
        pack = torch.zeros(rows * size, dtype=torch.long, device=lengths.device)
        pack[unpack[valid]] = torch.arange(valid.numel(), device=lengths.device).view(valid.shape)[valid]
        return cls(owner, unpack, valid, pack.view(rows, size), (pack % longest).view(rows, size))

    def packed(self, values: Tensor) -> Tensor:
        """[N, M, ...] as packed rows [P, S, ...]; arbitrary values where there is no token."""
        return values.flatten(0, 1)[self.pack]

    def unpacked(self, values: Tensor) -> Tensor:
        """Packed rows [P, S, ...] as [N, M, ...]; arbitrary values where there is no token."""
        return values.flatten(0, 1)[self.unpack]


class PackedAttention:
    """Attention of packed completions to their prompts and to themselves, with gradient to all of them.

    Args:
        prefix: of P prompts.
        layout: of their completions.
        merge: compute the prompt's part and the completion's part apart (a CPU can); False copies the prompt's keys for
            each completion inside the layer. None chooses by the device.
    """

    def __init__(self, prefix: Prefix, layout: Layout, merge: bool | None = None) -> None:
        self.prefix, self.layout = prefix, layout
        self.merge = prefix.keys[0].device.type == "cpu" if merge is None else merge

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `Attention.attend`; B is the number of prompts, T the length of a packed row."""
        keys, values = self.prefix.keys[layer], self.prefix.values[layer]
        if self.merge:
            # the kernel takes one type; under autocast queries and values come in two, and bfloat16 has no backward
            wide = torch.float64 if value.dtype == torch.float64 else torch.float32
            parts = [part.to(wide) for part in (query, key, value, keys, values)]
            bias = None if self.prefix.bias is None else self.prefix.bias.to(wide)
            result: Tensor = _Merged.apply(*parts, bias, self.layout, scaling)
            return result.to(value.dtype)
        query, key, keys = (part.to(value.dtype) for part in (query, key, keys))
        return self._joined(query, key, value, keys, values, scaling)

    def _joined(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        layout, repeats = self.layout, query.shape[1] // key.shape[1]
        # heads are repeated by hand: with a mask and grouped heads only the slowest of SDPA's kernels is left
        query, key, value = _apart(query, key, value, layout)
        key, value = (
            torch.cat([before[layout.owner].repeat_interleave(repeats, 1), own], 2)
            for before, own in ((keys, key), (values, value))
        )
        out = functional.scaled_dot_product_attention(query, key, value, self.mask, scale=scaling)
        return layout.packed(out.transpose(1, 2))

    @cached_property
    def mask(self) -> Tensor:
        """[N, 1, M, L + M], which keys each completion's tokens see."""
        layout, steps = self.layout, self.layout.valid.shape[1]
        length, device = self.prefix.keys[0].shape[2], layout.owner.device
        causal = torch.ones((steps, steps), dtype=torch.bool, device=device).tril()
        before = torch.ones((len(layout.owner), 1, 1, length), dtype=torch.bool, device=device)
        if self.prefix.bias is not None:
            before = (self.prefix.bias == 0)[layout.owner]
        return torch.cat([before.expand(-1, 1, steps, -1), causal.expand(len(layout.owner), 1, -1, -1)], -1)


class _Merged(torch.autograd.Function):
    """Both parts by the CPU's flash kernel, forward and backward.

    The backward kernel needs the output and the log-sum-exp of the whole softmax only, so each part's gradient is
    exact by itself (Dao et al., FlashAttention, algorithm 4).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        layout: Layout,
        scaling: float,
    ) -> Tensor:
        rows, heads, size, width = query.shape
        folded = _fold(query, key.shape[1])
        shared, lse = prefix_attention(folded, keys, values, bias, scaling)
        shared = shared.view(rows, heads, size, width).transpose(1, 2)
        lse = lse.reshape(rows, heads, size).transpose(1, 2)
        own, own_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *_apart(query, key, value, layout), 0.0, True, scale=scaling
        )
        own, own_lse = layout.packed(own.transpose(1, 2)), layout.packed(own_lse.transpose(1, 2))
        total = torch.logaddexp(lse, own_lse.to(lse.dtype))
        out = shared * (lse - total).exp()[..., None]
        out.addcmul_(own, (own_lse.to(lse.dtype) - total).exp()[..., None])
        ctx.save_for_backward(query, key, value, keys, values, out, total)
        ctx.bias, ctx.layout, ctx.scaling = bias, layout, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, keys, values, out, total = ctx.saved_tensors
        layout, bias, scaling = ctx.layout, ctx.bias, ctx.scaling
        rows, heads, size, width = query.shape
        shared = key.shape[1]
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad = gradients[0]
        folded = _fold(query, shared)
        mask = None if bias is None else bias.expand(-1, 1, folded.shape[2], -1)
        dq, dkeys, dvalues = backward(
            _fold(grad.transpose(1, 2), shared), folded, keys, values, _fold(out.transpose(1, 2), shared),
            total.transpose(1, 2).reshape(rows, shared, -1), 0.0, False, attn_mask=mask, scale=scaling,
        )  # fmt: skip
        apart = _apart(query, key, value, layout)
        missing = ~layout.valid[..., None]
        own = backward(
            layout.unpacked(grad).masked_fill(missing[..., None], 0).transpose(1, 2), *apart,
            layout.unpacked(out).transpose(1, 2), layout.unpacked(total).transpose(1, 2).contiguous(), 0.0, True,
            scale=scaling,
        )  # fmt: skip
        places = layout.unpack[layout.valid]
        dquery = dq.reshape(rows, heads, size, width).transpose(1, 2).flatten(0, 1)
        dquery = dquery.index_add(0, places, own[0].transpose(1, 2)[layout.valid])
        dquery = dquery.view(rows, size, heads, width).transpose(1, 2)
        others = []
        for part in own[1:]:
            summed = part.transpose(1, 2)[layout.valid].view(-1, shared, heads // shared, width).sum(2)
            flat = summed.new_zeros((rows * size, shared, width)).index_copy_(0, places, summed)
            others.append(flat.view(rows, size, shared, width).transpose(1, 2))
        return dquery, others[0], others[1], dkeys, dvalues, None, None, None


def _fold(query: Tensor, shared: int) -> Tensor:
    """[P, heads, S, D] as [P, kv heads, repeats * S, D]: query heads of one key head side by side."""
    rows, heads, size, width = query.shape
    return query.reshape(rows, shared, heads // shared * size, width)


def _apart(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> list[Tensor]:
    """Query, key and value [N, heads, M, D] of each completion by itself, key heads repeated."""
    repeats = query.shape[1] // key.shape[1]
    parts = [layout.unpacked(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value)]
    return [parts[0], *(part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in parts[1:])]
