"""DeepSpeed as far as a CPU allows: what it is told, and what is refused before a model is opened."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training.deepspeed import consolidate_zero, deepspeed_options, require_deepspeed
from cogalign.training.strategies import strategy_of

without = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")


def recipe(name: str) -> Recipe:
    return Recipe(trainer=TrainerSettings(strategy=name, devices=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [2, 3])
def test_lightning_knows_every_option(stage: int) -> None:
    known = inspect.signature(DeepSpeedStrategy.__init__).parameters
    options = deepspeed_options(f"deepspeed_{stage}", 4)
    assert options.keys() <= known.keys() and options["stage"] == stage
    assert (
        options["exclude_frozen_parameters"] and not options["offload_optimizer"] and not options["offload_parameters"]
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ValueError, match="found 'deepspeed_2' without an NVIDIA GPU, wanted ddp or fsdp2"):
        strategy_of(recipe("deepspeed_2"), "sft")


@pytest.mark.parametrize(
    ("name", "reason"), [("deepspeed_3", "gather every weight for every token"), ("deepspeed_2", "keeps the gradients")]
)
def test_grpo_under_it_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"for grpo, wanted fsdp2 or ddp: .*{reason}"):
        strategy_of(recipe(name), "grpo")


@without
def test_the_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cogalign\[deepspeed\]'"):
        require_deepspeed(recipe("deepspeed_3"), "sft", cuda=True)


@without
def test_its_checkpoints_need_the_package_too(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="deepspeed is not installed, which reads it"):
        consolidate_zero(tmp_path, tmp_path / "one.ckpt")
