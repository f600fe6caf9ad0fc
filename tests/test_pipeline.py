"""The pipeline: what is skipped, resumed and run again, and what the run folder says."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cogalign import pipeline
from cogalign.pipeline import inputs_of, run_recipe
from cogalign.recipe import (
    AuditSet,
    DataSettings,
    ExportSettings,
    GrpoSettings,
    MixSettings,
    PhantomSettings,
    Recipe,
    SftSettings,
)
from cogalign.training.context import StageContext
from cogalign.training.interrupt import Interrupted
from cogalign.training.stage_file import read_stage_file

ALL = ["data", "sft", "counterfactual", "grpo", "evaluate", "audit", "export"]


class Stages:
    """Stands in for the stage functions: writes a file, notes the call, and can be told to fail once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, BaseException] = {}

    def function(self, stage: str) -> Callable[[StageContext], dict[str, Any]]:
        def run(context: StageContext) -> dict[str, Any]:
            self.calls.append(stage)
            context.folder.mkdir(parents=True, exist_ok=True)
            (context.folder / "work").write_text((_read(context.folder / "work")) + "x")
            if stage in self.errors:
                raise self.errors.pop(stage)
            return {"calls": len(self.calls)}

        return run


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    found = Stages()
    monkeypatch.setattr(pipeline, "_function_of", found.function)
    monkeypatch.setattr(pipeline, "_prepare_data", found.function("data"))
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        name="piped", out=str(tmp_path / "run"), data=DataSettings(phantom=PhantomSettings(train=4)),
        grpo=GrpoSettings(mix=MixSettings(removal=1)),
    )  # fmt: skip


def status(recipe: Recipe, stage: str) -> str | None:
    found = read_stage_file(recipe.run_dir / stage)
    return found.status if found else None


def test_all_stages_run_in_order_and_the_summary_tells_of_them(recipe: Recipe, stages: Stages) -> None:
    summary = run_recipe(recipe)
    assert stages.calls == ALL
    assert json.loads((recipe.run_dir / "summary.json").read_text()) == summary
    assert summary["recipe"] == "piped"
    assert summary["stages"]["grpo"]["status"] == "finished"
    assert summary["stages"]["grpo"]["metrics"] == {"calls": 4}
    assert yaml.safe_load((recipe.run_dir / "recipe.yaml").read_text())["data"]["phantom"]["train"] == 4


def test_a_job_keeps_the_recipe_that_was_submitted(
    recipe: Recipe, stages: Stages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submitted = recipe.run_dir / "slurm" / "recipe.yaml"
    submitted.parent.mkdir(parents=True)
    submitted.write_text("name: submitted\n")
    monkeypatch.setenv("COGALIGN_REQUEUE_FILE", str(tmp_path / "sft.1.requeue"))
    run_recipe(recipe, ["sft"])
    assert (recipe.run_dir / "recipe.yaml").read_text() == "name: submitted\n"
    monkeypatch.delenv("COGALIGN_REQUEUE_FILE")
    run_recipe(recipe, ["sft"])
    assert yaml.safe_load((recipe.run_dir / "recipe.yaml").read_text())["name"] == "piped"


def test_no_stages_are_the_data_alone_and_force_makes_them_again(recipe: Recipe, stages: Stages) -> None:
    run_recipe(recipe, [])
    run_recipe(recipe, [])
    assert stages.calls == ["data"]
    run_recipe(recipe, [], force=True)
    assert stages.calls == ["data", "data"]


def test_a_second_run_skips_everything_and_says_so(
    recipe: Recipe, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe)
    before = {stage: (recipe.run_dir / stage / "stage.json").read_bytes() for stage in ALL}
    capsys.readouterr()
    run_recipe(recipe)
    assert stages.calls == ALL
    said = capsys.readouterr().err
    assert all(f"{stage}: finished before, skipped" in said for stage in ALL)
    assert {stage: (recipe.run_dir / stage / "stage.json").read_bytes() for stage in ALL} == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"sft": SftSettings(steps=7)}, ["sft", "grpo", "evaluate", "audit", "export"]),
        ({"data": DataSettings(phantom=PhantomSettings(train=5))}, ALL),
        ({"seed": 2}, ["sft", "grpo", "evaluate", "audit", "export"]),
        ({"export": ExportSettings(tolerance=0.5)}, ["export"]),
        ({"sft": SftSettings(workers=2, checkpoint_every=3)}, []),
    ],
)
def test_a_changed_setting_runs_its_stage_and_all_that_depend_on_it(
    recipe: Recipe, stages: Stages, change: dict[str, Any], again: list[str]
) -> None:
    run_recipe(recipe)
    stages.calls.clear()
    run_recipe(replace(recipe, **change))
    assert stages.calls == again


