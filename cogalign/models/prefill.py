"""Prompts computed once: what sampling and scoring of their completions start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cogalign.models.families import Family
from cogalign.models.load import core_of
from cogalign.models.prompts import Inputs
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

    Args:
        family: of the model.
        model: the policy or the reference, with or without PEFT around it.
        prompt: tensors of P prompts, left padded.

    Raises:
        TypeError: a layer of the model's cache does not keep all keys and values.
    """
    from transformers.cache_utils import DynamicLayer

    core = core_of(model)
    out = family.body(core)(**prompt, use_cache=True)
    layers = out.past_key_values.layers
    for layer in layers:
        if type(layer) is not DynamicLayer:
            raise TypeError(
                f"cache layer {type(layer).__name__}: shared prompts need layers that keep all keys and values"
            )
    mask = prompt["attention_mask"]
    prefix = Prefix.of([layer.keys for layer in layers], [layer.values for layer in layers], mask)
    return Prefill(out.last_hidden_state[:, -1], family.next_position(core, mask), prefix)
