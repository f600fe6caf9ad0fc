"""A run of which the first two stages are done: a case set, its counterfactuals, and an SFT adapter."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from cogalign.counterfactual.stage import run as make_counterfactuals
from cogalign.models.adapt import add_lora, save_checkpoint
from cogalign.models.load import LoadedModel
from cogalign.recipe import CounterfactualSettings, DataSettings, LoraSettings, Recipe, TrainerSettings
from cogalign.training.context import StageContext


@pytest.fixture(scope="session")
def counterfactuals(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path) -> Path:
    """Folder of the stage `counterfactual` on `phantom_set`."""
    out = tmp_path_factory.mktemp("grpo")
    settings = CounterfactualSettings(
        splits=["train"], interventions=["removal", "control", "transplant"], fill="surround_blur", gallery=0
    )
    recipe = Recipe(
        out=str(out),
        data=DataSettings(case_set=str(phantom_set)),
        counterfactual=settings,
        trainer=TrainerSettings(accelerator="cpu"),
    )
    make_counterfactuals(StageContext(recipe, out, "counterfactual"))
    return out / "counterfactual"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tiny: LoadedModel) -> Path:
    """The weights of `tiny` as a folder in hub layout, a base for runs."""
    folder = tmp_path_factory.mktemp("base")
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sft_folder(tmp_path_factory: pytest.TempPathFactory, tiny: LoadedModel) -> Path:
    """Folder of a stage `sft` with an adapter that is not zero."""
    import torch

    loaded = add_lora(LoadedModel(copy.deepcopy(tiny.model), tiny.processor, tiny.family), LoraSettings(r=4), seed=2)
    generator = torch.Generator().manual_seed(6)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return save_checkpoint(loaded, tmp_path_factory.mktemp("sft")).parent
