"""recipes/smol-kvasir.yaml and studies/smol-kvasir.yaml: a small real model on photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cogalign.cli import main
from cogalign.data.caseset import read_case_set
from cogalign.recipe_file import read_recipe
from cogalign.study.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "smol-kvasir.yaml"
STUDY = ROOT / "studies" / "smol-kvasir.yaml"
# A few photographs of each finding, a random model of the same classes, a step or two of each stage.
SHORT = {
    "data.image_side": 64,
    "counterfactual.quality.side": 64,
    "counterfactual.quality.bootstrap": 50,
    "counterfactual.gallery": 4,
    "counterfactual.workers": 0,
    "sft.steps": 2,
    "sft.batch_size": 4,
    "sft.validation_limit": 2,
    "grpo.steps": 1,
    "grpo.prompts_per_step": 4,
    "grpo.micro_batch": 4,
    "grpo.num_generations": 2,
    "grpo.max_completion_length": 16,
    "evaluate.max_completion_length": 16,
    "evaluate.bootstrap": 50,
    "audit.max_completion_length": 16,
    "audit.bootstrap": 50,
    "audit.limit": 4,
    "trainer.compile": "false",
    "tracking.wandb": "false",
}
LIMIT = 30


def test_no_case_of_the_held_out_data_set_is_trained_on() -> None:
    imports = read_recipe(RECIPE).data.imports or []
    assert {item.path: item.split for item in imports} == {
        "Kvasir-SEG": None,
        "hyper-kvasir": None,
        "kvasir-dataset-v2": None,
        "gastrovision": "cross_source",
    }
    assert "cross_source" in read_recipe(RECIPE).evaluate.splits


def test_all_arms_of_the_study_but_the_first_have_as_many_optimizer_steps() -> None:
    plan = make_plan(STUDY, None, {})
    runs = [run for run in plan.runs if run.arm is not None]
    steps = {run.arm: run.total for run in runs}
    assert set(steps) == {
        "sft", "sft_longer", "sft_counterfactual", "grpo_factual", "grpo_removal", "grpo_ours",
    }  # fmt: skip
    assert len({value for arm, value in steps.items() if arm != "sft"}) == 1
    assert {run.seed for run in runs} == {1, 2}


@pytest.mark.slow
def test_runs_to_the_end_on_photographs(realdata: Path, tmp_path: Path) -> None:
    assert main(["models", "assemble", "tiny-smol", str(tmp_path / "model")]) == 0
    imports = [vars(item) | {"limit": LIMIT} for item in read_recipe(RECIPE).data.imports or []]
    overrides = {
        **SHORT,
        "model.name": tmp_path / "model",
        "data.root": realdata,
        "data.imports": json.dumps(imports),
        "out": tmp_path / "run",
    }
    assert main(["run", str(RECIPE), *(f"--{key}={value}" for key, value in overrides.items())]) == 0
    stages = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["stages"]
    assert {stage["status"] for stage in stages.values()} == {"finished"} and len(stages) == 7
    cases = read_case_set(tmp_path / "run" / "data").cases
    assert {case.split for case in cases if case.dataset == "GastroVision"} == {"cross_source"}
    judged = stages["evaluate"]["metrics"]["models"]["aligned"]
    assert judged["cross_source"]["n"] > 0 and judged["test"]["n"] > 0
    assert stages["audit"]["metrics"]["models"]["aligned"]["background_blur_keep_rate_n"] > 0
    adapter = json.loads((tmp_path / "run" / "sft" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["modules_to_save"]
    assert (tmp_path / "run" / "export" / "model" / "config.json").is_file()