def test_results_of_other_settings_are_moved_aside_not_lost(
    recipe: Recipe, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe)
    (recipe.run_dir / "export" / "model").write_text("precious")
    run_recipe(replace(recipe, export=ExportSettings(tolerance=0.5)))
    assert (recipe.run_dir / "export.replaced" / "model").read_text() == "precious"
    assert not (recipe.run_dir / "export" / "model").exists()
    assert "export: made with other settings or inputs" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("bad mask"), Interrupted("SIGTERM"), KeyboardInterrupt()])
def test_a_stopped_stage_goes_on_and_finished_ones_are_kept(
    recipe: Recipe, stages: Stages, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.errors["grpo"] = error
    with pytest.raises(type(error)):
        run_recipe(recipe)
    expected = "failed" if isinstance(error, ValueError) else "interrupted"
    assert status(recipe, "grpo") == expected
    assert json.loads((recipe.run_dir / "summary.json").read_text())["stages"]["grpo"]["status"] == expected
    assert status(recipe, "counterfactual") == "finished"
    stages.calls.clear()
    run_recipe(recipe)
    assert stages.calls == ["grpo", "evaluate", "audit", "export"]
    assert f"grpo: not finished ({expected}), going on" in capsys.readouterr().err
    assert (recipe.run_dir / "grpo" / "work").read_text() == "xx"
    found = read_stage_file(recipe.run_dir / "grpo")
    assert found is not None
    assert found.resumed == 1


def test_an_unfinished_stage_of_other_settings_starts_anew(recipe: Recipe, stages: Stages) -> None:
    stages.errors["sft"] = Interrupted("SIGINT")
    with pytest.raises(Interrupted):
        run_recipe(recipe)
    run_recipe(replace(recipe, sft=SftSettings(steps=9)), stages=["sft"])
    assert (recipe.run_dir / "sft" / "work").read_text() == "x"


def test_force_runs_finished_stages_again(recipe: Recipe, stages: Stages) -> None:
    run_recipe(recipe)
    stages.calls.clear()
    run_recipe(recipe, stages=["evaluate"], force=True)
    assert stages.calls == ["evaluate"]
    stages.calls.clear()
    run_recipe(recipe, force=True)
    assert stages.calls == ALL


def test_a_single_stage_prepares_the_data_first(recipe: Recipe, stages: Stages) -> None:
    run_recipe(recipe, stages=["sft"])
    assert stages.calls == ["data", "sft"]


def test_counterfactuals_that_need_the_runs_segmenter_train_it_first(recipe: Recipe, stages: Stages) -> None:
    recipe.counterfactual.masks.segmenter = "run"
    run_recipe(recipe, ["counterfactual"])
    assert stages.calls == ["data", "segmenter", "counterfactual"]
    recipe.segmenter.epochs += 1
    run_recipe(recipe, ["counterfactual"], force=False)
    assert stages.calls[3:] == ["segmenter", "counterfactual"]
    run_recipe(recipe, ["counterfactual"], force=True)
    assert stages.calls[5:] == ["counterfactual"]


def test_limits_of_the_gate_and_the_gallery_run_the_stage_again_where_its_work_lies(
    recipe: Recipe, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe, ["counterfactual"])
    recipe.counterfactual.quality.max_seam = 1.0
    recipe.counterfactual.gallery = 3
    run_recipe(recipe, ["counterfactual"])
    assert stages.calls == ["data", "counterfactual", "counterfactual"]
    assert (recipe.run_dir / "counterfactual/work").read_text() == "xx"
    assert "its work is there" in capsys.readouterr().err
    assert not (recipe.run_dir / "counterfactual.replaced").exists()
    run_recipe(recipe, ["counterfactual"])
    assert len(stages.calls) == 3
    recipe.counterfactual.sigma = 0.7
    run_recipe(recipe, ["counterfactual"])
    assert (recipe.run_dir / "counterfactual/work").read_text() == "x"
    assert (recipe.run_dir / "counterfactual.replaced").exists()


@pytest.mark.parametrize("key", ["workers", "quality.batch_size", "masks.grounding.timeout"])
def test_settings_without_effect_leave_finished_counterfactuals_alone(recipe: Recipe, stages: Stages, key: str) -> None:
    run_recipe(recipe, ["counterfactual"])
    *sections, name = key.split(".")
    section: Any = recipe.counterfactual
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, getattr(section, name) + 1)
    run_recipe(recipe, ["counterfactual"])
    assert stages.calls == ["data", "counterfactual"]


