"""Norm and clipping of gradients, some of which may be sharded."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor


def gradient_norm(module: nn.Module) -> float:
    """2-norm of all gradients of a module's parameters; a collective where some are sharded."""
    return float(_norm(_gradients(module)))


def clip(module: nn.Module, max_norm: float) -> float:
    """Scale the gradients down to a norm of `max_norm`, as torch's `clip_grad_norm_` does.

    Args:
        module: whose trained parameters' gradients are scaled.
        max_norm: largest 2-norm of all of them together.

    Returns:
        The norm before it; it may be infinite or not a number.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained if p.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return float(nn.utils.clip_grad_norm_(trained, max_norm))
    norm = _norm(gradients)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # torch's own, with its 1e-6
    for gradient in gradients:
        _local(gradient).mul_(factor)
    return float(norm)


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def _local(values: Tensor) -> Tensor:
    """This rank's part."""
    found: Tensor = values.to_local() if isinstance(values, DTensor) else values
    return found


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    """2-norm over the parts on all ranks: what is whole counts once."""
    gradients = list(gradients)
    parts = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    if not parts:
        return nn.utils.get_total_norm(whole)
    squares = _square([_local(gradient) for gradient in parts])
    distributed.all_reduce(squares)
    return (squares + _square(whole)).sqrt() if whole else squares.sqrt()


def _square(gradients: list[Tensor]) -> Tensor:
    """Square of the 2-norm of all together."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.stack(norms).square().sum()
