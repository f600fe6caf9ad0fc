"""GRPO after a stage 1 that trained the projector beside an adapter: only the low-rank matrices move."""

from __future__ import annotations

from pathlib import Path

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


def test_the_projector_stays_as_stage_1_left_it(base_folder: Path, phantom_set: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        out=str(tmp_path),
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
    recipe.sft.freeze_projector = False
    loaded = load_model(recipe.model, device="cpu")
    loaded.model.requires_grad_(False)
    add_lora(loaded, LoraSettings(r=4), seed=2, freeze_projector=False)
    with torch.no_grad():
        for part in trained_whole(loaded.model):
            for parameter in part.parameters():
                parameter.add_(0.1)
    made = save_checkpoint(loaded, tmp_path / "sft")
    context = StageContext(recipe, tmp_path, "grpo")
    assert vision_is_frozen(prepare_model(context))  # so each image is encoded once a generation
    run(context)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (made, tmp_path / "grpo/adapter"))
    assert before.keys() == after.keys() and any("lora_" not in name for name in before)
    changed = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert changed and all("lora_" in name for name in changed)
