from pathlib import Path

import pytest

from cogalign.recipe import DataSettings, Recipe
from cogalign.training.context import StageContext


def test_folders_lie_in_the_run_folder(tmp_path: Path) -> None:
    context = StageContext(Recipe(), tmp_path, "grpo")
    assert context.folder == tmp_path / "grpo"
    assert context.case_set_dir == tmp_path / "data"
    assert context.counterfactual_dir == tmp_path / "counterfactual"


def test_a_given_case_set_is_used_where_it_lies(tmp_path: Path) -> None:
    recipe = Recipe(data=DataSettings(case_set=str(tmp_path / "mine")))
    assert StageContext(recipe, tmp_path / "run", "sft").case_set_dir == tmp_path / "mine"


def test_the_base_model_has_no_checkpoint(tmp_path: Path) -> None:
    assert StageContext(Recipe(), tmp_path, "evaluate").checkpoint("base") is None


@pytest.mark.parametrize(("role", "stage"), [("sft", "sft"), ("aligned", "grpo")])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_checkpoint_is_found_as_adapter_or_model(tmp_path: Path, role: str, stage: str, kind: str) -> None:
    (tmp_path / stage / kind).mkdir(parents=True)
    assert StageContext(Recipe(), tmp_path, "evaluate").checkpoint(role) == tmp_path / stage / kind


def test_a_missing_checkpoint_says_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"aligned.*run the stage grpo first"):
        StageContext(Recipe(), tmp_path, "export").checkpoint("aligned")


def test_an_unknown_role_names_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'best', wanted base, sft or aligned"):
        StageContext(Recipe(), tmp_path, "export").checkpoint("best")
