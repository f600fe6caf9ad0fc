"""Reading a recipe and its overrides from the words of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogalign.cli_data import UsageError

if TYPE_CHECKING:
    from cogalign.recipe import Recipe

FLAGS = ("--force", "--print-config", "--debug")


@dataclass(frozen=True)
class Option:
    """An option of a command beside the recipe's keys."""

    name: str
    help: str
    metavar: str | None = None
    """None: a flag without a value."""


FORCE = Option("--force", "run again what is finished")
OPTIONS: dict[str, tuple[Option, ...]] = {
    "benchmark": (
        Option("--steps", "optimizer steps, 5 by default; the first is a warm-up", "K"),
        Option("--json", "write the numbers there too", "FILE"),
    ),
    "fills": (
        Option("--fills", "the fills, e.g. gaussian_blur,texture; all by default", "A,B"),
        Option("--limit", "cases with lesions on which they are tried, 200 by default", "N"),
    ),
    "counterfactual": (
        Option(
            "--phase", "only a part of the stage: `masks` (find them), then `make` (its shard of the pictures)", "PHASE"
        ),
        Option("--shard", "with `--phase make`: which part of how many, from 0, e.g. 2/8", "I/N"),
        FORCE,
    ),
    "submit": (
        Option("--cluster", "the cluster profile, e.g. slurm/gpu.yaml", "FILE"),
        Option("--stages", "only these of the recipe's stages, e.g. sft,grpo", "A,B"),
        Option("--dry-run", "print the scripts and submit nothing"),
    ),
}
"""Options of commands that have others than `--force`."""


def options_of(command: str) -> tuple[Option, ...]:
    """The options of a command beside the recipe's keys, `--print-config` and `--debug`."""
    return OPTIONS.get(command, (FORCE,))


@dataclass(frozen=True)
class Given:
    """What a command line gave: how to read the recipe, options with a value, flags."""

    read: Callable[[], Recipe]
    values: dict[str, str]
    flags: set[str]

    def print_config(self) -> int:
        """Print the resolved recipe; returns the exit code."""
        from cogalign.recipe_file import recipe_yaml

        print(recipe_yaml(self.read()), end="")
        return 0


def given(command: str, text: str, arguments: list[str]) -> Given | None:
    """Read the command line of a command with a recipe; None after its help was printed.

    Args:
        command: its name.
        text: what it does, for its help.
        arguments: the words after it.

    Raises:
        UsageError: as `split_arguments` and `take_options`.
    """
    parser = recipe_parser(command, text)
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        return None
    with_value = [option.name for option in options_of(command) if option.metavar is not None]
    known = (*(option.name for option in options_of(command) if option.metavar is None), "--print-config", "--debug")
    values, rest = take_options(arguments, with_value)
    path, overrides, flags = split_arguments(command, rest, known, with_value)
    return Given(partial(read_recipe, path, parser, overrides), values, flags)


def read_recipe(path: Path, parser: Any, overrides: list[str]) -> Recipe:
    """The recipe of a file with the overrides of the command line."""
    from cogalign.recipe_file import build_recipe, read_mapping

    return build_recipe(merge(read_mapping(path), parse_overrides(parser, overrides)), str(path))


def recipe_parser(command: str, text: str) -> Any:
    """The parser of a command with a recipe: an option for every key, from the dataclasses."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    from cogalign.recipe import Recipe

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    options = options_of(command)
    own = " ".join(f"[{option.name}{f' {option.metavar}' if option.metavar else ''}]" for option in options)
    parser = ArgumentParser(
        prog=f"cogalign {command}",
        usage=f"cogalign {command} RECIPE [--key.subkey value ...] [--out DIR] {own} [--print-config]",
        description=f"{text}. RECIPE is a YAML file; each of its keys is an option too.",
        exit_on_error=False,
    )
    for option in options:
        if option.name == "--stages":
            continue  # a key of the recipe too, which has its own help
        if option.metavar is None:
            parser.add_argument(option.name, action="store_true", help=option.help)
        else:
            parser.add_argument(option.name, metavar=option.metavar, help=option.help)
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and do nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(Recipe, None)
    return parser


def split_arguments(
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


def parse_overrides(parser: Any, overrides: list[str]) -> dict[str, Any]:
    """The overrides as nested mappings; only the keys that were given.

    Raises:
        UsageError: a value of the wrong type.
    """
    if not overrides:
        return {}
    from cogalign.recipe_file import recipe_keys

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
    return {key: value for key, value in content.items() if key in recipe_keys()}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over others; anything that is no mapping replaces what was there."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below if isinstance(below, Mapping) else {}, value) if isinstance(value, Mapping) else value
    return merged


def take_options(arguments: list[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
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
