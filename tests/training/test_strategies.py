"""Which strategy a recipe gets, and what is refused with what reason; norms and clipping in one process."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training import strategies
from cogalign.training.fsdp import Fsdp2Strategy
from cogalign.training.strategies import clip, devices_of, gathered, gradient_norm, strategy_of


def recipe(**settings: Any) -> Recipe:
    return Recipe(trainer=TrainerSettings(**({"accelerator": "cpu"} | settings)))


def test_one_device_needs_no_strategy() -> None:
    assert strategy_of(recipe(), "sft") == "auto"
    assert strategy_of(recipe(devices=1), "grpo") == "auto"


@pytest.mark.parametrize(
    "settings", [{"devices": 2}, {"devices": 1, "num_nodes": 2}, {"strategy": "ddp", "devices": 2}]
)
def test_several_devices_are_ddp_over_gloo_with_the_recipes_time_out(settings: dict[str, Any]) -> None:
    found = strategy_of(recipe(timeout=777.0, **settings), "sft")
    assert type(found) is DDPStrategy and found._timeout == timedelta(seconds=837)
    assert found.process_group_backend == "gloo" and found._ddp_kwargs["gradient_as_bucket_view"]


def test_fsdp2_spans_all_devices_of_all_machines() -> None:
    found = strategy_of(recipe(strategy="fsdp2", devices=2, num_nodes=3, timeout=5.0, sharded_checkpoints=True), "grpo")
    assert isinstance(found, Fsdp2Strategy)
    assert (found._data_parallel_size, found._tensor_parallel_size) == (6, 1)
    assert found._save_distributed_checkpoint and found._timeout == timedelta(seconds=600)
    assert not strategy_of(recipe(strategy="fsdp2", devices=2), "sft")._save_distributed_checkpoint


def test_fsdp2_on_one_device_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("trainer.strategy: found 'fsdp2' with one device, wanted auto")):
        strategy_of(recipe(strategy="fsdp2", devices=1), "sft")


@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_3"])
def test_the_segmenter_takes_ddp_with_a_note(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(strategy_of(recipe(strategy=name, devices=2), "segmenter"), DDPStrategy)
    assert f"ddp is taken instead of {name}" in " ".join("".join(capsys.readouterr()).split())
    assert strategy_of(recipe(strategy=name, devices=1), "segmenter") == "auto"


def test_stages_without_a_model_to_share_out_take_ddp_and_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(strategy_of(recipe(strategy="fsdp2", devices=2), ""), DDPStrategy)
    assert strategy_of(recipe(strategy="deepspeed_3", devices=1), "counterfactual") == "auto"
    assert "".join(capsys.readouterr()) == ""


def test_devices_left_open_are_one_on_a_cpu() -> None:
    assert devices_of(TrainerSettings(accelerator="cpu", num_nodes=2)) == 2


def two() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for number, p in enumerate(module.parameters()):
        p.grad = torch.full_like(p, number + 1.0)
    module[1].bias.grad = None
    return module


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_without_shards_clipping_is_torchs_to_the_last_bit(limit: float) -> None:
    ours, theirs = two(), two()
    norm = clip(ours, limit)
    assert norm == float(nn.utils.clip_grad_norm_(theirs.parameters(), limit)) == gradient_norm(two())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is None if other.grad is None else torch.equal(mine.grad, other.grad)


def test_a_gradient_that_is_not_finite_has_such_a_norm() -> None:
    module = two()
    module[0].bias.grad.fill_(float("inf"))
    assert not torch.isfinite(torch.tensor(clip(module, 1.0)))


def test_gathering_does_nothing_where_all_is_whole() -> None:
    module = two()
    before = [p.data_ptr() for p in module.parameters()]
    with gathered(module):
        assert [p.data_ptr() for p in module.parameters()] == before


def test_other_strategies_leave_gradients_to_the_module() -> None:
    trainer = type("Trainer", (), {"strategy": strategy_of(recipe(devices=2), "sft")})
    assert not strategies.owns_gradients(trainer)
