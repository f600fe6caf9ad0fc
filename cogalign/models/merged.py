"""Cheaper passes through an adapter: folded into its base weights for a while, or added without extra copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

LARGEST = 2**24
"""Numbers in a weight beyond which no copy in another order is made."""


def _product(values: Tensor, *_: Any, weight: Tensor, bias: Tensor | None, **__: Any) -> Tensor:
    """Values [..., in] times a weight [in, out]."""
    out = values @ weight
    return out if bias is None else out + bias


@contextmanager
def sampling_weights(model: Any, parts: Sequence[nn.Module]) -> Iterator[int]:
    """Inside the block, without gradient, linear layers compute with copies of their weights made for sampling.

    The model's active adapter is folded in: one product a layer instead of three. It is done for float32 weights only:
    in bfloat16 the sum is another model than the one that is trained. On a CPU the copies are stored [in, out], which
    products of few rows read faster; there also layers without an adapter get one. The weights themselves stay as they
    are, to the last bit. Layers that are neither `nn.Linear` nor plain LoRA on it go their own way.

    Args:
        model: the policy, for its active adapter.
        parts: language model and LM head.

    Yields:
        The number of layers that compute with copies.
    """
    layers: dict[int, Any] = {id(layer): layer for part in parts for layer in part.modules()}
    exact = not _is_autocast()  # under autocast the sum would be rounded to a short type
    folded = [layer for layer in layers.values() if exact and hasattr(model, "peft_config") and _can_fold(layer)]
    below = {id(inner) for layer in folded for inner in layer.modules()}
    plain = [layer for key, layer in layers.items() if exact and key not in below and _can_copy(layer)]
    try:
        with torch.no_grad():
            for layer in folded:
                base, name = layer.get_base_layer(), layer.active_adapters[0]
                down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
                weight = torch.addmm(base.weight.t(), down.t(), up.t(), alpha=float(layer.scaling[name]))
                layer.forward = partial(_product, weight=weight, bias=base.bias)
            for layer in plain:
                layer.forward = partial(_product, weight=_in_order(layer.weight), bias=layer.bias)
        yield len(folded) + len(plain)
    finally:
        for layer in (*folded, *plain):
            vars(layer).pop("forward", None)


def _is_autocast() -> bool:
    return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")


def _in_order(weight: Tensor) -> Tensor:
    """The weight as [in, out]."""
    return weight.t().contiguous() if weight.device.type == "cpu" else weight.t()


def _can_copy(layer: Any) -> bool:
    """Whether it is a linear layer that is faster with a copy of its weight."""
    fits = type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.numel() <= LARGEST
    return fits and "forward" not in vars(layer)


@contextmanager
def fused_adapter(model: Any) -> Iterator[int]:
    """Inside the block the active adapter's product is added to the base layer's in one step, with gradient.

    The same sum as PEFT's, y = W x + s B A x; PEFT writes the product, its multiple and the sum one after the other.
    Only plain float32 LoRA without dropout, outside of autocast; other layers go their own way.

    Yields:
        The number of layers that were fused.
    """
    skip = model in _NEVER or not hasattr(model, "peft_config") or _is_autocast()
    parts = [] if skip else _adapted(model)
    fused = [part for part in parts if _can_fold(part) and _no_dropout(part)]
    try:
        for part in fused:
            name = part.active_adapters[0]
            part.forward = partial(
                _added, part.get_base_layer(), part.lora_A[name], part.lora_B[name], float(part.scaling[name])
            )
        yield len(fused)
    finally:
        for part in fused:
            vars(part).pop("forward", None)


_KNOWN: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
_NEVER: WeakSet[nn.Module] = WeakSet()


def never_fuse(model: nn.Module) -> None:
    """Leave this model's adapter to `torch.compile`: it would compile anew for every part that is patched in."""
    _NEVER.add(model)


def _adapted(model: nn.Module) -> list[Any]:
    """The layers of `model` that hold adapters; adapters that are added later are in the same layers."""
    if model not in _KNOWN:
        _KNOWN[model] = [part for part in model.modules() if hasattr(part, "lora_A")]
    return _KNOWN[model]


def _added(base: Any, down: Any, up: Any, scaling: float, values: Tensor, *_: Any, **__: Any) -> Tensor:
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
