"""Cheaper passes through an adapter: folded into its base weights for a while, or added without extra copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 2**26
"""Bytes of a weight beyond which no copy in another order is made."""
PACKED_ROWS = 64
"""Rows for which bfloat16 weights are laid out; other numbers of rows get the same bits."""


def _product(values: Tensor, *_: Any, weight: Tensor, bias: Tensor | None, **__: Any) -> Tensor:
    """Values [..., in] times a weight [in, out]."""
    out = values @ weight
    return out if bias is None else out + bias


@contextmanager
def sampling_weights(model: Any, parts: Sequence[nn.Module]) -> Iterator[int]:
    """Inside the block, without gradient, linear layers compute with copies of their weights made for sampling.

    The model's active adapter is folded into float32 weights: one product a layer instead of three. In bfloat16 the sum
    would be another model than the one that is trained: there it is added as `fused_adapter` does. On a CPU the copies
    are stored in an order that products of few rows read faster ([in, out]; bfloat16 as oneDNN wants it, which gives the
    same bits); there also layers without an adapter get one. The weights themselves stay as they are, to the last bit.
    Layers that are neither `nn.Linear` nor plain LoRA on it go their own way.

    Args:
        model: the policy, for its active adapter.
        parts: language model and LM head.

    Yields:
        The number of layers that compute with copies.
    """
    layers: dict[int, Any] = {id(layer): layer for part in parts for layer in part.modules()}
    exact = not _is_autocast()  # under autocast the sum would be rounded to a short type
    adapted = [layer for layer in layers.values() if exact and hasattr(model, "peft_config") and _can_fuse(layer)]
    below = {id(inner) for layer in adapted for inner in layer.modules()}
    plain = [layer for key, layer in layers.items() if exact and key not in below and _can_copy(layer)]
    try:
        with torch.no_grad():
            for layer in adapted:
                layer.forward = _adapted_product(layer)
            for layer in plain:
                layer.forward = _base_product(layer)
        yield len(adapted) + len(plain)
    finally:
        for layer in (*adapted, *plain):
            vars(layer).pop("forward", None)


def _adapted_product(layer: Any) -> Callable[..., Tensor]:
    """A LoRA layer's product, without gradient."""
    base, name = layer.get_base_layer(), layer.active_adapters[0]
    down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
    if base.weight.dtype == torch.float32:
        weight = torch.addmm(base.weight.t(), down.t(), up.t(), alpha=scaling)
        return partial(_product, weight=weight, bias=base.bias)
    whole = _base_product(base) if _can_copy(base) else base
    return partial(_with_low_rank, whole, down.to(base.weight.dtype), up.to(base.weight.dtype), scaling)


def _base_product(layer: Any) -> Callable[..., Tensor]:
    """A linear layer's product with a copy of its weight."""
    if layer.weight.dtype != torch.bfloat16:
        return partial(_product, weight=_in_order(layer.weight), bias=layer.bias)
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_ROWS)
    return partial(_packed, weight, layer.bias)


def _packed(weight: Tensor, bias: Tensor | None, values: Tensor, *_: Any, **__: Any) -> Tensor:
    """Values [..., in] times a weight in oneDNN's order: to the bit as the layer's own product."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return out


def _is_autocast() -> bool:
    return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")


def _in_order(weight: Tensor) -> Tensor:
    """The weight as [in, out]."""
    return weight.t().contiguous() if weight.device.type == "cpu" else weight.t()


def _can_copy(layer: Any) -> bool:
    """Whether it is a linear layer that is faster with a copy of its weight."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or layer.weight.device.type != "cpu":
        return False
    short = layer.weight.dtype == torch.bfloat16
    return layer.weight.nbytes <= LARGEST and (not short or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


@contextmanager
def fused_adapter(model: Any) -> Iterator[int]:
    """Inside the block the active adapter's product is added to the base layer's in one step, with gradient.

    The same sum as PEFT's, y = W x + s B A x; PEFT writes the product, its multiple and the sum one after the other.
    Only plain LoRA without dropout, outside of autocast; other layers go their own way. On bfloat16 weights the adapter
    stays float32 and is rounded for the product, as under autocast; PEFT would compute it, and each sum, in float32.

    Yields:
        The number of layers that were fused.
    """
    skip = model in _NEVER or not hasattr(model, "peft_config") or _is_autocast()
    parts = [] if skip else _adapted(model)
    fused = [part for part in parts if _can_fuse(part) and _no_dropout(part)]
    try:
        for part in fused:
            name, base = part.active_adapters[0], part.get_base_layer()
            add = _added if base.weight.dtype == torch.float32 else _added_short
            part.forward = partial(add, base, part.lora_A[name], part.lora_B[name], float(part.scaling[name]))
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


def _added_short(base: Any, down: Any, up: Any, scaling: float, values: Tensor, *_: Any, **__: Any) -> Tensor:
    return _with_low_rank(base, down.weight.to(values.dtype), up.weight.to(values.dtype), scaling, values)


def _with_low_rank(base: Any, down: Tensor, up: Tensor, scaling: float, values: Tensor, *_: Any, **__: Any) -> Tensor:
    flat = values.reshape(-1, values.shape[-1])
    out: Tensor = base(flat)
    out.addmm_(functional.linear(flat, down), up.t(), alpha=scaling)
    return out.view(*values.shape[:-1], -1)


def _no_dropout(part: Any) -> bool:
    return all(isinstance(drop, nn.Identity) for drop in part.lora_dropout.values())


def _can_fuse(part: Any) -> bool:
    """Whether it is a plain LoRA layer on float32 or bfloat16 weights with one active adapter."""
    from peft.tuners.lora import Linear

    if type(part) is not Linear or part.disable_adapters or part.merged or len(part.active_adapters) != 1:
        return False
    name = part.active_adapters[0]
    base = part.get_base_layer()
    plain = name in part.lora_A and name not in part.lora_variant and not part.lora_bias.get(name, False)
    if not plain or type(base) is not nn.Linear or "forward" in vars(part):
        return False
    return base.weight.dtype in (torch.float32, torch.bfloat16)
