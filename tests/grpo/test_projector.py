"""GRPO after a stage 1 that trained the projector beside an adapter: it stays as it is unless told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogalign.grpo.stage import prepare_model, run
from cogalign.models.adapt import add_lora, save_checkpoint
from cogalign.models.features import vision_is_frozen
from cogalign.models.load import load_model
from cogalign.models.whole_parts import trained_whole
from cogalign.recipe import (
    CustomReward,
    DataSettings,
    GrpoSettings,
    LoraSettings,
    MixSettings,
    ModelSettings,
    Recipe,
    TrackingSettings,
    TrainerSettings,
)
from cogalign.training.context import StageContext


def after_stage_1(base_folder: Path, phantom_set: Path, out: Path, projector: bool = True) -> tuple[Recipe, Path]:
    """A recipe, and the adapter of its stage 1, with or without a projector."""
    recipe = Recipe(
        out=str(out),
        model=ModelSettings(name=str(base_folder), dtype="float32"),
        data=DataSettings(case_set=str(phantom_set)),
        grpo=GrpoSettings(
            steps=1,
            prompts_per_step=3,
            num_generations=4,
            micro_batch=3,
            learning_rate=2e-3,
            max_completion_length=6,
            mix=MixSettings(),
            custom_rewards=[CustomReward("tests.grpo.longer.longer_reward")],
        ),
        trainer=TrainerSettings(accelerator="cpu", precision="32-true"),
        tracking=TrackingSettings(wandb=False, sample_every=0),
    )
    recipe.sft.freeze_projector = not projector
    loaded = load_model(recipe.model, device="cpu")
    loaded.model.requires_grad_(False)
    add_lora(loaded, LoraSettings(r=4), seed=2, freeze_projector=not projector)
    with torch.no_grad():
        for part in trained_whole(loaded.model):
            for parameter in part.parameters():
                parameter.add_(0.1)
    return recipe, save_checkpoint(loaded, out / "sft")


def changed(made: Path, out: Path) -> dict[str, float]:
    """Largest change of each of the adapter's tensors in stage 3; the same tensors are there."""
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (made, out / "grpo/adapter"))
    assert before.keys() == after.keys()
    changes = {name: float((values - after[name]).abs().max()) for name, values in before.items()}
    return {name: change for name, change in changes.items() if change}


def test_the_projector_stays_as_stage_1_left_it(base_folder: Path, phantom_set: Path, tmp_path: Path) -> None:
    recipe, made = after_stage_1(base_folder, phantom_set, tmp_path)
    context = StageContext(recipe, tmp_path, "grpo")
    assert vision_is_frozen(prepare_model(context))  # so each image is encoded once a generation
    run(context)
    found = changed(made, tmp_path)
    assert found and all("lora_" in name for name in found)
    assert any("lora_" not in name for name in load_file(made / "adapter_model.safetensors"))


def test_the_projector_is_trained_on_by_its_own_rate(base_folder: Path, phantom_set: Path, tmp_path: Path) -> None:
    recipe, made = after_stage_1(base_folder, phantom_set, tmp_path)
    recipe.grpo.freeze_projector, recipe.grpo.projector_learning_rate = False, 1e-4
    recipe.grpo.beta = 0.04  # the reference holds stage 1's projector, and gives the policy's back
    run(StageContext(recipe, tmp_path, "grpo"))
    found = changed(made, tmp_path)
    # Adam's first step moves what has a gradient by about the learning rate
    projector = [change for name, change in found.items() if "lora_" not in name]
    matrices = [change for name, change in found.items() if "lora_" in name]
    assert max(projector) == pytest.approx(1e-4, rel=0.05) and max(matrices) == pytest.approx(2e-3, rel=0.05)


def test_refuses_to_train_a_projector_that_the_adapter_does_not_hold(
    base_folder: Path, phantom_set: Path, tmp_path: Path
) -> None:
    recipe, _ = after_stage_1(base_folder, phantom_set, tmp_path, projector=False)
    recipe.grpo.freeze_projector = False
    with pytest.raises(ValueError, match=r"grpo\.freeze_projector: found false and an adapter of stage 1 without a"):
        prepare_model(StageContext(recipe, tmp_path, "grpo"))
