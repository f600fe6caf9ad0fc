"""Counterfactuals of the phantoms, for stage 1 with a mix."""

from pathlib import Path

import pytest

from cogalign.counterfactual.stage import run as make_counterfactuals
from cogalign.recipe import CounterfactualSettings, DataSettings, QualitySettings, Recipe, TrainerSettings
from cogalign.training.context import StageContext


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path) -> Path:
    """Folder of the stage `counterfactual` on `phantom_set`: removals and controls of `train`, removals of `test`."""
    out = tmp_path_factory.mktemp("pairs")
    settings = CounterfactualSettings(
        splits=["train", "test"],
        interventions=["removal", "control"],
        quality=QualitySettings(enabled=False),
        gallery=0,
    )
    recipe = Recipe(
        out=str(out), data=DataSettings(case_set=str(phantom_set)), counterfactual=settings,
        trainer=TrainerSettings(accelerator="cpu"),
    )  # fmt: skip
    make_counterfactuals(StageContext(recipe, out, "counterfactual"))
    return out / "counterfactual"
