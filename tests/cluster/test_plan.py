"""From a recipe and a profile to jobs: order, resources, and what is refused before anything waits in a queue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cogalign.cluster.plan import Job, plan
from cogalign.cluster.profile import ArraySettings, Profile, Resources, RolloutServer, read_profile
from cogalign.pipeline_digest import stage_digest
from cogalign.recipe import LoraSettings, Recipe, TrainerSettings
from cogalign.recipe_file import read_recipe
from cogalign.training.stage_file import StageFile, Status

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return replace(read_recipe(ROOT / "recipes" / "quickstart.yaml"), out=str(tmp_path / "run"))


def jobs(recipe: Recipe, profile: Profile, *stages: str) -> dict[str, Job]:
    return {job.name: job for job in plan(recipe, profile, list(stages) or None, Path("/run/recipe.yaml"))}


def write_stage(recipe: Recipe, stage: str, status: Status = "finished", digest: str = "any") -> None:
    StageFile(stage, digest, status=status).write(recipe.run_dir / stage)


def test_jobs_wait_for_the_stages_whose_results_they_read(recipe: Recipe) -> None:
    found = jobs(recipe, Profile())
    assert {name: set(job.after) for name, job in found.items()} == {
        "data": set(),
        "sft": {"data"},
        "counterfactual-masks": {"data"},
        "counterfactual": {"counterfactual-masks"},
        "counterfactual-finish": {"counterfactual"},
        "grpo": {"data", "sft", "counterfactual-finish"},
        "evaluate": {"data", "sft", "grpo"},
        "audit": {"data", "counterfactual-finish", "sft", "grpo"},
        "export": {"grpo"},
    }
    seen: set[str] = set()
    for job in found.values():
        assert set(job.after) <= seen, "submitted before what it waits for"
        seen.add(job.name)


def test_a_segmenter_of_the_run_comes_before_the_masks(recipe: Recipe) -> None:
    recipe.counterfactual.masks.segmenter = "run"
    found = jobs(recipe, Profile(), "counterfactual")
    assert list(found) == ["data", "segmenter", "counterfactual-masks", "counterfactual", "counterfactual-finish"]
    assert found["counterfactual-masks"].after == ("data", "segmenter")


def test_grpo_without_counterfactuals_does_not_wait_for_them(recipe: Recipe) -> None:
    recipe.grpo.mix = replace(recipe.grpo.mix, removal=0.0, control=0.0, transplant=0.0)
    assert jobs(recipe, Profile(), "sft", "grpo")["grpo"].after == ("data", "sft")


def test_a_case_set_of_the_user_needs_no_job_for_data(recipe: Recipe) -> None:
    recipe.data = replace(recipe.data, phantom=None, case_set="/cases")
    found = jobs(recipe, Profile(), "sft")
    assert list(found) == ["sft"]
    assert found["sft"].after == ()


def test_data_that_are_finished_are_left_out_and_outdated_ones_are_not(recipe: Recipe) -> None:
    write_stage(recipe, "data", digest=stage_digest(recipe, "data"))
    assert list(jobs(recipe, Profile(), "sft")) == ["sft"]
    write_stage(recipe, "data", digest="of other settings")
    assert list(jobs(recipe, Profile(), "sft")) == ["data", "sft"]
    write_stage(recipe, "data", "interrupted", stage_digest(recipe, "data"))
    assert list(jobs(recipe, Profile(), "sft")) == ["data", "sft"]


def test_pairs_that_were_made_before_are_only_graded(recipe: Recipe) -> None:
    recipe.counterfactual.pairs = "/pairs"
    assert list(jobs(recipe, Profile(), "counterfactual")) == ["data", "counterfactual-finish"]


def test_counterfactuals_that_stage_1_trains_on_are_submitted_before_it(recipe: Recipe) -> None:
    recipe.sft.mix = replace(recipe.sft.mix, removal=1.0)
    found = jobs(recipe, Profile(), "sft", "counterfactual")
    assert list(found) == ["data", "counterfactual-masks", "counterfactual", "counterfactual-finish", "sft"]
    assert found["sft"].after == ("data", "counterfactual-finish")


def test_a_checkpoint_and_pairs_made_before_need_no_job(recipe: Recipe) -> None:
    recipe.sft.checkpoint, recipe.counterfactual.pairs = "/made/adapter", "/made/pairs"
    assert jobs(recipe, Profile(), "grpo")["grpo"].after == ("data",)


def test_data_may_be_asked_for_by_name(recipe: Recipe) -> None:
    assert list(jobs(recipe, Profile(), "sft", "data")) == ["data", "sft"]


def test_an_input_that_is_neither_submitted_nor_finished_is_named(recipe: Recipe) -> None:
    with pytest.raises(
        ValueError, match=r"grpo needs the results of sft, which has not run in .*give --stages sft,grpo"
    ):
        jobs(recipe, Profile(), "grpo")
    write_stage(recipe, "sft")
    write_stage(recipe, "counterfactual", "failed")
    with pytest.raises(
        ValueError, match=r"results of counterfactual, which is failed in .*--stages counterfactual,grpo"
    ):
        jobs(recipe, Profile(), "grpo")
    write_stage(recipe, "counterfactual")
    assert jobs(recipe, Profile(), "grpo")["grpo"].after == ("data",)


def test_an_unknown_stage_names_the_nearest(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"--stages: found 'evalaute'.*did you mean evaluate\?"):
        jobs(recipe, Profile(), "evalaute")


def test_commands_name_their_phase_and_the_devices_of_their_job(recipe: Recipe) -> None:
    found = jobs(recipe, Profile(nodes=2, gpus_per_node=4, counterfactual=ArraySettings(shards=5)))
    both = ("--trainer.devices", "4", "--trainer.num_nodes", "2")
    one = ("--trainer.devices", "1", "--trainer.num_nodes", "1")
    path = "/run/recipe.yaml"
    assert found["sft"].words == ("sft", path, *both)
    assert found["data"].words == ("prepare", path, *one)
    assert found["counterfactual-masks"].words == ("counterfactual", path, "--phase", "masks", *one)
    assert found["counterfactual"].words == ("counterfactual", path, "--phase", "make", *one)
    assert found["counterfactual-finish"].words == ("counterfactual", path, *one)
    assert {name: job.array for name, job in found.items() if job.array} == {"counterfactual": 5}


def test_only_training_gets_all_nodes_and_only_models_get_gpus(recipe: Recipe) -> None:
    profile = Profile(nodes=2, gpus_per_node=8, cpus_per_task=4, memory="64G")
    shape = {name: (job.request.nodes, job.request.tasks_per_node, job.request.gpus_per_node)
             for name, job in jobs(recipe, profile).items()}  # fmt: skip
    assert shape["sft"] == shape["grpo"] == (2, 8, 8)
    assert shape["data"] == shape["counterfactual"] == (1, 1, 0)
    for name in ("counterfactual-masks", "counterfactual-finish", "evaluate", "audit", "export"):
        assert shape[name] == (1, 1, 1)
    recipe.counterfactual.fill = "diffusion"
    assert jobs(recipe, profile)["counterfactual"].request.gpus_per_node == 1


def test_a_job_s_own_resources_replace_the_profile_s(recipe: Recipe) -> None:
    own = Resources(nodes=1, gpus_per_node=2, time="1:00:00", sbatch=["--exclusive"], memory="8G")
    profile = Profile(nodes=2, gpus_per_node=8, partition="main", sbatch=["--x"], stages={"sft": own})
    found = jobs(recipe, profile)
    sft, grpo = found["sft"].request, found["grpo"].request
    assert (sft.nodes, sft.tasks_per_node, sft.time, sft.sbatch, sft.memory) == (
        1,
        2,
        "1:00:00",
        ("--exclusive",),
        "8G",
    )
    assert (sft.partition, grpo.partition, grpo.sbatch) == ("main", "main", ("--x",))


def test_a_job_of_one_process_cannot_be_given_several(recipe: Recipe) -> None:
    with pytest.raises(
        ValueError, match=r"stages\.evaluate\.nodes: found 2, wanted 1 or null: evaluate is one process"
    ):
        jobs(recipe, Profile(stages={"evaluate": Resources(nodes=2)}))


def test_processes_of_a_node_are_its_gpus(recipe: Recipe) -> None:
    profile = Profile(gpus_per_node=8, stages={"sft": Resources(tasks_per_node=4)})
    with pytest.raises(
        ValueError, match="sft: tasks_per_node: found 4, wanted 8, one process for each of gpus_per_node"
    ):
        jobs(recipe, profile)


def test_a_recipe_for_gpus_needs_a_profile_with_gpus(recipe: Recipe) -> None:
    recipe.trainer = TrainerSettings(accelerator="gpu")
    with pytest.raises(
        ValueError, match=r"sft: found trainer.accelerator gpu .* gpus_per_node 0 .*--trainer.accelerator cpu"
    ):
        jobs(recipe, Profile())


def test_prompts_that_processes_cannot_share_name_the_nearest_numbers(recipe: Recipe) -> None:
    assert recipe.grpo.prompts_per_step == 16
    with pytest.raises(
        ValueError, match=r"prompts_per_step: found 16, which 3 processes .* are 15 and 18, or 2 or 4 proc"
    ):
        jobs(recipe, Profile(nodes=3))
    with pytest.raises(
        ValueError, match=r"found 16, which 24 processes .* nearest valid values are 24, or 16 processes"
    ):
        jobs(recipe, Profile(nodes=3, gpus_per_node=8))
    jobs(recipe, Profile(nodes=2, gpus_per_node=8))


def test_a_global_batch_that_does_not_divide_names_the_nearest_numbers(recipe: Recipe) -> None:
    recipe.sft = replace(recipe.sft, global_batch=64, batch_size=8)
    jobs(recipe, Profile(nodes=2, gpus_per_node=4))
    wrong = r"sft.global_batch: found 64, which 3 processes with sft.batch_size 8 .* are 48 and 72, or 2 or 4 processes"
    with pytest.raises(ValueError, match=wrong):
        jobs(recipe, Profile(nodes=3), "sft")
    recipe.sft.batch_size = 48
    with pytest.raises(ValueError, match=r"values are 96, or sft.batch_size 32$"):
        jobs(recipe, Profile(nodes=2), "sft")


def test_a_rollout_server_and_the_recipe_must_want_each_other(recipe: Recipe) -> None:
    profile = Profile(rollout_server=RolloutServer())
    jobs(recipe, profile, "sft")  # no grpo, no question
    with pytest.raises(
        ValueError, match=r"rollout_server: .* grpo.sampler is hf in the recipe; give --grpo.sampler vllm"
    ):
        jobs(recipe, profile)
    recipe.grpo.sampler = "vllm"
    with pytest.raises(ValueError, match="recipe trains full weights"):
        jobs(recipe, profile)
    recipe.sft.lora = LoraSettings()
    jobs(recipe, profile)
    recipe.grpo.vllm.url = "http://x:1"
    with pytest.raises(ValueError, match=r"the recipe has grpo\.vllm\.url http://x:1"):
        jobs(recipe, profile)
    jobs(recipe, Profile(nodes=2))
    recipe.grpo.vllm.url = None
    with pytest.raises(ValueError, match="found vllm on 2 nodes without a server that all of them reach"):
        jobs(recipe, Profile(nodes=2))


def test_the_server_s_address_is_in_no_digest(recipe: Recipe) -> None:
    """It changes with every restart of the job, which must go on where it was."""
    for stage in ("data", "sft", "counterfactual"):
        write_stage(recipe, stage)
    before = stage_digest(recipe, "grpo")
    recipe.grpo.vllm.url = "http://n2:30001"
    assert stage_digest(recipe, "grpo") == before


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("gpu*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["paper-2b", "paper-4b", "paper-8b"])
def test_the_paper_s_recipes_fit_the_profiles_with_gpus(path: Path, name: str) -> None:
    recipe = read_recipe(ROOT / "recipes" / f"{name}.yaml")
    recipe.sft.global_batch = 128
    if path.name == "gpu-vllm.yaml":
        recipe.grpo.sampler = "vllm"
    assert "grpo" in jobs(recipe, read_profile(path))
