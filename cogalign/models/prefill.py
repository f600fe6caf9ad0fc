"""Prompts computed once: what sampling and scoring of their completions start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogalign.models.causal import short_attention
from cogalign.models.families import Family
from cogalign.models.inputs import Inputs, right_padded
from cogalign.models.load import core_of
from cogalign.models.merged import fused_adapter
from cogalign.models.shared_prefix import Prefix


@dataclass(frozen=True)
class Prefill:
    """P prompts as the model left them.

    `last` [P, hidden] is the hidden state of the last token, which predicts the first token of every completion;
    `position` [P, 1] the position of that first token; `prefix` holds the keys and values.
    """

    last: Tensor
    position: Tensor
    prefix: Prefix

    def detach(self) -> Prefill:
        """The same without gradient."""
        prefix = self.prefix
        keys, values = [k.detach() for k in prefix.keys], [v.detach() for v in prefix.values]
        return Prefill(self.last.detach(), self.position, Prefix(keys, values, prefix.bias))


def prefill(family: Family, model: Any, prompt: Inputs) -> Prefill:
    """Run the prompts.

    They are padded on the right for it: with causal attention no token sees the padding behind it, so no mask is
    needed and the kernel skips what lies in the future.

    Args:
        family: of the model.
        model: the policy or the reference, with or without PEFT around it.
        prompt: tensors of P prompts, padded on either side.

    Raises:
        TypeError: the model's cache does not keep all keys and values.
    """
    from transformers.cache_utils import DynamicLayer

    core, prompt = core_of(model), right_padded(prompt)
    positions, following = family.prompt_positions(core, prompt)
    mask = prompt["attention_mask"]
    given = {name: value for name, value in prompt.items() if name != "attention_mask"}
    ends = (torch.arange(len(mask), device=mask.device), mask.sum(1) - 1)
    text = family.text_model(core)
    with fused_adapter(model), short_attention(core, text), _last_tokens_only(text, ends):
        out = family.body(core)(**given, position_ids=positions, use_cache=True)
    layers = out.past_key_values.layers if out.past_key_values is not None else ()
    if not any(layer.get_seq_length() for layer in layers):
        raise TypeError(
            f"{type(core).__name__}: found no keys and values after the prompts, as with gradient checkpointing; "
            "shared prompts need them"
        )
    for layer in layers:
        if type(layer) is not DynamicLayer:
            raise TypeError(
                f"cache layer {type(layer).__name__}: shared prompts need layers that keep all keys and values"
            )
    prefix = Prefix.of([layer.keys for layer in layers], [layer.values for layer in layers], mask)
    return Prefill(out.last_hidden_state[ends], following, prefix)


@contextmanager
def _last_tokens_only(text_model: Any, ends: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Inside the block the last layer's MLP is computed for the prompts' last tokens only.

    Of all others nothing is needed of the last layer but keys and values, which come before its MLP. Layers without the
    usual gated MLP are left alone.
    """
    layers = getattr(text_model, "layers", None)
    mlp: Any = getattr(layers[-1], "mlp", None) if layers is not None and len(layers) else None
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")) or "forward" in vars(mlp):
        yield
        return
    whole = mlp.forward

    def some(values: Tensor) -> Tensor:
        return torch.zeros_like(values).index_put(ends, whole(values[ends]).to(values.dtype))

    mlp.forward = some
    try:
        yield
    finally:
        del mlp.forward
