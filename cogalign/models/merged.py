"""Cheaper passes through an adapter: folded into its base weights for a while, or added without extra copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def _linear(values: Tensor, *_: Any, weight: Tensor, bias: Tensor | None, **__: Any) -> Tensor:
    return functional.linear(values, weight, bias)


@contextmanager
def merged_adapter(model: Any) -> Iterator[int]:
    """Inside the block, without gradient, the model's active adapter is folded into copies of the weights.

    The weights themselves stay as they are, to the last bit. It is done for float32 weights only: in bfloat16 the sum
    is another model than the one that is trained. Layers that are no plain LoRA on `nn.Linear` go their own way.

    Yields:
        The number of layers that were folded.
    """
    folded = [part for part in model.modules() if _can_fold(part)] if hasattr(model, "peft_config") else []
    with torch.no_grad():
        for part in folded:
            base = part.get_base_layer()
            weight = base.weight + part.get_delta_weight(part.active_adapters[0])
            part.forward = partial(_linear, weight=weight, bias=base.bias)
    try:
        yield len(folded)
    finally:
        for part in folded:
            del part.forward


@contextmanager
def fused_adapter(model: Any) -> Iterator[int]:
    """Inside the block the active adapter's product is added to the base layer's in one step, with gradient.

    The same sum as PEFT's, y = W x + s B A x; PEFT writes the product, its multiple and the sum one after the other.
    Only plain float32 LoRA without dropout, outside of autocast; other layers go their own way.

    Yields:
        The number of layers that were fused.
    """
    parts = [part for part in model.modules() if _can_fold(part)] if hasattr(model, "peft_config") else []
    fused = (
        [] if torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu") else [p for p in parts if _no_dropout(p)]
    )
    for part in fused:
        name = part.active_adapters[0]
        part.forward = partial(
            _added, part.get_base_layer(), part.lora_A[name], part.lora_B[name], float(part.scaling[name])
        )
    try:
        yield len(fused)
    finally:
        for part in fused:
            del part.forward


def _added(
    base: Any, down: Any, up: Any, scaling: float, values: Tensor, *_: Any, **__: Any
) -> Tensor:
    flat = values.reshape(-1, values.shape[-1])
    out: Tensor = base(flat)
    out.addmm_(down(flat), up.weight.t(), alpha=scaling)
    return out.view(*values.shape[:-1], -1)


def _no_dropout(part: Any) -> bool:
    return all(isinstance(drop, nn.Identity) for drop in part.lora_dropout.values())


def _can_fold(part: Any) -> bool:
    """Whether it is a plain LoRA layer on float32 weights with one active adapter."""
    from peft.tuners.lora import Linear

    if type(part) is not Linear or part.disable_adapters or part.merged or len(part.active_adapters) != 1:
        return False
    name = part.active_adapters[0]
    base = part.get_base_layer()
    plain = name in part.lora_A and name not in part.lora_variant and not part.lora_bias.get(name, False)
    return plain and type(base) is nn.Linear and base.weight.dtype == torch.float32 and "forward" not in vars(part)
