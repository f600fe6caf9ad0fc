"""Lightning's strategy of FSDP2 as all stages use it: one canonical checkpoint, or one that every rank writes its part of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from cogalign.training.checkpoint_content import canonical
from cogalign.training.consolidate import load_sharded, require_same, save_sharded, take_groups
from cogalign.training.sharding import average_whole, full, sharded_like


class Fsdp2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes, by transformer block.

    The LightningModule's `configure_model` calls `models.blocks.configure_sharding`. Gradients are means over the ranks
    after every backward pass, as with DDP.

    Args:
        processes: of all machines.
        sharded_checkpoints: every rank writes its part; else rank 0 writes one file that any strategy loads.
        timeout: seconds that a collective may take.
        backend: of the process group; None takes the device's own.
    """

    shards_blocks = True

    def __init__(self, processes: int, sharded_checkpoints: bool, timeout: float, backend: str | None) -> None:
        super().__init__(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=backend,
            timeout=timedelta(seconds=timeout),
        )
        self._loaded_parts = False

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def data_mesh(self) -> Any:
        """The mesh of all processes."""
        return self.device_mesh["data_parallel"]

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer is loaded by `load_optimizer_state_dict`."""
        return True

    def mixed_precision(self) -> MixedPrecisionPolicy:
        """Weights gathered in bfloat16 where the trainer computes in it; the reduction is in float32 always."""
        half = self.precision_plugin.precision == "bf16-mixed"
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )

    def setup_optimizers(self, trainer: Any) -> None:
        """As Lightning; updates go weight by weight where some are sharded and some are not."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            kinds = {isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"]}
            for group in optimizer.param_groups if len(kinds) > 1 else ():
                group["foreach"] = group["fused"] = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average what FSDP2 leaves alone."""
        super().post_backward(closure_loss)
        average_whole(self._module)

    # -- checkpoints ------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights: whole on rank 0 (nothing elsewhere), or this rank's parts."""
        trained = {canonical(n): p for n, p in self._module.named_parameters() if p.requires_grad}
        return {name: value for name, p in trained.items() if (value := self._written(p)) is not None}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state by parameter name, whole on rank 0 (nothing elsewhere), or this rank's parts."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        names = self._names()
        state = {}
        for p, values in optimizer.state.items():
            kept = {key: self._written(v) if isinstance(v, Tensor) else v for key, v in values.items()}
            state[names[id(p)]] = {key: value for key, value in kept.items() if value is not None}
        groups = [
            {**group, "params": [names[id(p)] for p in group["params"]], "foreach": None, "fused": None}
            for group in optimizer.param_groups
        ]
        here = self._save_distributed_checkpoint or self.is_global_zero
        return {"state": state, "param_groups": groups} if here else {}

    def _written(self, values: Tensor) -> Tensor | None:
        """What this rank puts into a checkpoint."""
        if self._save_distributed_checkpoint:
            return values.detach()
        whole = full(values)
        return whole if self.is_global_zero else None

    def _names(self) -> dict[int, str]:
        return {id(p): canonical(name) for name, p in self._module.named_parameters()}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """One file by rank 0, or a folder with every rank's part."""
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            save_sharded(checkpoint, path)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; of a sharded one this rank's parts go straight to where they belong."""
        path = Path(self.broadcast(checkpoint_path))
        self._loaded_parts = path.is_dir()
        if path.is_dir():
            return load_sharded(path, self._module, self.optimizers)
        return self.checkpoint_io.load_checkpoint(path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Cut whole weights into parts.

        Raises:
            ValueError: the checkpoint holds weights that are not here, or lacks trained ones.
        """
        if self._loaded_parts:
            return
        weights = {canonical(name): values for name, values in checkpoint["state_dict"].items()}
        here = {canonical(name): p for name, p in self._module.named_parameters()}
        require_same(set(weights), {name for name, p in here.items() if p.requires_grad}, set(here))
        with torch.no_grad():
            for name, values in weights.items():
                here[name].copy_(sharded_like(values, here[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut whole optimizer states into parts, by the parameters' names."""
        if self._loaded_parts:
            return
        here = {canonical(name): p for name, p in self._module.named_parameters()}
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            for name, values in saved["state"].items():
                p = here[canonical(name)]
                optimizer.state[p] = {key: _placed(value, p) for key, value in values.items()}
            take_groups(optimizer, saved["param_groups"])

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks."""
        if distributed.is_initialized():
            super().barrier(name)


def _placed(value: Any, like: Tensor) -> Any:
    """A part of an optimizer's state; what has the weight's shape is cut as the weight is."""
    if not isinstance(value, Tensor):
        return value
    return sharded_like(value, like) if value.shape == like.shape else value.clone()
