"""`cogalign submit`, `status` and `cancel`: a run on a SLURM cluster."""

from __future__ import annotations

from pathlib import Path

from cogalign.cli_data import EXIT_ERROR, Parser, UsageError
from cogalign.cli_recipe import given


def submit(arguments: list[str]) -> int:
    """`cogalign submit RECIPE --cluster FILE [--dry-run] [--key.subkey value ...]`."""
    found = given("submit", "The stages of a recipe as jobs of a SLURM cluster", arguments)
    if found is None:
        return 0
    if "--print-config" in found.flags:
        return found.print_config()
    if "--cluster" not in found.values:
        raise UsageError("--cluster: found nothing, wanted a cluster profile, e.g. --cluster slurm/gpu.yaml")
    recipe = found.read()
    stages = [stage for stage in found.values.get("--stages", "").strip("[]").replace(" ", "").split(",") if stage]
    from cogalign.cluster.submit import submit as submit_jobs

    done = submit_jobs(recipe, Path(found.values["--cluster"]), stages or None, "--dry-run" in found.flags)
    if "--dry-run" in found.flags:
        for job, script in done.scripts.items():
            print(f"# ---- {job} ----\n{script}")
        return 0
    for job, number in done.jobs.items():
        print(f"{job:<22} job {number}")
    print(f"logs: {recipe.run_dir / 'slurm' / 'logs'}; `cogalign status {recipe.run_dir}` tells how far they are")
    return 0


def status(arguments: list[str]) -> int:
    """`cogalign status RUN [--json]`; exit code 1 if a stage or a job has failed."""
    parser = Parser(prog="cogalign status", description="Stages and jobs of a run: how far they are, what is wrong.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, e.g. runs/paper-2b")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    found = parser.parse_args(arguments)
    from cogalign.cluster.status import as_json
    from cogalign.cluster.status import status as status_of
    from cogalign.cluster.status_text import show

    state = status_of(found.run)
    print(as_json(state) if found.json else show(state))
    return EXIT_ERROR if state.failed else 0


def cancel(arguments: list[str]) -> int:
    """`cogalign cancel RUN`."""
    parser = Parser(prog="cogalign cancel", description="Take a run's jobs out of the queue; what they saved is kept.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, e.g. runs/paper-2b")
    found = parser.parse_args(arguments)
    from cogalign.cluster.cancel import cancel as cancel_jobs

    cancelled = cancel_jobs(found.run)
    print(f"cancelled: {', '.join(cancelled)}" if cancelled else "no job of this run is in the queue")
    return 0
