"""How a process of a GRPO run talks to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among all, and what they do together; the defaults are those of a single one."""

    rank: int = 0
    world_size: int = 1
    sum: Callable[[Tensor], Tensor] = lambda values: values
    """Adds a tensor up over the ranks; the result is on its device."""
    gather: Callable[[Tensor], Tensor] = lambda values: values
    """[N, ...] of each rank to [world * N, ...]."""

    @classmethod
    def of(cls, module: LightningModule) -> Ranks:
        """The ranks of a module's trainer."""
        trainer = module.trainer
        if trainer.world_size == 1:
            return cls()

        def add(values: Tensor) -> Tensor:
            summed: Tensor = trainer.strategy.reduce(values.to(module.device), reduce_op="sum")
            return summed.to(values.device)

        def gather(values: Tensor) -> Tensor:
            gathered: Any = module.all_gather(values)
            return gathered.flatten(0, 1)

        return cls(module.global_rank, trainer.world_size, add, gather)

    def cut(self, count: int) -> range:
        """This rank's part of `count` things: contiguous, the parts' sizes differ by one at most."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def anyone(self, mine: bool) -> bool:
        """Whether it is true on any rank; all ranks call it."""
        return bool(self.sum(torch.tensor([float(mine)]))[0] > 0)
