"""recipes/kvasir-cpu.yaml: the stages on real photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cogalign.cli import main
from cogalign.data.caseset import read_case_set
from cogalign.recipe_file import read_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "kvasir-cpu.yaml"
# A few photographs of each finding and a step or two of each stage: whether it runs, not what it learns.
SHORT = {
    "segmenter.epochs": 1,
    "segmenter.side": 64,
    "counterfactual.quality.side": 64,
    "counterfactual.quality.max_residual_segmenter": "null",  # after one epoch it is no judge
    "counterfactual.quality.bootstrap": 50,
    "sft.steps": 2,
    "sft.batch_size": 4,
    "sft.validation_limit": 2,
    "counterfactual.gallery": 4,
    "grpo.steps": 1,
    "grpo.prompts_per_step": 4,
    "grpo.num_generations": 2,
    "grpo.max_completion_length": 16,
    "evaluate.models": "[sft, aligned]",
    "evaluate.max_completion_length": 16,
    "evaluate.bootstrap": 50,
    "audit.models": "[sft, aligned]",
    "audit.max_completion_length": 16,
    "audit.bootstrap": 50,
    "audit.limit": 4,
    "tracking.wandb": "false",
}
LIMIT = 40
DATA_SETS = {"Kvasir-SEG", "HyperKvasir", "GastroVision", "Kvasir v2"}


def test_asks_for_the_four_layouts_in_squares_of_one_size() -> None:
    data = read_recipe(RECIPE).data
    assert data.imports is not None
    assert {item.card: item.path for item in data.imports} == {
        "kvasir-seg": "Kvasir-SEG",
        "hyperkvasir": "hyper-kvasir",
        "gastrovision": "gastrovision",
        "kvasir-v2": "kvasir-dataset-v2",
    }
    assert (data.root, data.image_side) == ("../shared/realdata", 128)


def test_missing_photographs_are_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(RECIPE), "--data.root", str(tmp_path), "--out", str(tmp_path / "run")])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cogalign: error:")]
    assert code == 1
    assert len(errors) == 1 and "data.imports.path" in errors[0] and "Kvasir-SEG" in errors[0]


@pytest.mark.slow
def test_runs_to_the_end_on_photographs(realdata: Path, tmp_path: Path) -> None:
    imports = [vars(item) | {"limit": LIMIT} for item in read_recipe(RECIPE).data.imports or []]
    overrides = {**SHORT, "data.root": realdata, "data.imports": json.dumps(imports), "out": tmp_path}
    words = [f"--{key}={value}" for key, value in overrides.items()]
    assert main(["run", str(RECIPE), *words]) == 0
    stages = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["stages"]
    assert {stage["status"] for stage in stages.values()} == {"finished"} and len(stages) == 8
    assert {case.dataset for case in read_case_set(tmp_path / "data").cases} == DATA_SETS
    made = stages["counterfactual"]["metrics"]["counts"]
    assert all(made[split][kind] > 0 for split in ("train", "test") for kind in ("removal", "control", "transplant"))
    assert stages["evaluate"]["metrics"]["models"]["aligned"]["test"]["n"] > 0
    assert stages["audit"]["metrics"]["models"]["aligned"]["removal_normal_rate_n"] > 0
    assert (tmp_path / "report.html").is_file() and (tmp_path / "export" / "model" / "config.json").is_file()