def test_pairs_made_before_need_no_segmenter_and_count_by_their_content(
    recipe: Recipe, stages: Stages, tmp_path: Path
) -> None:
    (tmp_path / "pairs").mkdir()
    recipe.counterfactual.pairs, recipe.counterfactual.masks.segmenter = str(tmp_path / "pairs"), "run"
    for content in ("a", "a", "b"):
        (tmp_path / "pairs/metadata.jsonl").write_text(content)
        run_recipe(recipe, ["counterfactual"])
    assert stages.calls == ["data", "counterfactual", "counterfactual"]
    assert StageContext(recipe, recipe.run_dir, "grpo").counterfactual_dir == tmp_path / "pairs"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "made/adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text("a")
    return folder


AFTER_SFT = ["sft", "grpo", "evaluate", "audit", "export"]


@pytest.mark.parametrize("key", ["checkpoint", "start"])
def test_a_checkpoint_made_before_counts_by_its_content(
    recipe: Recipe, stages: Stages, checkpoint: Path, key: str
) -> None:
    setattr(recipe.sft, key, str(checkpoint))
    run_recipe(recipe)
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    setattr(recipe.sft, key, str(moved))
    stages.calls.clear()
    run_recipe(recipe)
    assert stages.calls == []
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (moved / name).write_text('{"changed": true}')
        stages.calls.clear()
        run_recipe(recipe)
        assert stages.calls == [stage for stage in ALL if stage in AFTER_SFT]


def test_with_a_checkpoint_made_before_the_training_s_settings_and_data_do_not_count(
    recipe: Recipe, stages: Stages, checkpoint: Path
) -> None:
    recipe.sft.checkpoint = str(checkpoint)
    run_recipe(recipe)
    stages.calls.clear()
    recipe.sft.steps, recipe.data.phantom = 7, PhantomSettings(train=5)
    run_recipe(recipe)
    assert stages.calls == [stage for stage in ALL if stage != "sft"]


def test_what_was_made_before_is_checked_when_a_stage_reads_it_though_nobody_asked(
    recipe: Recipe, stages: Stages, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/metadata.jsonl").write_text("a")
    recipe.sft.checkpoint, recipe.counterfactual.pairs = str(checkpoint), str(tmp_path / "pairs")
    recipe.stages = ["grpo", "evaluate", "audit"]
    run_recipe(recipe)
    run_recipe(recipe, ["audit"])
    assert stages.calls == ["data", "sft", "counterfactual", "grpo", "evaluate", "audit"]
    assert status(recipe, "sft") == status(recipe, "counterfactual") == "finished"
    assert StageContext(recipe, recipe.run_dir, "grpo").checkpoint("sft") == checkpoint


def test_a_checkpoint_that_is_not_there_stops_the_run_before_anything_reads_it(
    recipe: Recipe, stages: Stages, tmp_path: Path
) -> None:
    recipe.sft.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"sft.checkpoint: found '.*nowhere', which is no folder"):
        run_recipe(recipe, ["evaluate"])
    assert stages.calls == ["data"]


