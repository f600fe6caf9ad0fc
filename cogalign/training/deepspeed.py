"""DeepSpeed's ZeRO stages 2 and 3: what it is told, when it is refused, and the way from its folders to one file."""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from cogalign.recipe import Recipe
from cogalign.training.checkpoint_content import META
from cogalign.training.heartbeat import connection_timeout
from cogalign.training.ranks import by_first

EXTRA = "pip install 'cogalign[deepspeed]'"


def require_deepspeed(recipe: Recipe, stage: str, cuda: bool) -> None:
    """Refuse what cannot work, before a model is opened.

    Args:
        recipe: `trainer.strategy` is deepspeed_2 or deepspeed_3.
        stage: sft, grpo or segmenter.
        cuda: whether the trainer takes an NVIDIA GPU.

    Raises:
        ValueError: the stage or the device does not go with it; says why and what to take.
        ModuleNotFoundError: the package is not installed.
    """
    name = recipe.trainer.strategy
    if stage == "grpo":
        raise ValueError(
            f"trainer.strategy: found {name!r} for grpo, wanted fsdp2 or ddp: {_why_not_grpo(name)}; "
            "sft may run under it: start grpo by itself with --trainer.strategy fsdp2"
        )
    if not cuda:
        raise ValueError(
            f"trainer.strategy: found {name!r} without an NVIDIA GPU, wanted ddp or fsdp2: Lightning's DeepSpeed "
            "needs CUDA; fsdp2 shards the same things and works on a CPU too"
        )
    if find_spec("deepspeed") is None:
        raise ModuleNotFoundError(f"trainer.strategy {name}: the package deepspeed is not installed; {EXTRA}")


def _why_not_grpo(name: str) -> str:
    """What stands against sampling and manual steps under a ZeRO stage."""
    if name == "deepspeed_3":
        return "sampling in this process would gather every weight for every token"
    return "its engine keeps the gradients of manual steps to itself, and grpo clips and judges them"


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy, whose folders also hold what all checkpoints of ours do: see `checkpoints`."""

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As Lightning, which divides the loss by the accumulated passes; so does the engine: once is enough."""
        assert isinstance(self.config, dict)
        loss: Tensor = super().backward(closure_loss * self.config["gradient_accumulation_steps"], *args, **kwargs)
        return loss

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: the engine writes it."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """The engine's own folder, and beside its parts the counters and random generators."""
        super().save_checkpoint(checkpoint, filepath, storage_options)
        rest = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        by_first(lambda: torch.save(rest, Path(filepath) / META))


def deepspeed_strategy(recipe: Recipe) -> Any:
    """ZeRO without offload, trained weights only in checkpoints.

    Clipping is the engine's (Lightning hands `gradient_clip_val` on), bfloat16 follows `trainer.precision`.
    """
    return ZeroStrategy(
        **deepspeed_options(recipe.trainer.strategy, recipe.sft.batch_size),
        timeout=timedelta(seconds=connection_timeout(recipe.trainer.timeout)),
    )


def deepspeed_options(name: str, batch_size: int) -> dict[str, Any]:
    """What Lightning's DeepSpeedStrategy is told for deepspeed_2 or deepspeed_3.

    The batch size is for its log only; left to itself, Lightning looks for a batch sampler, which not every loader has.
    """
    return {
        "stage": int(name[-1]),
        "logging_batch_size_per_gpu": batch_size,
        "offload_optimizer": False,
        "offload_parameters": False,
        "exclude_frozen_parameters": True,
        "overlap_comm": True,
        "contiguous_gradients": True,
    }


def consolidate_zero(folder: Path, file: Path) -> Path:
    """Write one file with whole float32 weights from a checkpoint folder of DeepSpeed, by rename.

    Args:
        folder: what a DeepSpeed strategy saved.
        file: Lightning's form, with `state_dict` by the LightningModule's names; the optimizer's state stays behind.

    Raises:
        ModuleNotFoundError: deepspeed is not installed.
    """
    from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    if find_spec("deepspeed") is None:
        raise ModuleNotFoundError(f"{folder}: the package deepspeed is not installed, which reads it; {EXTRA}")
    temporary = file.with_name(f".{file.name}.tmp")
    convert_zero_checkpoint_to_fp32_state_dict(str(folder), str(temporary))
    temporary.replace(file)
    return file
