"""The commands that work on case sets: `cogalign data` and `cogalign review`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

EXIT_ERROR = 1


class UsageError(ValueError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """Argparse that raises instead of leaving, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def data(arguments: list[str]) -> int:
    """`cogalign data phantom OUT ...` and `cogalign data check DIR`."""
    parser = Parser(prog="cogalign data", description="Make and check case sets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    phantom = commands.add_parser("phantom", help="make a case set of phantoms: procedural endoscopy")
    phantom.add_argument("out", type=Path, metavar="OUT", help="folder of the case set")
    phantom.add_argument("--n", type=int, default=200, help="images of the split train; a fifth in each other split")
    phantom.add_argument("--seed", type=int, default=3, help="seed of the generator")
    phantom.add_argument("--confounding", type=float, default=0.95,
                         help="probability that the background tells the finding")  # fmt: skip
    phantom.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    check = commands.add_parser("check", help="list all problems of a case set; exit code 1 if there are any")
    check.add_argument("dir", type=Path, metavar="DIR", help="folder of the case set")
    found = parser.parse_args(arguments)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {"phantom": _data_phantom, "check": _data_check}
    return actions[found.command](found)


def _data_phantom(found: argparse.Namespace) -> int:
    from cogalign.recipe import PhantomSettings

    if found.n < 1:
        raise UsageError(f"--n: found {found.n}, wanted at least 1")
    rest = max(1, found.n // 5)
    settings = PhantomSettings(
        train=found.n, validation=rest, test=rest, size=found.size, seed=found.seed, confounding=found.confounding
    )
    if found.out.is_dir() and any(found.out.iterdir()):
        raise FileExistsError(f"{found.out}: is not empty; give a new folder")
    from cogalign.data.phantom import write_phantom
    from cogalign.training.interrupt import signals_interrupt

    with signals_interrupt():
        write_phantom(settings, found.out)
    print(f"{found.out} is written: {found.n} train, {rest} each in validation, test and test_shifted")
    return 0


def _data_check(found: argparse.Namespace) -> int:
    from rich.console import Console

    from cogalign.data.check import check_case_set, format_table

    problems = check_case_set(found.dir)
    if not problems:
        print(f"{found.dir}: no problems")
        return 0
    Console().print(format_table(problems))
    return EXIT_ERROR


def review(arguments: list[str]) -> int:
    """`cogalign review export CASE_SET OUT ...` and `cogalign review import CASE_SET FILE... --out DIR`."""
    parser = Parser(prog="cogalign review", description="Masks and verdicts to experts and back.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write a case set for CVAT, Label Studio and other tools")
    export.add_argument("case_set", type=Path, metavar="CASE_SET", help="folder of the case set")
    export.add_argument("out", type=Path, metavar="OUT", help="coco: the JSON file; label-studio: a new folder")
    export.add_argument("--format", default="coco", help="coco (default) or label-studio")
    export.add_argument("--images", default="link", help="label-studio: link to the images (default) or inline them")
    back = commands.add_parser("import", help="a new case set with refined masks and without what was rejected")
    back.add_argument("case_set", type=Path, metavar="CASE_SET", help="folder of the case set; it stays as it is")
    back.add_argument("files", type=Path, metavar="FILE", nargs="+",
                      help="COCO files, Label Studio exports, verdicts.json of a gallery")  # fmt: skip
    back.add_argument("--out", type=Path, metavar="DIR", required=True, help="the new folder")
    found = parser.parse_args(arguments)
    from cogalign.data.review.commands import export_review, import_review

    if found.command == "export":
        print(export_review(found.case_set, found.out, found.format, found.images))
        return 0
    done = import_review(found.files, found.case_set, found.out)
    print(f"{found.out} is written: " + ", ".join(f"{number} {what}" for what, number in done.items()))
    return 0
