"""Job scripts: the templates of this package, filled with a job and a cluster profile."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogalign import __version__
from cogalign.cluster.plan import Job
from cogalign.cluster.profile import Profile, RolloutServer
from cogalign.cluster.profile_checks import CONTROL
from cogalign.cluster.resources import Request

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
SITE_VARIABLE = re.compile(r"(\$\{[A-Za-z_]\w*\}|\$[A-Za-z_]\w*)")


def render(job: Job, profile: Profile, profile_path: Path, run_dir: Path, run_name: str, recipe_path: Path) -> str:
    """The batch script of a job.

    Args:
        job: the job.
        profile: the cluster.
        profile_path: where the profile was read from, for the script's first lines.
        run_dir: the run's folder, absolute.
        run_name: name of the run; a part of the job's name in the queue.
        recipe_path: where the job finds the resolved recipe.

    Raises:
        ValueError: a path that no job script can hold.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    for path in (run_dir, Path.cwd(), profile_path):
        _require_plain(path, mounted=profile.container.engine != "none")
    environment = Environment(
        loader=PackageLoader("cogalign.cluster"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, comment_start_string="{%#", comment_end_string="#%}",  # ${#nodes[@]} is bash's
    )  # fmt: skip
    environment.filters["q"] = lambda value: shlex.quote(str(value))
    server = profile.rollout_server if job.name == "grpo" else None
    inside = _inside(profile, run_dir, job.request.gpus_per_node > 0)
    command = shlex.split(profile.command)
    return environment.get_template("job.sh.j2").render(
        job=job, profile=profile, profile_path=profile_path, run=run_dir, folder=run_dir / "slurm", version=__version__,
        directives=_directives(job, profile, run_dir, run_name),
        environment=_variables(job, profile),
        scratch=_scratch(profile.scratch),
        command=[*command, *job.words],
        check_command=profile.container.engine == "none",
        inside=inside,
        step_options=_step_options(job.request, profile, run_dir, server is not None),
        per_node=_per_node(job.request, server is not None),
        server=server,
        **_server_parts(server, job, profile, run_dir, recipe_path),
    )  # fmt: skip


def _directives(job: Job, profile: Profile, run_dir: Path, run_name: str) -> list[str]:
    """The options of sbatch, one a line."""
    log = str(run_dir / "slurm" / "logs").replace("%", "%%")
    name = re.sub(r"[^\w.-]", "_", f"{run_name}-{job.name}")
    options = {
        "job-name": name,
        "output": f"{log}/{job.name}-{'%A_%a' if job.array else '%j'}.log",
        "open-mode": "append",
        "chdir": str(Path.cwd()),
        "signal": f"USR1@{profile.signal_before}",
        "kill-on-invalid-dep": "yes",
    }
    if job.array:
        options["array"] = f"0-{job.array - 1}%{profile.counterfactual.max_running}"
    return [*map(_option, options, options.values()), "--requeue", *_resources(job.request, profile)]


def _resources(request: Request, profile: Profile) -> list[str]:
    """The options of sbatch that ask for resources."""
    options: dict[str, Any] = {
        name: getattr(request, name) for name in ("partition", "account", "qos", "reservation", "constraint", "time")
    }
    options |= {"nodes": request.nodes, "ntasks-per-node": request.tasks_per_node,
                "cpus-per-task": request.cpus_per_task, "mem": request.memory}  # fmt: skip
    if request.gpus_per_node:
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        gres = profile.gpu_flag == "gres"
        options[profile.gpu_flag] = f"{'gpu:' if gres else ''}{kind}{request.gpus_per_node}"
    return [*(_option(name, value) for name, value in options.items() if value is not None), *request.sbatch]


def _option(name: str, value: Any) -> str:
    """One option of sbatch, quoted in the way in which sbatch reads its lines (not the shell's)."""
    text = str(value)
    if re.fullmatch(r"[\w./:%@,=+-]+", text):
        return f"--{name}={text}"
    return f'--{name}="' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _variables(job: Job, profile: Profile) -> dict[str, str]:
    """Environment variables of a job; those of the profile win."""
    found: dict[str, Any] = dict(OFFLINE) if profile.offline else {}
    if job.request.tasks > 1:
        found |= profile.nccl
    return {name: str(value) for name, value in (found | profile.environment).items()}


def _scratch(scratch: str | None) -> str | None:
    """A path for the script: the site's variables stay, all else is quoted."""
    if scratch is None:
        return None
    parts = SITE_VARIABLE.split(scratch.rstrip("/") or "/")
    quoted = [
        f'"${{{part.strip("${}")}:?is not set on this node, but scratch of the cluster profile needs it}}"'
        if index % 2
        else shlex.quote(part)
        for index, part in enumerate(parts)
        if part
    ]
    return "".join(quoted)


def _step_options(request: Request, profile: Profile, run_dir: Path, parts: bool) -> list[str]:
    """Options of srun for the command; cores are given again, as srun does not take them from the job."""
    options = ["--kill-on-bad-exit=1", f"--wait={profile.wait}", "--label", f"--nodes={request.nodes}",
               f"--ntasks={request.tasks}", f"--ntasks-per-node={request.tasks_per_node}",
               f"--cpus-per-task={request.cpus_per_task}"]  # fmt: skip
    return [*options, *(["--het-group=0"] if parts else []), *_pyxis(profile, run_dir)]


def _per_node(request: Request, parts: bool) -> list[str]:
    """Options of srun for a small step, once on each node."""
    options = [f"--nodes={request.nodes}", f"--ntasks={request.nodes}", "--ntasks-per-node=1", "--label"]
    return [*options, *(["--het-group=0"] if parts else [])]


def _mounts(profile: Profile, run_dir: Path) -> list[str]:
    """The run's folder, the working folder, the scratch disk if it is a plain path, and the profile's mounts."""
    plain = [profile.scratch] if profile.scratch and "$" not in profile.scratch else []
    own = dict.fromkeys(f"{path}:{path}" for path in (str(run_dir), str(Path.cwd()), *plain))
    return [*own, *profile.container.mounts]


def _pyxis(profile: Profile, run_dir: Path) -> list[str]:
    if profile.container.engine != "pyxis":
        return []
    return [f"--container-image={profile.container.image}", f"--container-workdir={Path.cwd()}",
            f"--container-mounts={','.join(_mounts(profile, run_dir))}"]  # fmt: skip


def _inside(profile: Profile, run_dir: Path, gpu: bool) -> list[str]:
    """The words before a command that runs in an apptainer container."""
    if profile.container.engine != "apptainer":
        return []
    binds = [word for mount in _mounts(profile, run_dir) for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if gpu else []), *binds, "--pwd", str(Path.cwd()),
            str(profile.container.image)]  # fmt: skip


