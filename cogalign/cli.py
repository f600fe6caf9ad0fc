"""The commands. Thin: a command reads its arguments, then imports what it needs."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogalign import __version__
from cogalign.cli_data import COMMANDS as DATA_COMMANDS
from cogalign.cli_data import EXIT_ERROR, Parser, UsageError, data
from cogalign.cli_review import review

if TYPE_CHECKING:
    from cogalign.recipe import Recipe

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
FLAGS = ("--force", "--print-config", "--debug")
BENCHMARK_OPTIONS = {"--steps": "K", "--json": "FILE"}
FILLS_OPTIONS = {"--fills": "A,B", "--limit": "N"}
OWN_OPTIONS = {"benchmark": "[--steps K] [--json FILE]", "fills": "[--fills A,B] [--limit N]"}

RECIPE_COMMANDS = {
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
    "review": "masks, reports and verdicts to experts and back: review export, review import",
    "predict": "what a model says about images",
    "fills": "which fill gives itself away: all fills on a recipe's own images, measured and drawn",
    "benchmark": "time, memory and distance to the floor of a recipe's GRPO step",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments after the program's name; by default those of the process.

    Returns:
        Exit code: 0; 1 for an error in the input or a failed check; 2 for a wrong command line; 130
        when a signal stopped it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("COGALIGN_DEBUG", "") not in ("", "0")
    from cogalign.training.interrupt import Interrupted

    try:
        return _dispatch([argument for argument in arguments if argument != "--debug"])
    except (Interrupted, KeyboardInterrupt) as stopped:
        reason = f" ({stopped})" if str(stopped) else ""
        again = "; the next `cogalign run` goes on" if arguments[:1] and arguments[0] in RECIPE_COMMANDS else ""
        print(f"cogalign: stopped{reason}{again}", file=sys.stderr)
        return EXIT_INTERRUPTED
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
        return {"data": data, "review": review, "predict": _predict, "fills": _fills, "benchmark": _benchmark}[command](
            rest
        )
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
    """`cogalign run|sft|... RECIPE [--key.subkey value ...]`."""
    parser = _recipe_parser(command)
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        return 0
    path, overrides, flags = _split_arguments(command, arguments)
    recipe = _read_recipe(path, parser, overrides)
    if "--print-config" in flags:
        return _print_config(recipe)
    from cogalign.pipeline import run_recipe

    run_recipe(recipe, None if command == "run" else [command], force="--force" in flags)
    print(f"{recipe.run_dir / 'summary.json'} is written")
    return 0


def _read_recipe(path: Path, parser: Any, overrides: list[str]) -> Recipe:
    """The recipe of a file with the overrides of the command line."""
    from cogalign.recipe_file import build_recipe, read_mapping

    return build_recipe(_merge(read_mapping(path), _parse_overrides(parser, overrides)), str(path))


def _print_config(recipe: Recipe) -> int:
    from cogalign.recipe_file import recipe_yaml

    print(recipe_yaml(recipe), end="")
    return 0


def _recipe_parser(command: str) -> Any:
    """The parser of a command with a recipe: an option for every key, from the dataclasses."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    from cogalign.recipe import Recipe

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    own = OWN_OPTIONS.get(command, "[--force]")
    text = {**RECIPE_COMMANDS, **OTHER_COMMANDS}[command]
    parser = ArgumentParser(
        prog=f"cogalign {command}",
        usage=f"cogalign {command} RECIPE [--key.subkey value ...] [--out DIR] {own} [--print-config]",
        description=f"{text}. RECIPE is a YAML file; each of its keys is an option too.",
        exit_on_error=False,
    )
    if command == "benchmark":
        parser.add_argument("--steps", metavar="K", default=5, help="optimizer steps; the first is a warm-up")
        parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    elif command == "fills":
        parser.add_argument("--fills", metavar="A,B", help="the fills, e.g. gaussian_blur,texture; all by default")
        parser.add_argument("--limit", metavar="N", default=200, help="cases with lesions on which they are tried")
    else:
        parser.add_argument("--force", action="store_true", help="run again what is finished")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and do nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(Recipe, None)
    return parser


