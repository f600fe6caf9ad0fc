"""`cogalign study`: several ways of training one recipe, run side by side and judged alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cogalign.cli_data import Parser, UsageError

if TYPE_CHECKING:
    from cogalign.study.plan import Plan

WITH_VALUE = ("--out", "--arms", "--seeds")
FLAGS = ("--results", "--dry-run", "--debug")


def study(arguments: list[str]) -> int:
    """`cogalign study STUDY [--out DIR] [--arms A,B] [--seeds 1,2] [--dry-run] [--results] [--key.subkey value ...]`."""
    if "-h" in arguments or "--help" in arguments:
        _parser().print_help()
        return 0
    from cogalign.cli_recipe import parse_overrides, recipe_parser, split_arguments, take_options

    values, rest = take_options(arguments, WITH_VALUE)
    try:
        path, words, flags = split_arguments("study", rest, FLAGS, WITH_VALUE)
    except UsageError as error:
        if str(error).startswith("found "):  # it speaks of recipes
            raise UsageError("wanted one study: cogalign study STUDY [--key.subkey value ...]") from None
        raise
    overrides = parse_overrides(recipe_parser("study", ""), words)
    from cogalign.study.plan import make_plan
    from cogalign.study.run import listing, results_of_finished, run_study

    if "--results" in flags and ("--arms" in values or "--seeds" in values):
        raise UsageError("--results takes all that is finished; leave out --arms and --seeds")
    plan = make_plan(path, Path(values["--out"]) if "--out" in values else None, overrides)
    chosen = _chosen(plan, values)
    if "--dry-run" in flags:
        print(listing(plan, chosen))
        return 0
    if "--results" in flags:
        results_of_finished(plan)
        return 0
    return run_study(plan, chosen)


def _parser() -> Parser:
    """For the help."""
    parser = Parser(
        prog="cogalign study",
        usage="cogalign study STUDY [--out DIR] [--arms A,B] [--seeds 1,2] [--dry-run] [--results] [--key.subkey value ...]",
        description="Train one recipe in several ways (arms), each with several seeds, judge all alike and compare them. "
        "The same command, given again or in several shells at once, shares the work and goes on where it stopped.",
        epilog="Each key of a recipe is an option too (see cogalign run --help); it goes before what the study says.",
    )
    parser.add_argument("study", metavar="STUDY", help="a YAML file, e.g. studies/smol-kvasir.yaml")
    parser.add_argument("--out", metavar="DIR", help="the study's folder (default: runs/<name>)")
    parser.add_argument("--arms", metavar="A,B", help="only these arms, and those from which they start")
    parser.add_argument("--seeds", metavar="1,2", help="only these seeds")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs in order, with their steps, and do nothing"
    )
    parser.add_argument(
        "--results", action="store_true", help="write the results from what is finished, and run nothing"
    )
    return parser


def _chosen(plan: Plan, values: dict[str, str]) -> set[str] | None:
    """Names of the runs that `--arms` and `--seeds` ask for; None for all."""
    if "--arms" not in values and "--seeds" not in values:
        return None
    from cogalign.study.run import runs_of

    seeds = [str(seed) for seed in plan.study.seeds]
    arms = _some("--arms", values, list(plan.study.arms))
    return runs_of(plan, arms, [int(seed) for seed in _some("--seeds", values, seeds)])


def _some(option: str, values: dict[str, str], known: list[str]) -> list[str]:
    """The words of a list on the command line; all that are known where it is not given.

    Raises:
        UsageError: a word that is not known.
    """
    from cogalign.recipe_file import nearest_key

    if option not in values:
        return known
    found = [word for word in values[option].strip("[]").replace(" ", "").split(",") if word]
    for word in found or [""]:
        if word not in known:
            near = nearest_key(word, known)
            hint = f"; did you mean {near}?" if near else ""
            raise UsageError(f"{option}: found {word!r}, wanted some of {', '.join(known)}{hint}")
    return found
