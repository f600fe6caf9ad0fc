"""What a checkpoint holds, in one form for any number of ranks and any strategy.

- `state_dict`: the trainable weights as full tensors, by their names in the LightningModule. A module leaves out the
  frozen ones and allows for that when it is loaded::

      class Module(LightningModule):
          def __init__(self):
              super().__init__()
              self.strict_loading = False  # the frozen weights are not in the checkpoint

          def on_save_checkpoint(self, checkpoint):
              keep_trainable(checkpoint, self)

- `optimizer_states`: a list with one state an optimizer, `{"state": {name: {"step", "exp_avg", ...}},
  "param_groups": [{"params": [names], "lr", ...}]}`: full tensors by the parameters' names, in the form of
  `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict(full_state_dict=True)`.
- `cogalign_step`: optimizer steps done; the data module's state: samples over all ranks; `callbacks`: the random
  generators of every rank; Lightning's loops and schedules; `wandb_id`; what a module adds itself, as tensors and
  plain values: checkpoints are read with `weights_only=True`.

Names are those without the prefixes that `torch.compile` and activation checkpointing put in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

STEP = "cogalign_step"
META = "meta.pt"
"""In a checkpoint that is a folder: all of it but weights and optimizer states (Lightning's name)."""
WANTED = (STEP, "state_dict", "optimizer_states", "loops")
"""Without these a file is no checkpoint of ours."""
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def canonical(name: str) -> str:
    """A parameter's name without what wrappers put in between."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def trainable_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a module that require a gradient, by their names in its state dict."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def keep_trainable(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Leave only trainable weights in a Lightning checkpoint's `state_dict` (in place).

    Args:
        checkpoint: what Lightning hands to `on_save_checkpoint`.
        module: the LightningModule.
    """
    names = {canonical(name) for name, parameter in module.named_parameters() if parameter.requires_grad}
    weights = {canonical(name): value for name, value in checkpoint["state_dict"].items()}
    checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in names}


def restored_names(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Give the weights of a checkpoint the names that they have in this module (in place): see `canonical`."""
    here = {canonical(name): name for name, _ in module.named_parameters()}
    weights = checkpoint.get("state_dict")
    if isinstance(weights, dict):
        checkpoint["state_dict"] = {here.get(name, name): value for name, value in weights.items()}


def name_optimizers(checkpoint: dict[str, Any], module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Key the optimizer states of a Lightning checkpoint by parameter name (in place).

    A strategy that gathers full tensors may have named them itself; on the ranks that hold none they are empty.

    Args:
        checkpoint: what Lightning hands to `on_save_checkpoint`.
        module: the LightningModule.
        optimizers: in the order of `checkpoint["optimizer_states"]`.
    """
    states = checkpoint.get("optimizer_states", [])
    checkpoint["optimizer_states"] = [
        _named(state, module, optimizer) if state else state
        for state, optimizer in zip(states, optimizers, strict=True)
    ]


def load_by_name(optimizer: Optimizer, module: nn.Module) -> None:
    """Let an optimizer load states that are keyed by name, in whatever order they come.

    Raises (when a state is loaded):
        ValueError: its parameters are not those of the optimizer; names one of them.
    """
    names = _names(module)

    def reorder(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        saved = [name for group in state["param_groups"] for name in group["params"]]
        if not saved or not isinstance(saved[0], str):
            return None
        wanted = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        return in_order(state, wanted)

    optimizer.register_load_state_dict_pre_hook(reorder)


def in_order(state: Mapping[str, Any], wanted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A named optimizer state with its groups' parameters in another order.

    Args:
        state: of an optimizer, keyed by name.
        wanted: names of every group of the optimizer that takes the state.

    Raises:
        ValueError: other groups, or other parameters in a group.
    """
    groups = state["param_groups"]
    if len(groups) != len(wanted):
        raise ValueError(f"the checkpoint's optimizer has {len(groups)} groups of parameters, this one {len(wanted)}")
    for group, names in zip(groups, wanted, strict=True):
        strange = sorted({canonical(name) for name in group["params"]} ^ set(names))
        if strange:
            raise ValueError(
                f"the checkpoint's optimizer has {len(group['params'])} parameters and this one {len(names)}; "
                f"{strange[0]} is in one of them only: was another model or LoRA trained in this folder?"
            )
    return {
        **state,
        "state": {canonical(name): value for name, value in state["state"].items()},
        "param_groups": [{**group, "params": list(names)} for group, names in zip(groups, wanted, strict=True)],
    }


def _named(state: Mapping[str, Any], module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    names = _names(module)
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    here = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    if numbers and isinstance(numbers[0], str):
        of = {name: canonical(name) for name in numbers}
    else:
        of = dict(zip(numbers, here, strict=True))
    return {
        "state": {of[number]: value for number, value in state["state"].items()},
        "param_groups": [{**group, "params": [of[n] for n in group["params"]]} for group in state["param_groups"]],
    }


def _names(module: nn.Module) -> dict[int, str]:
    """Canonical names of a module's parameters by their identity; of one that is used twice the first."""
    return {id(parameter): canonical(name) for name, parameter in module.named_parameters()}
