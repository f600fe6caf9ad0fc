"""The commands. Thin: a command reads its arguments, then imports what it needs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cogalign import __version__
from cogalign.cli_cluster import cancel, status, submit
from cogalign.cli_data import COMMANDS as DATA_COMMANDS
from cogalign.cli_data import EXIT_ERROR, Parser, UsageError, data
from cogalign.cli_models import models
from cogalign.cli_recipe import given
from cogalign.cli_review import review
from cogalign.cli_study import study

EXIT_USAGE = 2
RECIPE_COMMANDS = {
    "prepare": "the run's case set: imports, phantoms, splits; the other commands do it too",
    "run": "all stages of a recipe, in order; finished ones are skipped",
    "segmenter": "a net that finds lesions, for masks and for the quality gate",
    "sft": "stage 1: supervised fine-tuning on clinical cognition",
    "counterfactual": "stage 2: counterfactual cases (lesion removed, moved, background changed)",
    "grpo": "stage 3: group relative policy optimization",
    "evaluate": "accuracy of base, SFT and aligned model on every split",
    "audit": "does the model read the lesion or the background?",
    "export": "merged model in hub layout, reloaded and compared",
}
OTHER_COMMANDS = {
    "data": f"case sets: {', '.join(DATA_COMMANDS)}",
    "models": "checkpoints put together from packages: models assemble smol",
    "review": "masks, reports and verdicts to experts and back: review export, review import",
    "predict": "what a model says about images",
    "fills": "which fill gives itself away: all fills on a recipe's own images, measured and drawn",
    "benchmark": "time, memory and distance to the floor of a recipe's GRPO step",
    "study": "several ways to train, with several seeds, and how they compare",
    "submit": "the stages of a recipe as jobs of a SLURM cluster",
    "status": "stages and jobs of a run: how far they are, what is wrong",
    "cancel": "take a run's jobs out of the queue; what they saved is kept",
}
BESIDE_RECIPE = ("fills", "benchmark", "submit")
"""Others that take a recipe too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments after the program's name; by default those of the process.

    Returns:
        Exit code: 0; 1 for an error in the input or a failed check; 2 for a wrong command line; 130
        when a signal stopped it (0 in a batch job, which then goes back into the queue).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("COGALIGN_DEBUG", "") not in ("", "0")
    from cogalign.training.interrupt import Interrupted, signals_interrupt
    from cogalign.training.requeue import exit_code

    try:
        with signals_interrupt():
            return _dispatch([argument for argument in arguments if argument != "--debug"])
    except (Interrupted, KeyboardInterrupt) as stopped:
        reason = f" ({stopped})" if str(stopped) else ""
        code = exit_code(stopped)
        command = next(iter(arguments), "")
        same = {"study": "study", **dict.fromkeys(RECIPE_COMMANDS, "run")}.get(command)
        again = "; the job goes back into the queue" if code == 0 else f"; the next `cogalign {same}` goes on"
        print(f"cogalign: stopped{reason}{again if same else ''}", file=sys.stderr)
        return code
    except BrokenPipeError:
        return EXIT_ERROR
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"cogalign: error: {_told(error)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else EXIT_USAGE
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        print(f"cogalign {__version__}")
        return 0
    if command in RECIPE_COMMANDS:
        return _recipe_command(command, rest)
    if command in OTHER_COMMANDS:
        actions = {"data": data, "review": review, "models": models, "predict": _predict, "fills": _fills,
                   "benchmark": _benchmark, "study": study, "submit": submit, "status": status, "cancel": cancel}  # fmt: skip
        return actions[command](rest)
    from cogalign.recipe_file import nearest_key

    near = nearest_key(command, [*RECIPE_COMMANDS, *OTHER_COMMANDS])
    raise UsageError(f"no command {command!r}" + (f"; did you mean {near}?" if near else " (see cogalign --help)"))


def _help() -> str:
    lines = ["usage: cogalign COMMAND ...", "", "Align multimodal LLMs to clinical cognition in GI endoscopy.", ""]
    for title, commands in (
        ("with a recipe (COMMAND RECIPE [--key.subkey value ...]):", RECIPE_COMMANDS),
        ("others:", OTHER_COMMANDS),
    ):
        lines += [title, *(f"  {name:<15} {text}" for name, text in commands.items()), ""]
    lines.append("`cogalign COMMAND --help` lists the arguments; --debug (or COGALIGN_DEBUG=1) shows tracebacks.")
    return "\n".join(lines)


