"""recipes/paper-2b.yaml, paper-4b.yaml, paper-8b.yaml: the paper's settings, and how far a machine without weights gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cogalign.cli import main
from cogalign.data.phantom import write_phantom
from cogalign.recipe import PhantomSettings, Recipe
from cogalign.recipe_file import read_recipe

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("2b", "4b", "8b")
ABSENT = "a-revision-that-no-cache-holds"

each_size = pytest.mark.parametrize("size", SIZES)


def path_of(size: str) -> Path:
    return ROOT / "recipes" / f"paper-{size}.yaml"


@pytest.fixture(scope="module")
def case_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(train=4, validation=2, test=2, size=64)
    return write_phantom(settings, tmp_path_factory.mktemp("cases"))


@each_size
def test_model_and_limits_are_the_papers(size: str) -> None:
    model, sft = read_recipe(path_of(size)).model, read_recipe(path_of(size)).sft
    assert model.name == f"Qwen/Qwen3-VL-{size.upper()}-Instruct"
    assert (model.max_pixels, model.dtype, sft.max_length) == (450_560, "bfloat16", 2048)


@each_size
def test_sft_settings_are_the_papers(size: str) -> None:
    recipe = read_recipe(path_of(size))
    sft = recipe.sft
    assert sft.lora is not None
    assert (sft.steps, sft.learning_rate, sft.lora.r, sft.lora.alpha) == (400, 1e-4, 16, 32)
    assert sft.freeze_vision and sft.freeze_projector
    assert sft.batch_size * sft.accumulate * int(recipe.trainer.devices) * recipe.trainer.num_nodes == 128


@each_size
def test_grpo_settings_are_the_papers(size: str) -> None:
    recipe = read_recipe(path_of(size))
    grpo = recipe.grpo
    assert (grpo.steps, grpo.learning_rate, grpo.beta, grpo.num_generations) == (200, 1e-6, 0.04, 8)
    assert grpo.prompts_per_step * grpo.num_generations == 256
    used = {name: weight for name, weight in vars(grpo.reward_weights).items() if weight != 0}
    assert used == {"format": 1.0, "cognition": 1.0, "diagnosis": 2.0} and grpo.custom_rewards == []
    assert (grpo.objective, grpo.scale_rewards, grpo.aggregation, grpo.kl) == ("grpo", "group", "sum", "k3")
    assert grpo.prompts_per_step % int(recipe.trainer.devices) == 0


@each_size
def test_grpo_sees_the_papers_counterfactuals_only(size: str) -> None:
    recipe = read_recipe(path_of(size))
    assert recipe.counterfactual.fill == "gaussian_blur"
    assert recipe.grpo.mix.removal > 0
    assert (recipe.grpo.mix.control, recipe.grpo.mix.transplant) == (0, 0)


def test_the_three_differ_only_in_the_model_and_in_how_a_batch_is_divided() -> None:
    def common(recipe: Recipe) -> Recipe:
        recipe.name = recipe.model.name = ""
        recipe.sft.batch_size = recipe.sft.accumulate = recipe.grpo.micro_batch = 0
        recipe.evaluate.batch_size = recipe.audit.batch_size = 0
        return recipe

    first, *others = (common(read_recipe(path_of(size))) for size in SIZES)
    assert all(other == first for other in others)


@each_size
def test_header_gives_the_papers_figures_as_the_papers(size: str) -> None:
    averages = {"2b": ("16.05", "54.49", "57.40"), "4b": ("30.03", "61.98", "64.05"), "8b": ("35.30", "66.31", "67.67")}
    text = path_of(size).read_text(encoding="utf-8")
    assert all(f"{value}\n" in text for value in averages[size])
    assert "The paper's own figures" in text and "not measured by us" in text


@pytest.mark.parametrize("size", SIZES[1:])
def test_runs_up_to_the_weights_and_names_the_model(
    size: str, case_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the tests are offline (conftest); the revision keeps a developer's own cache out
    arguments = ["--data.case_set", str(case_set), "--out", str(tmp_path), "--model.revision", ABSENT]
    assert main(["run", str(path_of(size)), *arguments]) == 1
    check_message(capsys.readouterr().err, size)
    check_stages(tmp_path)


def test_the_command_itself_ends_with_one_line_and_no_traceback(case_set: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cogalign", "run", str(path_of("2b")), "--data.case_set", str(case_set)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty-cache")}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    check_message(done.stderr, "2b")
    check_stages(tmp_path / "run")


def check_message(stderr: str, size: str) -> None:
    """One line of error that names the key, what was asked for, and what would do."""
    errors = [line for line in stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    assert errors[0].startswith(f"cogalign: error: model.name: 'Qwen/Qwen3-VL-{size.upper()}-Instruct'")
    assert "a folder in hub layout, or a hub id" in errors[0]


def check_stages(run_dir: Path) -> None:
    """The data were accepted, and stage 1 is marked as failed."""
    stages = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == {"data": "finished", "sft": "failed"}
    assert stages["data"]["metrics"]["cases"]["train"] == 4
