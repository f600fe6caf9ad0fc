"""Causal attention in bfloat16 on a CPU: torch's kernel going forward, products of matrices going backward.

torch's own backward kernel for CPUs computes short types without the processor's matrix unit, and takes several times
as long as the same products one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cogalign.models.shared_prefix import attention_through

NAME = "cogalign_causal"
"""Under which transformers finds the function."""


@contextmanager
def short_attention(core: Any, text_model: Any, mask: Tensor | None = None) -> Iterator[bool]:
    """Inside the block the layers of `text_model` attend by `causal_attention`, if it is worth it.

    It is on a CPU, where a gradient is taken, the weights are bfloat16 and attention has no dropout; else the block
    changes nothing.

    Args:
        core: the transformers model; one that runs on SDPA or the plain products is changed.
        text_model: its language model; all its layers attend to all that came before.
        mask: [B, L], attention mask of the batch: nothing changes if it has a 0 before a 1. None: there is none.

    Yields:
        Whether it is so.
    """
    weight = next(text_model.parameters())
    worth = weight.device.type == "cpu" and torch.is_grad_enabled() and _dtype(text_model) == torch.bfloat16
    worth = worth and not getattr(text_model.config, "attention_dropout", 0)
    worth = worth and core.config._attn_implementation in ("sdpa", "eager") and not torch.is_autocast_enabled("cpu")
    if not worth or (mask is not None and bool((mask.diff(dim=1) > 0).any())):
        yield False
        return
    with attention_through(text_model, NAME, causal_attention):
        yield True


def _dtype(text_model: Any) -> torch.dtype:
    """The type in which a language model computes: that of its embeddings."""
    dtype: torch.dtype = text_model.get_input_embeddings().weight.dtype
    return dtype


def causal_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function in transformers' form; tokens see all before them and themselves, whatever the mask.

    Raises:
        TypeError: the layer asks for something else than plain causal attention.
    """
    if sliding_window is not None or softcap is not None or dropout or query.shape[2] != key.shape[2]:
        raise TypeError(
            f"{type(module).__name__}: wanted plain causal attention; found sliding_window={sliding_window}, "
            f"softcap={softcap}, dropout={dropout}, {query.shape[2]} queries and {key.shape[2]} keys"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = _Causal.apply(query, key, value, scale)
    return out.transpose(1, 2), None


class _Causal(torch.autograd.Function):
    """Attention [B, heads, L, D] to keys and values [B, kv heads, L, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        keys, values = (part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in (key, value))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, True, scale=scaling
        )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # Dao et al., FlashAttention, algorithm 4, in one block; query heads of one key head stand side by side
        query, key, value, out, lse = ctx.saved_tensors
        batch, heads, length, _ = query.shape
        shared = key.shape[1]
        folded, grad, result = (
            part.reshape(batch * shared, heads // shared * length, -1) for part in (query, gradients[0], out)
        )
        keys, values = (part.reshape(batch * shared, length, -1) for part in (key, value))
        unseen = torch.full((length, length), float("-inf")).triu_(1)
        chances = (unseen - lse.contiguous()[..., None]).view(batch * shared, -1, length)
        chances.add_(folded @ keys.transpose(1, 2), alpha=ctx.scaling).exp_()
        common = torch.linalg.vecdot(grad.float(), result.float())[..., None]
        scores = torch.sub(grad @ values.transpose(1, 2), common).mul_(chances).to(query.dtype)
        d_value = chances.to(query.dtype).transpose(1, 2) @ grad
        d_query, d_key = scores @ keys, scores.transpose(1, 2) @ folded
        return (
            d_query.mul_(ctx.scaling).view_as(query),
            d_key.mul_(ctx.scaling).view_as(key),
            d_value.view_as(value),
            None,
        )