def _split_arguments(
    command: str, arguments: list[str], flags_known: Sequence[str] = FLAGS, also: Sequence[str] = ()
) -> tuple[Path, list[str], set[str]]:
    """The recipe's path, the overrides and the flags of a command line.

    Args:
        command: its name, for messages.
        arguments: the words after it.
        flags_known: the flags that it has.
        also: options that were taken out of `arguments` before, for the nearest one in messages.

    Raises:
        UsageError: no recipe, more than one, or an option that no recipe has (the nearest is named).
    """
    from cogalign.recipe_file import nearest_key, recipe_keys

    paths, overrides, flags = [], [], set()
    rest = iter(arguments)
    for argument in rest:
        if argument in flags_known:
            flags.add(argument)
        elif argument.startswith("--"):
            key = argument[2:].split("=", 1)[0]
            if key not in recipe_keys():
                near = nearest_key(key, (*(flag[2:] for flag in (*flags_known, *also)), *recipe_keys()))
                raise UsageError(f"no option --{key}" + (f"; did you mean --{near}?" if near else ""))
            overrides.append(argument)
            if "=" not in argument:
                value = next(rest, None)
                if value is None:
                    raise UsageError(f"--{key} needs a value")
                overrides.append(value)
        else:
            paths.append(argument)
    if len(paths) != 1:
        found = "no recipe" if not paths else f"{len(paths)} recipes: {', '.join(paths)}"
        raise UsageError(f"found {found}, wanted one: cogalign {command} RECIPE [--key.subkey value ...]")
    return Path(paths[0]), overrides, flags


def _parse_overrides(parser: Any, overrides: list[str]) -> dict[str, Any]:
    """The overrides as nested mappings; only the keys that were given.

    Raises:
        UsageError: a value of the wrong type.
    """
    if not overrides:
        return {}
    # One `--key=value` word each: a value such as -1 is no option.
    words, pairs = [], iter(overrides)
    for word in pairs:
        words.append(word if "=" in word else f"{word}={next(pairs)}")
    for word in words:
        try:
            parser.parse_args([word], defaults=False)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            key, value = word[2:].split("=", 1)
            wanted = str(error).replace("<class '", "").replace("'>", "").split("Expected a")[-1].split(".")[0].strip()
            hint = f", wanted {wanted}" if "Expected a" in str(error) else f": {' '.join(str(error).split())}"
            raise UsageError(f"--{key}: found {value!r}{hint}") from None
    content: dict[str, Any] = parser.parse_args(words, defaults=False).as_dict()
    return {key: value for key, value in content.items() if f"--{key.replace('_', '-')}" not in FLAGS}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over others; anything that is no mapping replaces what was there."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            _merge(below if isinstance(below, Mapping) else {}, value) if isinstance(value, Mapping) else value
        )
    return merged


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
    found = _recipe_and_options("benchmark", arguments, BENCHMARK_OPTIONS)
    if found is None:
        return 0
    read, given, only_print = found
    if not given.get("--steps", "5").isdecimal():
        raise UsageError(f"--steps: found {given['--steps']!r}, wanted a whole number")
    steps = int(given.get("--steps", 5))
    if steps < 2:
        raise UsageError(f"--steps: found {steps}, wanted at least 2: the first one is a warm-up")
    target = Path(given["--json"]) if "--json" in given else None
    if target is not None and target.is_dir():
        raise UsageError(f"--json: {target} is a folder, wanted a file")
    recipe = read()
    if only_print:
        return _print_config(recipe)
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
    found = _recipe_and_options("fills", arguments, FILLS_OPTIONS)
    if found is None:
        return 0
    read, given, only_print = found
    if not given.get("--limit", "200").isdecimal() or int(given.get("--limit", 200)) < 1:
        raise UsageError(f"--limit: found {given['--limit']!r}, wanted a whole number, at least 1")
    recipe = read()
    if only_print:
        return _print_config(recipe)
    from cogalign.pipeline import run_fills

    print(run_fills(recipe, given.get("--fills"), int(given.get("--limit", 200))))
    return 0


def _recipe_and_options(
    command: str, arguments: list[str], names: Mapping[str, str]
) -> tuple[Callable[[], Recipe], dict[str, str], bool] | None:
    """A reader of the recipe, own options and whether to print it alone, of a command beside the stages; None: help.

    Raises:
        UsageError: as `_split_arguments` and `_take_options`.
    """
    parser = _recipe_parser(command)
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        return None
    given, rest = _take_options(arguments, names)
    path, overrides, flags = _split_arguments(command, rest, ("--print-config", "--debug"), (*names,))
    return partial(_read_recipe, path, parser, overrides), given, "--print-config" in flags


def _take_options(arguments: list[str], names: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The values of some options (`--name value` or `--name=value`), and the other words.

    Raises:
        UsageError: an option has no value.
    """
    found, others, rest = {}, [], iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in names:
            others.append(word)
            continue
        taken = value if equals else next(rest, None)
        if not taken:
            raise UsageError(f"{name} needs a value")
        found[name] = taken
    return found, others
