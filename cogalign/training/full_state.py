"""The whole weights of a model, whatever a strategy has done to them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from cogalign.training.ranks import is_first
from cogalign.training.sharding import full


def full_state(module: nn.Module, parts: Sequence[str] = ()) -> dict[str, Tensor] | None:
    """The state dict of a model with whole tensors on the CPU; None where its own state dict is whole.

    A collective under FSDP2 and DeepSpeed; ranks other than the first get an empty one. Weights have the type in which
    the optimizer keeps them, not that of computing.

    Args:
        module: the model.
        parts: only weights with one of these in their name: of an adapter's model all others need not be gathered.
            Empty: all.
    """
    gather = _gather_of(module)
    if gather is None:
        return None
    found: dict[str, Tensor] = {}
    for name, values in module.state_dict(keep_vars=True).items():
        if parts and not any(part in name for part in parts):
            continue
        whole = gather(values)
        if is_first():
            found[name] = whole
    return found


def _gather_of(module: nn.Module) -> Any:
    """How a weight becomes whole; None where all are."""
    if any(isinstance(part, FSDPModule) for part in module.modules()):
        return full
    if any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in module.parameters()):
        return _of_zero
    return None


def _of_zero(values: Tensor) -> Tensor:
    """A weight under DeepSpeed: a trained one as its optimizer keeps it, a frozen one as it is."""
    whole: Tensor
    if values.requires_grad:
        whole = import_module("deepspeed.utils").safe_get_full_fp32_param(values)
        return whole.detach().cpu()
    if not hasattr(values, "ds_id"):
        return values.detach().cpu()
    with import_module("deepspeed").zero.GatheredParameters([values]):
        return values.detach().cpu().clone()
