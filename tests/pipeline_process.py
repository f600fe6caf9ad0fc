"""A command of a run in a process of its own, with stages that wait, fail or note that they were called.

The pipeline around them is the real one. `Stages` of tests/test_pipeline.py is the same for one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 180
"""Seconds that anything may take on a busy machine."""


@contextmanager
def command(
    run_dir: Path, stages: Sequence[str] | None, environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a command; it is killed at the end of the block if it still runs.

    Args:
        run_dir: of the run.
        stages: as `run_recipe` takes them.
        environment: variables beside this process's.
        options: `hold` (stage → file for which its main process waits), `fail` (stage → message), `timeout` (trainer.timeout),
            `spawn` (the main process starts
            another one in its first training), `devices`, `train` (phantoms), `case_set`, `late` (`pipeline_ranks.LATE`), `force`.
    """
    given = json.dumps({"run_dir": str(run_dir), "stages": stages, **options})
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), **(environment or {})}
    process = subprocess.Popen(
        [sys.executable, __file__, given], env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(happened: Callable[[], Any]) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def calls(run_dir: Path) -> list[str]:
    """Which stage functions began, in order: `<stage> <rank>`."""
    path = run_dir / "calls"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def main(given: dict[str, Any]) -> None:
    """Run the command."""
    from cogalign import pipeline, pipeline_ranks
    from cogalign.recipe import DataSettings, PhantomSettings, Recipe, SftSettings, TrainerSettings
    from cogalign.training.context import StageContext

    def function(stage: str) -> Callable[[StageContext], dict[str, Any]]:
        def run(context: StageContext) -> dict[str, Any]:
            context.folder.mkdir(parents=True, exist_ok=True)
            rank = os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0"
            with open(context.run_dir / "calls", "a") as file:
                file.write(f"{stage} {rank}\n")
            hold = given.get("hold", {}).get(stage)
            if given.get("spawn") and rank == "0" and stage in pipeline.TOGETHER:  # as Lightning starts its ranks
                subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {"LOCAL_RANK": "1"})
            while hold is not None and rank == "0" and not Path(hold).exists():
                time.sleep(0.05)
            if stage in given.get("fail", {}):
                raise ValueError(given["fail"][stage])
            return {"process": os.getpid()}

        return run

    pipeline_ranks.LATE = given.get("late", pipeline_ranks.LATE)
    pipeline._function_of = function
    pipeline._prepare_data = function("data")
    phantoms = DataSettings(phantom=PhantomSettings(train=given.get("train", 4)))
    recipe = Recipe(
        out=given["run_dir"],
        data=DataSettings(case_set=given["case_set"]) if "case_set" in given else phantoms,
        sft=SftSettings(),
        trainer=TrainerSettings(timeout=given.get("timeout", 600.0), devices=given.get("devices", 2)),
    )
    try:
        pipeline.run_recipe(recipe, given["stages"], force=given.get("force", False))
    except (ValueError, OSError) as error:
        print(f"error: {error}", flush=True)
        sys.exit(1)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
