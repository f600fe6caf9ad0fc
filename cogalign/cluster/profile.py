"""A cluster profile: what a site's SLURM wants to know, as data (one YAML file of `slurm/`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cogalign.cluster.profile_checks import (
    require_line,
    require_lines,
    require_mounts,
    require_options,
    require_size,
    require_time,
    require_variables,
    require_words,
    seconds_of_limit,
)
from cogalign.recipe_checks import require as _require
from cogalign.recipe_file import build_settings, nearest_key, read_mapping

Plain = str | int | float
JOBS = ("data", "segmenter", "sft", "counterfactual-masks", "counterfactual", "counterfactual-finish", "grpo", "evaluate",
        "audit", "export")  # fmt: skip
"""Names of the jobs of a run, in an order in which they can run."""
SCRATCH = re.compile(r"(\$\w+|\$\{\w+\}|/[^$`\n]*)(/[^$`\n]*)?")


@dataclass
class Resources:
    """What a job asks for; a key that is null keeps the profile's."""

    partition: str | None = None
    """Partition (queue)."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation."""
    constraint: str | None = None
    """Features that the nodes must have."""
    nodes: int | None = None
    """Nodes of the jobs that train (segmenter, sft, grpo); all other jobs have one."""
    tasks_per_node: int | None = None
    """Processes on a node of a job that trains; with GPUs as many as GPUs."""
    gpus_per_node: int | None = None
    """GPUs of a node that the job gets; 0 for none."""
    cpus_per_task: int | None = None
    """CPU cores of a process; the number of its threads too."""
    memory: str | None = None
    """Memory of a node, e.g. 64G; 0 is all of it."""
    time: str | int | None = None
    """Time limit in quotes, e.g. "12:00:00" or "1-00:00:00"; a job that needs longer is requeued and goes on."""
    sbatch: list[str] | None = None
    """More options of sbatch, e.g. --exclusive; they replace the profile's."""

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "reservation", "constraint"):
            require_line(name, getattr(self, name))
        for name in ("nodes", "tasks_per_node", "cpus_per_task"):
            _require(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require((self.gpus_per_node or 0) >= 0, "gpus_per_node", self.gpus_per_node, "0 or more")
        require_size("memory", self.memory)
        require_time("time", self.time)
        require_options("sbatch", self.sbatch or [])
        gpus, tasks = self.gpus_per_node, self.tasks_per_node
        _require(not gpus or tasks in (None, gpus), "tasks_per_node", tasks,
                 f"{gpus}, one process for each of gpus_per_node, or null")  # fmt: skip


@dataclass
class Container:
    """The container in which the commands of the jobs run."""

    engine: Literal["none", "pyxis", "apptainer"] = "none"
    """`none`, `pyxis` (options of srun, by a plug-in of the site) or `apptainer`."""
    image: str | None = None
    """Image: a file, or what the engine understands."""
    mounts: list[str] = field(default_factory=list)
    """Folders inside, as OUTSIDE:INSIDE; the run's folder and the working folder are mounted by themselves."""

    def __post_init__(self) -> None:
        _require(self.engine == "none" or bool(self.image), "container.image", self.image,
                 f"an image for the engine {self.engine}")  # fmt: skip
        require_line("container.image", self.image)
        require_mounts("container.mounts", self.mounts)


@dataclass
class ArraySettings:
    """The job array that makes counterfactuals."""

    shards: int = 8
    """Parts into which the cases are divided, each a task of the array."""
    max_running: int = 4
    """Tasks that run at the same time."""

    def __post_init__(self) -> None:
        for name in ("shards", "max_running"):
            _require(getattr(self, name) >= 1, f"counterfactual.{name}", getattr(self, name), "at least 1")


@dataclass
class RolloutServer:
    """A vLLM server on a node of its own, the second part of the job `grpo`."""

    gpus: int = 1
    """GPUs of the server; its model is divided over them."""
    cpus_per_task: int = 8
    """CPU cores."""
    memory: str | None = None
    """Memory of its node."""
    partition: str | None = None
    """Partition of its node; null is the job's."""
    port: int | None = None
    """Port on its node; null takes one from the job's id."""
    start_timeout: int = 900
    """Seconds that it may take until it is healthy."""
    python: str | None = None
    """Python of the environment that holds vLLM; null is the recipe's grpo.vllm.python."""
    arguments: list[str] = field(default_factory=list)
    """More arguments of vLLM's server, after the recipe's grpo.vllm.arguments."""
    command: str = "python -m cogalign.cluster.rollout_server"
    """What starts the server, in the same environment or container as `command`."""

    def __post_init__(self) -> None:
        name = "rollout_server"
        _require(self.gpus >= 0, f"{name}.gpus", self.gpus, "0 or more")
        for key in ("cpus_per_task", "start_timeout"):
            _require(getattr(self, key) >= 1, f"{name}.{key}", getattr(self, key), "at least 1")
        _require(self.port is None or 1024 <= self.port <= 65535, f"{name}.port", self.port, "1024 ... 65535, or null")
        require_size(f"{name}.memory", self.memory)
        require_line(f"{name}.partition", self.partition)
        require_line(f"{name}.python", self.python)
        require_lines(f"{name}.arguments", self.arguments)
        require_words(f"{name}.command", self.command)


@dataclass
class Profile(Resources):
    """A cluster, as its users see it."""

    nodes: int | None = 1
    """Nodes of the jobs that train (segmenter, sft, grpo); all other jobs have one."""
    gpus_per_node: int | None = 0
    """GPUs of a node that a job gets; jobs on one process get one, those that need none (data) none."""
    cpus_per_task: int | None = 1
    """CPU cores of a process; the number of its threads too."""
    gpu_flag: Literal["gres", "gpus-per-node"] = "gres"
    """How GPUs are asked for: `--gres=gpu:N` or `--gpus-per-node=N`."""
    gpu_type: str | None = None
    """Type of GPU where a cluster has several, e.g. a100."""
    modules: list[str] = field(default_factory=list)
    """Modules to load, in this order."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the command, e.g. those that enter an environment; they run on the first node."""
    environment: dict[str, Plain] = field(default_factory=dict)
    """Environment variables of the jobs, taken as they are; secrets belong into the shell that submits."""
    nccl: dict[str, Plain] = field(default_factory=dict)
    """Environment variables of the jobs with several processes: NCCL's, gloo's and torch's settings of the network."""
    container: Container = field(default_factory=Container)
    """The container of the commands."""
    scratch: str | None = None
    """Fast disk of a node, where TMPDIR is made: a path, or one variable of the site and a path below it."""
    command: str = "cogalign"
    """The command cogalign, as the jobs find it."""
    signal_before: int = 180
    """Seconds before the time limit at which a job is told to save, be requeued and end."""
    max_restarts: int = 20
    """Restarts after which a job is not requeued any more."""
    wait: int = 60
    """Seconds that a process may go on after the first one has ended."""
    offline: bool = True
    """Take models from the local cache only: many compute nodes have no way to the hub."""
    canary_timeout: int = 60
    """Seconds that a file may take to be seen from one node on another."""
    stages: dict[str, Resources] = field(default_factory=dict)
    """What single jobs ask for instead."""
    counterfactual: ArraySettings = field(default_factory=ArraySettings)
    """The job array that makes counterfactuals."""
    rollout_server: RolloutServer | None = None
    """A vLLM server beside the job grpo, for recipes with `grpo.sampler: vllm`; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("signal_before", "wait", "canary_timeout"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1 second")
        _require(self.signal_before <= 65535, "signal_before", self.signal_before, "at most 65535: SLURM's limit")
        for where, time in (
            ("time", self.time),
            *((f"stages.{name}.time", own.time) for name, own in self.stages.items()),
        ):
            limit = None if time is None else seconds_of_limit(str(time))
            # else it is told as soon as it starts, and comes back again and again without having done anything
            _require(limit is None or self.signal_before < limit, "signal_before", self.signal_before,
                     f"less than the {limit} seconds of {where}")  # fmt: skip
        _require(self.max_restarts >= 0, "max_restarts", self.max_restarts, "0 or more")
        require_line("gpu_type", self.gpu_type)
        require_lines("modules", self.modules)
        require_lines("setup", self.setup)
        require_variables("environment", self.environment)
        require_variables("nccl", self.nccl)
        require_words("command", self.command)
        _require(self.scratch is None or SCRATCH.fullmatch(self.scratch) is not None, "scratch", self.scratch,
                 "an absolute path, or a variable and a path below it such as $SLURM_TMPDIR or $SCRATCH/tmp")  # fmt: skip
        for name in self.stages:
            near = nearest_key(name, JOBS)
            _require(name in JOBS, "stages", name, f"the name of a job ({', '.join(JOBS)})"
                     + (f"; did you mean {near}?" if near else ""))  # fmt: skip


def read_profile(path: Path) -> Profile:
    """Read and check a cluster profile.

    Raises:
        FileNotFoundError: there is no such file; the nearest one is named.
        ValueError: not YAML, an unknown key (the nearest one is named), a wrong type or value.
    """
    content = read_mapping(path, "cluster profile", "`partition:` and `time:`")
    return build_settings(Profile, content, str(path))
