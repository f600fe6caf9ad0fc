"""What each job of a run asks the cluster for: the profile's settings, with those of the job laid over."""

from __future__ import annotations

from dataclasses import dataclass

from cogalign.cluster.profile import Profile, Resources
from cogalign.recipe import Recipe
from cogalign.recipe_checks import require

TRAINING = ("segmenter", "sft", "grpo")
"""Jobs in which several processes share the work; every other job is one process."""


@dataclass(frozen=True)
class Request:
    """The resources of one job, nothing left open but what the cluster chooses itself (None)."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    memory: str | None = None
    time: str | None = None
    sbatch: tuple[str, ...] = ()

    @property
    def tasks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node


def request_of(job: str, recipe: Recipe, profile: Profile) -> Request:
    """The resources of a job.

    Raises:
        ValueError: a job of one process is given several, or the recipe needs GPUs and the job has none.
    """
    own = profile.stages.get(job, Resources())
    if job in TRAINING:
        nodes, tasks, gpus = _of_training(job, recipe, profile, own)
    else:
        for name in ("nodes", "tasks_per_node"):
            require(getattr(own, name) in (None, 1), f"stages.{job}.{name}", getattr(own, name),
                    f"1 or null: {job} is one process")  # fmt: skip
        nodes, tasks = 1, 1
        usual = min(1, profile.gpus_per_node or 0) if _wants_gpu(job, recipe) else 0
        gpus = usual if own.gpus_per_node is None else own.gpus_per_node

    def chosen(name: str) -> str | None:
        value = getattr(own, name)
        return getattr(profile, name) if value is None else value

    return Request(
        nodes, tasks, gpus, own.cpus_per_task or profile.cpus_per_task or 1,
        chosen("partition"), chosen("account"), chosen("qos"), chosen("reservation"), chosen("constraint"),
        chosen("memory"), chosen("time"), tuple((profile.sbatch if own.sbatch is None else own.sbatch) or ()),
    )  # fmt: skip


def _of_training(job: str, recipe: Recipe, profile: Profile, own: Resources) -> tuple[int, int, int]:
    """Nodes, processes a node and GPUs a node of a job that trains."""
    gpus = (profile.gpus_per_node if own.gpus_per_node is None else own.gpus_per_node) or 0
    tasks = own.tasks_per_node or gpus or profile.tasks_per_node or 1
    where = f"{job}: tasks_per_node"
    require(not gpus or tasks == gpus, where, tasks, f"{gpus}, one process for each of gpus_per_node")
    if recipe.trainer.accelerator == "gpu" and not gpus:
        raise ValueError(
            f"{job}: found trainer.accelerator gpu in the recipe, but gpus_per_node 0 in the cluster profile; "
            "take a profile with GPUs, or --trainer.accelerator cpu"
        )
    return own.nodes or profile.nodes or 1, tasks, gpus


def _wants_gpu(job: str, recipe: Recipe) -> bool:
    """Whether a job of one process computes with a model."""
    if job == "data":
        return False
    return job != "counterfactual" or recipe.counterfactual.fill == "diffusion"


def check_ranks(job: str, recipe: Recipe, ranks: int) -> None:
    """Refuse a number of processes that cannot share a training step equally, before anything waits in a queue.

    Raises:
        ValueError: names the nearest valid values.
    """
    if job == "grpo":
        _divisible("grpo.prompts_per_step", recipe.grpo.prompts_per_step, ranks, 1)
    if job == "sft" and recipe.sft.global_batch is not None:
        _divisible("sft.global_batch", recipe.sft.global_batch, ranks, recipe.sft.batch_size)


def _divisible(key: str, value: int, ranks: int, batch: int) -> None:
    part = ranks * batch
    if value % part == 0:
        return
    below = value // part * part
    nearest = [number for number in (below, below + part) if number > 0]
    shared = f"{ranks} processes" + (f" with sft.batch_size {batch}" if batch > 1 else "")
    raise ValueError(
        f"{key}: found {value}, which {shared} of the cluster profile cannot share equally; the nearest valid values are "
        f"{' and '.join(map(str, nearest))}, or {_processes(value, ranks, batch)}"
    )


def _processes(value: int, ranks: int, batch: int) -> str:
    """The numbers of processes around `ranks` that work, or the batch sizes if none does."""
    good = [number for number in range(1, value + 1) if value % (number * batch) == 0]
    if not good:
        sizes = [size for size in range(1, value + 1) if value % (size * ranks) == 0]
        return f"sft.batch_size {min(sizes, key=lambda size: abs(size - batch))}" if sizes else "fewer processes"
    below, above = [n for n in good if n < ranks][-1:], [n for n in good if n > ranks][:1]
    return f"{' or '.join(map(str, below + above))} processes"