def test_counterfactuals_that_stage_1_trains_on_come_before_it(recipe: Recipe, stages: Stages) -> None:
    recipe.sft.mix = MixSettings(removal=1)
    run_recipe(recipe)
    assert stages.calls == ["data", "counterfactual", "sft", "grpo", "evaluate", "audit", "export"]
    stages.calls.clear()
    recipe.counterfactual.sigma = 0.7
    run_recipe(recipe)
    assert stages.calls == ["counterfactual", "sft", "grpo", "evaluate", "audit", "export"]


def test_other_sets_of_pairs_count_in_the_audit_by_their_content(
    recipe: Recipe, stages: Stages, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    recipe.audit.sets = [AuditSet("other", str(tmp_path / "other"))]
    for content in ("a", "a", "b"):
        (tmp_path / "other/metadata.jsonl").write_text(content)
        run_recipe(recipe)
    assert stages.calls == [*ALL, "audit"]


def test_another_segmenter_in_a_folder_makes_the_counterfactuals_anew(
    recipe: Recipe, stages: Stages, tmp_path: Path
) -> None:
    (tmp_path / "net").mkdir()
    recipe.counterfactual.masks.segmenter = str(tmp_path / "net")
    for content in ("{}", "{}", '{"side": 64}'):
        (tmp_path / "net/config.json").write_text(content)
        run_recipe(recipe, ["counterfactual"])
    assert stages.calls == ["data", "counterfactual", "counterfactual"]


def test_a_stage_without_its_inputs_says_what_to_run(recipe: Recipe, stages: Stages) -> None:
    with pytest.raises(FileNotFoundError, match=r"grpo needs the results of sft.*cogalign sft RECIPE"):
        run_recipe(recipe, stages=["grpo"])
    assert stages.calls == ["data"]


def test_grpo_reads_counterfactuals_only_if_the_mix_does(recipe: Recipe) -> None:
    assert "counterfactual" in inputs_of(recipe, "grpo")
    assert "counterfactual" not in inputs_of(replace(recipe, grpo=GrpoSettings()), "grpo")


def test_stage_files_name_versions_seeds_and_times(recipe: Recipe, stages: Stages) -> None:
    run_recipe(recipe, stages=["sft"])
    found = read_stage_file(recipe.run_dir / "sft")
    assert found is not None
    assert {"python", "torch", "transformers", "lightning", "peft", "cogalign"} <= set(found.versions)
    assert found.seeds == {"run": 1}
    assert found.started
    assert found.finished
    assert found.started <= found.finished


def test_two_runs_do_not_write_into_one_folder(recipe: Recipe, stages: Stages) -> None:
    recipe.run_dir.mkdir(parents=True)
    with open(recipe.run_dir / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another cogalign run is writing here"):
            run_recipe(recipe)
    assert stages.calls == []


def test_the_real_data_stage_makes_phantoms_and_counts_them(tmp_path: Path) -> None:
    phantom = PhantomSettings(train=4, validation=2, test=3, size=32)
    recipe = Recipe(out=str(tmp_path / "run"), data=DataSettings(phantom=phantom))
    summary = run_recipe(recipe, stages=[])
    assert summary["stages"]["data"]["metrics"]["cases"]["train"] == 4
    made = (tmp_path / "run" / "data" / "metadata.jsonl").stat().st_mtime_ns
    run_recipe(recipe, stages=[])
    assert (tmp_path / "run" / "data" / "metadata.jsonl").stat().st_mtime_ns == made
