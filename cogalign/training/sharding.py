"""FSDP2 by transformer block: blocks are sharded over the devices, what lies outside of them is whole on each.

A gradient of a sharded weight is averaged by FSDP2 in the backward pass; that of a whole one by `average_whole`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether a module is sharded, so that its forward must run on all ranks alike."""
    return isinstance(module, FSDPModule)


def shard_blocks(root: nn.Module, blocks: Sequence[nn.Module], mesh: Any, policy: MixedPrecisionPolicy) -> None:
    """Shard the weights of blocks; `root` calls them and only orders their collectives.

    Args:
        root: runs all blocks in its forward.
        blocks: in the order in which they run.
        mesh: the device mesh, of one dimension.
        policy: types of the gathered weights and of the reduction.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    inside = {id(p) for block in blocks for p in block.parameters()}
    outside = {p for p in root.parameters() if id(p) not in inside}
    fully_shard(root, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=outside)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside the block the weights are whole on each rank, and no pass without gradient makes a collective.

    They are gathered once at the beginning, so ranks may run any number of passes of any length. All ranks enter and
    leave together. They must not be changed inside. Without FSDP2 it does nothing.

    Args:
        module: the LightningModule, or any module around the sharded ones.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The trained parameters that every rank holds whole, in the order of their names."""
    return [p for _, p in sorted(module.named_parameters()) if p.requires_grad and not isinstance(p, DTensor)]


def average_whole(module: nn.Module) -> None:
    """Average the gradients of whole parameters over the ranks; to be called after every backward pass.

    What earlier passes have left in them is equal on all ranks already, and averaging does not change it. A parameter
    that had no part on one rank counts as 0 there; one without a part on any rank keeps no gradient.
    """
    parameters = whole_parameters(module)
    if not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    distributed.all_reduce(present, distributed.ReduceOp.MAX)
    for parameter in (p for p, there in zip(parameters, present.tolist(), strict=True) if there):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()


def full(values: Tensor) -> Tensor:
    """A tensor that may be sharded, as a whole on the CPU of each rank; a collective where it is sharded."""
    values = values.detach()
    whole: Tensor = values.full_tensor() if isinstance(values, DTensor) else values
    return whole.cpu()


def sharded_like(values: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut and placed as `like` is; no collective."""
    values = values.to(like.device)
    if not isinstance(like, DTensor):
        return values
    found: Tensor = distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)
    return found