def _server_parts(
    server: RolloutServer | None, job: Job, profile: Profile, run_dir: Path, recipe_path: Path
) -> dict[str, Sequence[str]]:
    """What the template needs for the rollout server: its resources, and how it is started."""
    if server is None:
        return {}
    base = job.request
    request = Request(
        1, 1, server.gpus, server.cpus_per_task, server.partition or base.partition, base.account, base.qos,
        base.reservation, base.constraint, server.memory or base.memory, base.time, base.sbatch,
    )  # fmt: skip
    words = [*shlex.split(server.command), str(recipe_path), "--gpus", str(server.gpus)]
    words += ["--python", server.python] if server.python else []
    options = ["--het-group=1", "--nodes=1", "--ntasks=1", f"--cpus-per-task={server.cpus_per_task}", "--label"]
    return {
        "server_directives": _resources(request, profile),
        "server_options": [*options, *_pyxis(profile, run_dir)],
        "server_inside": _inside(profile, run_dir, server.gpus > 0),
        "server_command": [*words, *(f"--argument={word}" for word in server.arguments)],
    }


def _require_plain(path: Path, mounted: bool) -> None:
    """Refuse paths that sbatch (a backslash ends its patterns) or a container's mount cannot take.

    Raises:
        ValueError: names the path.
    """
    if CONTROL.search(str(path)) or "\\" in str(path):
        raise ValueError(f"{str(path)!r}: a path with line ends or backslashes cannot be used in a job")
    if mounted and set(str(path)) & set(":,"):
        raise ValueError(f"{str(path)!r}: a path with colons or commas cannot be mounted into a container")
