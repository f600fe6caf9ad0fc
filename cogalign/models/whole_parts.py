"""Modules that an adapter holds whole beside its low-rank matrices (PEFT's `modules_to_save`): a trained projector.

They are float32 whatever the type of the base model, in training and in every model that is opened from an adapter:
what is evaluated is what was trained, to the last bit. Only an export rounds them, with all its other weights.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHORT = (torch.bfloat16, torch.float16)


def trained_whole(model: nn.Module, adapter: str = "default") -> list[nn.Module]:
    """The modules that an adapter of `model` holds whole; none where the model has no adapter."""
    return [wrapper.modules_to_save[adapter] for wrapper in _wrappers(model) if adapter in wrapper.modules_to_save]


def make_wide(model: nn.Module, adapter: str = "default") -> list[nn.Module]:
    """Bring the modules that an adapter holds whole to float32, and let them take values of any type; gives them."""
    parts = trained_whole(model, adapter)
    for part in parts:
        for values in (*part.parameters(), *part.buffers()):
            if values.dtype in SHORT:
                values.data = values.data.float()
        if _as_weights not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_as_weights)
    return parts


def open_wide(model: nn.Module, checkpoint: Path) -> None:
    """Read the modules that an opened adapter holds whole once more, as they were saved: PEFT has rounded them.

    Args:
        model: PEFT model, opened from `checkpoint`.
        checkpoint: the adapter's folder.
    """
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    if make_wide(model):
        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))


def copy_whole(model: nn.Module, source: str, target: str) -> None:
    """Give the adapter `target` frozen copies of the modules that `source` holds whole."""
    for wrapper in _wrappers(model):
        if source in wrapper.modules_to_save:
            wrapper.modules_to_save[target] = copy.deepcopy(wrapper.modules_to_save[source]).requires_grad_(False)


def as_base(parts: list[nn.Module], dtype: torch.dtype) -> None:
    """Make such modules ordinary parts of a model of one type (after a merge)."""
    for part in parts:
        part.to(dtype)
        for key in [key for key, hook in part._forward_pre_hooks.items() if hook is _as_weights]:
            del part._forward_pre_hooks[key]


def _wrappers(model: nn.Module) -> list[Any]:
    if not hasattr(model, "peft_config"):
        return []
    from peft.utils import ModulesToSaveWrapper

    return [part for part in model.modules() if isinstance(part, ModulesToSaveWrapper)]


def _as_weights(module: nn.Module, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a module in the type of its weights; the model casts what comes out itself."""
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in values)
