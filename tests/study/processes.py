"""Calls of `cogalign study` as processes, and stages that wait, fail or note that they were called.

Started with a recipe, this file is `cogalign run` with such stages (the pipeline around them is the real one); started with
`study`, it is `cogalign study` whose runs are those.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 420
"""Seconds that anything may take on a busy machine."""
CALLS = "calls"
ROOT = Path(__file__).parents[2]


@contextmanager
def call(study: Path, *words: str, real: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Start `cogalign study`; at the end of the block it is told to stop if it still runs.

    Args:
        study: the study's file; its folder is `out` beside it.
        words: more of the command line.
        real: whether the runs are real ones.
    """
    arguments = [sys.executable, __file__, "real" if real else "study", str(study), "--out", str(study.parent / "out")]
    process = subprocess.Popen(
        [*arguments, *words], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate()


def until(happened: Callable[[], Any]) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def calls(folder: Path) -> list[str]:
    """Which stages began, in order: `<folder of the run>/<stage>`."""
    path = folder / CALLS
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _stage(folder: Path, name: str) -> Callable[[Any], dict[str, Any]]:
    """A stage that notes its call, waits while `hold` names it, fails if `fail` does, and leaves what others read."""

    def run(context: Any) -> dict[str, Any]:
        from cogalign.training.interrupt import check

        which = f"{context.run_dir.relative_to(folder / 'out')}/{name}"
        with open(folder / CALLS, "a") as file:
            file.write(f"{which}\n")
        while (folder / "hold" / which.replace("/", "-")).exists():
            check()
            time.sleep(0.05)
        if (folder / "fail" / which.replace("/", "-")).exists():
            raise ValueError(f"no luck with {which}")
        context.folder.mkdir(parents=True, exist_ok=True)
        if name in ("data", "counterfactual"):
            (context.folder / "metadata.jsonl").write_text(json.dumps(context.recipe.counterfactual.fill))
        else:
            (context.folder / "adapter").mkdir(exist_ok=True)
            (context.folder / "adapter" / "adapter_config.json").write_text("{}")
        return {"steps": 1}

    return run


def _run(recipe: str) -> int:
    """`cogalign run` with those stages."""
    from cogalign import pipeline
    from cogalign.cli import main

    folder = next(parent for parent in Path(recipe).parents if parent.name == "out").parent
    pipeline._function_of = lambda name: _stage(folder, name)  # type: ignore[assignment]
    pipeline._prepare_data = _stage(folder, "data")  # type: ignore[assignment]
    return main(["run", recipe])


def _study(words: list[str], real: bool) -> int:
    """`cogalign study`, as the program calls it."""
    from cogalign import cli
    from cogalign.cli_study import study
    from cogalign.study import child, run

    if not real:
        child.COMMAND = (sys.executable, __file__)  # type: ignore[assignment]
        run.LOOK_EVERY = 0.1
    cli._dispatch = study
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1]) if len(sys.argv) == 2 else _study(sys.argv[2:], sys.argv[1] == "real"))
