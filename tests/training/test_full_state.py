"""Whole weights of a sharded model, and of an adapter's model only the adapter's."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from cogalign.training import full_state as module
from cogalign.training.full_state import full_state
from cogalign.training.sharding import shard_blocks


class Block(nn.Module):
    """A layer and its adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.lora_A = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.lora_A(self.base(values))


def test_a_part_is_gathered_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        block = Block()
        model = nn.Sequential(block)
        before = {name: values.clone() for name, values in model.state_dict().items()}
        assert full_state(model) is None
        shard_blocks(model, [block], init_device_mesh("cpu", (1,)), MixedPrecisionPolicy())
        whole = full_state(model)
        assert whole is not None and whole.keys() == before.keys()
        assert all(torch.equal(values, before[name]) for name, values in whole.items())
        gathered = []
        monkeypatch.setattr(module, "full", lambda values: gathered.append(values.shape) or values.full_tensor())
        assert list(full_state(model, ("lora_",)) or {}) == ["0.lora_A.weight"] and gathered == [(2, 3)]
    finally:
        torch.distributed.destroy_process_group()
