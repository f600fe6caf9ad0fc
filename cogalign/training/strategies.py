"""Strategies by name: how devices share the work of a stage, and which of it a strategy changes for the others.

- `auto`: one device by itself, several by `ddp`;
- `ddp`: every device holds all weights;
- `fsdp2`: the weights of transformer blocks are sharded (`sharding`);
- `deepspeed_2`, `deepspeed_3`: sft on NVIDIA GPUs (`deepspeed`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training import gradients, sharding
from cogalign.training.deepspeed import deepspeed_strategy, require_deepspeed
from cogalign.training.heartbeat import connection_timeout
from cogalign.training.progress import say

SHARED_OUT = ("sft", "grpo")
"""Stages whose model may be divided over devices."""


def strategy_of(recipe: Recipe, stage: str) -> Any:
    """Lightning's strategy, or its name, for a stage.

    Args:
        recipe: `trainer` is read.
        stage: its name; only sft and grpo have a model that may be shared out, the others take `ddp` or one device.

    Raises:
        ValueError: the strategy cannot work here; says why and what to take.
        ModuleNotFoundError: it needs a package that is not installed.
    """
    settings = recipe.trainer
    name, count, cuda = settings.strategy, devices_of(settings), uses_gpu(settings)
    if stage not in SHARED_OUT and name not in ("auto", "ddp"):
        if stage == "segmenter":
            say(f"note: segmenter: the net is too small to be shared out, so {'ddp' if count > 1 else 'one device'} is "
                f"taken instead of {name}")  # fmt: skip
        name = "auto"
    if name.startswith("deepspeed"):
        require_deepspeed(recipe, stage, cuda)
        return deepspeed_strategy(recipe)
    if name == "fsdp2":
        return _fsdp2(recipe, stage, count, cuda)
    if name == "auto" and count == 1:
        return "auto"
    return _ddp(settings, cuda)


def _fsdp2(recipe: Recipe, stage: str, count: int, cuda: bool) -> Any:
    from cogalign.training.fsdp import Fsdp2Strategy

    if count == 1:
        raise ValueError(
            "trainer.strategy: found 'fsdp2' with one device, wanted auto: there is nothing to shard; give "
            "trainer.devices or trainer.num_nodes of 2 or more"
        )
    settings = recipe.trainer
    return Fsdp2Strategy(
        count, settings.sharded_checkpoints, connection_timeout(settings.timeout), None if cuda else "gloo"
    )


def _ddp(settings: TrainerSettings, cuda: bool) -> Any:
    """DDP without a static graph: grpo runs several backward passes a step, and sft accumulates."""
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(
        process_group_backend=None if cuda else "gloo",
        timeout=timedelta(seconds=connection_timeout(settings.timeout)),
        gradient_as_bucket_view=True,
    )


def devices_of(settings: TrainerSettings) -> int:
    """Processes of all machines together."""
    if str(settings.devices).isdigit():
        here = int(settings.devices)
    else:
        here = torch.cuda.device_count() if uses_gpu(settings) else 1
    return here * settings.num_nodes


def uses_gpu(settings: TrainerSettings) -> bool:
    """Whether these settings take an NVIDIA GPU on this machine."""
    return settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def gathered(module: nn.Module) -> AbstractContextManager[None]:
    """Inside the block all weights are whole on each rank, and passes without gradient make no collective.

    Under fsdp2 all ranks enter and leave it together; inside, each runs as many passes as it likes. Under other
    strategies it does nothing.
    """
    return sharding.gathered(module)


def clip(module: nn.Module, max_norm: float) -> float:
    """Scale the trained parameters' gradients down to `max_norm`; returns their norm before it, over all ranks."""
    return gradients.clip(module, max_norm)


def gradient_norm(module: nn.Module) -> float:
    """2-norm of all gradients, over all ranks where they are sharded."""
    return gradients.gradient_norm(module)


def owns_gradients(trainer: Any) -> bool:
    """Whether the strategy keeps gradients to itself (DeepSpeed): they are neither scaled nor clipped by hand."""
    from lightning.pytorch.strategies import DeepSpeedStrategy

    return isinstance(trainer.strategy, DeepSpeedStrategy)
