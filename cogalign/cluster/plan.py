"""From a recipe and a cluster profile to the jobs of a run and what each waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cogalign.cluster.profile import Profile
from cogalign.cluster.resources import TRAINING, Request, check_ranks, request_of
from cogalign.pipeline_digest import DATA, SEGMENTER, in_order, inputs_of, made_before, stage_digest
from cogalign.recipe import STAGES, Recipe
from cogalign.recipe_file import nearest_key
from cogalign.training.stage_file import read_stage_file

MASKS, SHARDS, FINISH = "counterfactual-masks", "counterfactual", "counterfactual-finish"
LAST_JOB = {"counterfactual": FINISH}
"""The job after which a stage is finished, where it has several."""


@dataclass(frozen=True)
class Job:
    """One job of a run.

    Attributes:
        name: its name, unique in the run.
        words: what follows `cogalign` in its command; a shard of an array is added by the script.
        after: names of the jobs that must have succeeded before.
        request: its resources.
        array: tasks of a job array; 0 for a plain job.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...]
    request: Request
    array: int = 0


def plan(recipe: Recipe, profile: Profile, stages: Sequence[str] | None, recipe_path: Path) -> list[Job]:
    """The jobs of a run in an order in which they can be submitted.

    Args:
        recipe: the resolved recipe.
        profile: the cluster.
        stages: the stages that are wanted; None for the recipe's.
        recipe_path: where the jobs find the resolved recipe.

    Raises:
        ValueError: an unknown stage, a stage whose input is neither wanted nor finished, resources that do not fit.
    """
    wanted = _wanted(recipe, stages)
    after = _dependencies(recipe, wanted)
    jobs = []
    for name in after:
        request = request_of(name, recipe, profile)
        check_ranks(name, recipe, request.tasks if name in TRAINING else 1)
        words = (*_command(name, recipe_path), "--trainer.devices", str(request.tasks_per_node),
                 "--trainer.num_nodes", str(request.nodes))  # fmt: skip
        array = profile.counterfactual.shards if name == SHARDS else 0
        jobs.append(Job(name, words, after[name], request, array))
    _check_server(recipe, profile, next((job for job in jobs if job.name == "grpo"), None))
    return jobs


def _wanted(recipe: Recipe, stages: Sequence[str] | None) -> list[str]:
    """The stages to submit, in order; the segmenter comes with the counterfactuals that need it, and data if made here.

    Raises:
        ValueError: an unknown stage, or none.
    """
    names = list(recipe.stages if stages is None else stages)
    for name in names:
        if name not in (*STAGES, DATA):
            near = nearest_key(name, STAGES)
            raise ValueError(f"--stages: found {name!r}, wanted some of {', '.join(STAGES)}"
                             + (f"; did you mean {near}?" if near else ""))  # fmt: skip
    if not names:
        raise ValueError(f"--stages: found none, wanted some of {', '.join(STAGES)}")
    if "counterfactual" in names and SEGMENTER in inputs_of(recipe, "counterfactual"):
        names.append(SEGMENTER)
    made_here = recipe.data.phantom is not None or recipe.data.imports is not None
    data = [DATA] if made_here and not _data_is_there(recipe) else []
    return [*data, *in_order(recipe, [name for name in names if name != DATA])]


def _data_is_there(recipe: Recipe) -> bool:
    """Whether the run's data are finished, made with the recipe's settings."""
    found = read_stage_file(recipe.run_dir / DATA)
    return found is not None and found.status == "finished" and found.digest == stage_digest(recipe, DATA)


def _dependencies(recipe: Recipe, wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Job → the jobs it waits for.

    Raises:
        ValueError: an input of a stage is neither wanted nor finished.
    """
    found: dict[str, tuple[str, ...]] = {}
    unasked = (DATA, *made_before(recipe))  # a job makes these itself if there is no job for it
    for stage in wanted:
        before = []
        for name in inputs_of(recipe, stage):
            needed, name = not name.endswith("?"), name.rstrip("?")
            if name in wanted:
                before.append(LAST_JOB.get(name, name))
            elif needed and name not in unasked:
                _require_finished(recipe, stage, name, wanted)
        for job in _jobs_of(recipe, stage):
            found[job] = tuple(before)
            before = [job]
    return found


def _jobs_of(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The jobs of a stage, each waiting for the one before; pairs that were made before are only graded."""
    if stage != "counterfactual":
        return (stage,)
    return (FINISH,) if recipe.counterfactual.pairs is not None else (MASKS, SHARDS, FINISH)


def _require_finished(recipe: Recipe, stage: str, name: str, wanted: Sequence[str]) -> None:
    record = read_stage_file(recipe.run_dir / name)
    if record is not None and record.status == "finished":
        return
    together = ",".join(part for part in STAGES if part in (*wanted, name))
    state = "has not run" if record is None else f"is {record.status}"
    raise ValueError(
        f"--stages: {stage} needs the results of {name}, which {state} in {recipe.run_dir} and is not submitted; "
        f"give --stages {together}"
    )


def _command(job: str, recipe_path: Path) -> tuple[str, ...]:
    """The words of a job's command before the options of the trainer."""
    path = str(recipe_path)
    if job == DATA:
        return ("prepare", path)
    if job in (MASKS, SHARDS):
        return ("counterfactual", path, "--phase", "masks" if job == MASKS else "make")
    return ("counterfactual" if job == FINISH else job, path)


def _check_server(recipe: Recipe, profile: Profile, grpo: Job | None) -> None:
    """Refuse a rollout server that the recipe does not use, and several nodes that would have none.

    Raises:
        ValueError: says what to change.
    """
    sampler, url = recipe.grpo.sampler, recipe.grpo.vllm.url
    if grpo is None:
        return
    if profile.rollout_server is None:
        if sampler == "vllm" and url is None and grpo.request.nodes > 1:
            raise ValueError(
                f"grpo.sampler: found vllm on {grpo.request.nodes} nodes without a server that all of them reach; take a "
                "cluster profile with rollout_server (slurm/gpu-vllm.yaml), or give --grpo.vllm.url"
            )
        return
    if sampler != "vllm":
        raise ValueError(
            f"rollout_server: the cluster profile has one, but grpo.sampler is {sampler} in the recipe; "
            "give --grpo.sampler vllm, or take a profile without a server"
        )
    if url is not None:
        raise ValueError(
            f"rollout_server: the cluster profile starts one, but the recipe has grpo.vllm.url {url}; "
            "give --grpo.vllm.url null, or take a profile without a server"
        )
    if recipe.sft.lora is None:
        raise ValueError(
            "rollout_server: a running server is given adapters only, but the recipe trains full weights (sft.lora null)"
        )