def _told(error: BaseException) -> str:
    """An error for the user: one line, or its list with the lines after the first indented."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not str(error.strerror).startswith("disk full"):
        return f"disk full while writing {error.filename or 'a file'}; make room and run the same command again"
    text = error.strerror if isinstance(error, OSError) and str(error.strerror).startswith("disk full") else str(error)
    lines = [" ".join(line.split()) for line in str(text).splitlines()]
    return "\n  ".join(filter(None, lines)) or type(error).__name__


def _recipe_command(command: str, arguments: list[str]) -> int:
    """`cogalign prepare|run|sft|... RECIPE [--key.subkey value ...]`."""
    found = given(command, RECIPE_COMMANDS[command], arguments)
    if found is None:
        return 0
    if "--print-config" in found.flags:
        return found.print_config()
    phase, shard = _phase(found.values)
    recipe = found.read()
    if phase is not None:
        from cogalign.pipeline import run_phase

        run_phase(recipe, phase, shard)
        return 0
    from cogalign.pipeline import run_recipe
    from cogalign.training.launched import is_main_process

    stages = {"run": None, "prepare": []}.get(command, [command])
    run_recipe(recipe, stages, force="--force" in found.flags)
    if is_main_process():
        print(f"{recipe.run_dir / 'summary.json'} is written")
    return 0


def _phase(values: Mapping[str, str]) -> tuple[Literal["masks", "make"] | None, tuple[int, int] | None]:
    """The phase and the shard of a counterfactual job.

    Raises:
        UsageError: no such phase, no such shard, or one without the other.
    """
    found, shard = values.get("--phase"), values.get("--shard")
    if found not in (None, "masks", "make"):
        raise UsageError(f"--phase: found {found!r}, wanted masks or make")
    phase: Literal["masks", "make"] | None = None if found is None else ("masks" if found == "masks" else "make")
    if (phase == "make") != (shard is not None):
        raise UsageError(f"--phase make and --shard I/N belong together, found --phase {phase} and --shard {shard}")
    if shard is None:
        return phase, None
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shard: found {shard!r}, wanted I/N with I from 0 to N - 1, e.g. 0/4")
    return phase, (int(index), int(count))


def _predict(arguments: list[str]) -> int:
    """`cogalign predict MODEL IMAGE...`."""
    parser = Parser(prog="cogalign predict", description="What a model says about images. Not a medical device.")
    parser.add_argument("model", metavar="MODEL",
                        help="an export, a hub id, tiny, or a PEFT adapter folder (its base is read from it)")  # fmt: skip
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files")
    parser.add_argument("--question", default=None, help="question asked of each image (default: the paper's)")
    parser.add_argument("--max-completion-length", type=int, default=512, help="longest answer in tokens")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    found = parser.parse_args(arguments)
    if found.max_completion_length < 1:
        raise UsageError(f"--max-completion-length: found {found.max_completion_length}, wanted at least 1")
    from cogalign.generation.predict import predict, show

    for answer in predict(found.model, found.images, found.question, max_completion_length=found.max_completion_length):
        print(show(answer, as_json=found.json), flush=True)
    return 0


def _benchmark(arguments: list[str]) -> int:
    """`cogalign benchmark RECIPE [--key.subkey value ...] [--steps K] [--json FILE]`."""
    found = given("benchmark", OTHER_COMMANDS["benchmark"], arguments)
    if found is None:
        return 0
    wanted = found.values.get("--steps", "5")
    if not wanted.isdecimal():
        raise UsageError(f"--steps: found {wanted!r}, wanted a whole number")
    steps = int(wanted)
    if steps < 2:
        raise UsageError(f"--steps: found {steps}, wanted at least 2: the first one is a warm-up")
    target = Path(found.values["--json"]) if "--json" in found.values else None
    if target is not None and target.is_dir():
        raise UsageError(f"--json: {target} is a folder, wanted a file")
    if "--print-config" in found.flags:
        return found.print_config()
    recipe = found.read()
    from rich.console import Console

    from cogalign.grpo.benchmark import run_benchmark
    from cogalign.grpo.benchmark_summary import lines, table
    from cogalign.training.atomic import write_json
    from cogalign.training.interrupt import signals_interrupt

    with signals_interrupt():
        result = run_benchmark(recipe, steps)
    if target is not None:
        write_json(target, result)
    Console().print(table(result))
    print("\n".join([*lines(result), *([f"{target} is written"] if target is not None else [])]))
    return 0


def _fills(arguments: list[str]) -> int:
    """`cogalign fills RECIPE [--key.subkey value ...] [--fills A,B] [--limit N]`."""
    found = given("fills", OTHER_COMMANDS["fills"], arguments)
    if found is None:
        return 0
    limit = found.values.get("--limit", "200")
    if not limit.isdecimal() or int(limit) < 1:
        raise UsageError(f"--limit: found {limit!r}, wanted a whole number, at least 1")
    if "--print-config" in found.flags:
        return found.print_config()
    recipe = found.read()
    from cogalign.pipeline import run_fills

    print(run_fills(recipe, found.values.get("--fills"), int(limit)))
    return 0
