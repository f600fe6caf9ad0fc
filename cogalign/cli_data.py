"""The commands that work on case sets: `cogalign data`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

EXIT_ERROR = 1
INTERCHANGE = ("ms-swift", "llava", "trl", "trl-parquet", "colonvqa", "colonr1", "vlmevalkit",
               "kvasir-vqa-x1-parquet")  # fmt: skip
"""Formats that `data import` takes in place of a card."""
EXPORTS = tuple(name for name in INTERCHANGE if name != "kvasir-vqa-x1-parquet")
"""Formats that `data export` writes."""


class UsageError(ValueError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """Argparse that raises instead of leaving, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`."""
        raise UsageError(f"{message} (see {self.prog} --help)")


Action = Callable[[argparse.Namespace], int]


def data(arguments: list[str]) -> int:
    """`cogalign data COMMAND ...`: case sets from public data sets to training."""
    parser = Parser(prog="cogalign data", description="Make, join, split, annotate, check and convert case sets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    actions: dict[str, Action] = {}
    for name, (text, options, action) in _COMMANDS.items():
        options(commands.add_parser(name, help=text, description=text))
        actions[name] = action
    found = parser.parse_args(arguments)
    from cogalign.training.interrupt import signals_interrupt

    with signals_interrupt():
        return actions[found.command](found)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _dir(parser: argparse.ArgumentParser, name: str = "dir", text: str = "folder of the case set") -> None:
    parser.add_argument(name, type=Path, metavar=name.upper(), help=text)


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes; default: one a core")


def _phantom_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser, "out")
    parser.add_argument("--n", type=int, default=200, help="images of the split train; a fifth in each other split")
    parser.add_argument("--seed", type=int, default=3, help="seed of the generator")
    parser.add_argument("--confounding", type=float, default=0.95,
                        help="probability that the background tells the finding")  # fmt: skip
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")


def _phantom(found: argparse.Namespace) -> int:
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

    write_phantom(settings, found.out)
    print(f"{found.out} is written: {found.n} train, {rest} each in validation, test and test_shifted")
    return 0


def _cards_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("card", nargs="?", metavar="CARD", help="id or file of a card, to show it whole")


def _cards(found: argparse.Namespace) -> int:
    from cogalign.data.cards.show import card_lines, card_table

    if found.card is not None:
        _say(card_lines(found.card))
        return 0
    from rich.console import Console

    Console().print(card_table())
    return 0


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("card", metavar="CARD",
                        help=f"a card (`cogalign data cards` lists them; or its file), or {', '.join(INTERCHANGE)}")  # fmt: skip
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of the data set, or file of the format")
    _dir(parser, "out", "folder of the new case set")
    parser.add_argument("--images", choices=("copy", "reference"), default="copy",
                        help="copy the files as they are (default) or refer to them by symbolic links")  # fmt: skip
    parser.add_argument("--side", type=int, default=None, metavar="N", help="resize all to squares of N pixels")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="at most N cases for each finding")
    parser.add_argument("--images-root", type=Path, default=None, metavar="DIR",
                        help="formats: folder that holds the images (default: that of SRC)")  # fmt: skip
    parser.add_argument("--split", default=None, help="formats: split of all rows; default: what rows and names tell")
    _workers(parser)


def _import(found: argparse.Namespace) -> int:
    _positive(found, "side", "limit", "workers")
    if found.card in INTERCHANGE:
        from cogalign.data.interchange.commands import import_interchange

        summary = import_interchange(found.card, found.src, found.out, found.images_root, split=found.split)
        _say(summary.lines())
        return 0
    from cogalign.data.cards.find import read_card
    from cogalign.data.importers.importer import import_card

    done = import_card(
        read_card(found.card), found.src, found.out,
        images=found.images, side=found.side, limit=found.limit, workers=found.workers,
    )  # fmt: skip
    _say(done.lines())
    return 0


def _merge_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser, "out", "folder of the new case set")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="folders of case sets")
    parser.add_argument("--require", choices=("commercial", "redistribution"), default=None,
                        help="refuse data sets whose licence does not allow this")  # fmt: skip
    parser.add_argument("--drop-duplicates", action="store_true", help="keep one case of each photograph")
    _workers(parser)


def _merge(found: argparse.Namespace) -> int:
    from cogalign.data.merge import merge_case_sets

    summary = merge_case_sets(
        found.sets, found.out, require=found.require, drop_duplicates=found.drop_duplicates, workers=found.workers
    )
    print(summary.text())
    return 0


def _overview_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser)


def _overview(found: argparse.Namespace) -> int:
    from cogalign.data.caseset import read_case_set
    from cogalign.data.overview import write_overview

    out = found.dir / "overview"
    write_overview(read_case_set(found.dir), out)
    print(f"{out} is written")
    return 0


def _split_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser)
    parser.add_argument("--method", choices=tuple(_SPLIT_OPTIONS), default="stratified",
                        help="drawn by label and group (default), the data sets' own, or the paper's protocol")  # fmt: skip
    parser.add_argument("--test-share", type=float, default=None,
                        help="stratified, official with --rest stratify: share of the cases that go to test (default 0.2)")  # fmt: skip
    parser.add_argument("--validation-share", type=float, default=None,
                        help="share that goes to validation; default: half of --test-share, of the rest (paper: none)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=3, help="seed of the draw")
    parser.add_argument("--fold", type=int, default=None, help="official: this fold is test")
    parser.add_argument("--rest", choices=("train", "leave_out", "stratify"), default=None,
                        help="official: where cases without an official split go (default train)")  # fmt: skip
    parser.add_argument("--repair", action="store_true", default=None,
                        help="official: move the smaller side of a group that crosses splits to the larger")  # fmt: skip
    parser.add_argument("--image-level", action="store_true", default=None,
                        help="paper: split by image, as the paper, instead of by group; the report will show what leaks")  # fmt: skip
    _workers(parser)


_SPLIT_OPTIONS: dict[str, tuple[str, ...]] = {
    "stratified": ("test_share", "validation_share"),
    "official": ("fold", "rest", "repair", "test_share", "validation_share"),
    "paper": ("validation_share", "image_level"),
}
"""What each method takes, besides the seed."""


def _split_usage(found: argparse.Namespace) -> None:
    """Raise a `UsageError` for an option that the method, or its way with the rest, does nothing with."""
    for name in dict.fromkeys(name for names in _SPLIT_OPTIONS.values() for name in names):
        if getattr(found, name) is None:
            continue
        option = f"--{name.replace('_', '-')}"
        if name not in _SPLIT_OPTIONS[found.method]:
            takers = " or ".join(method for method, names in _SPLIT_OPTIONS.items() if name in names)
            raise UsageError(f"{option}: does nothing with --method {found.method}, wanted --method {takers}")
        if found.method == "official" and name.endswith("_share") and found.rest != "stratify":
            raise UsageError(f"{option}: does nothing with --method official, wanted --rest stratify with it")


def _split(found: argparse.Namespace) -> int:
    from cogalign.data.splits import split_case_set

    _split_usage(found)
    summary = split_case_set(
        found.dir, found.method, test_share=0.2 if found.test_share is None else found.test_share,
        validation_share=found.validation_share, seed=found.seed, fold=found.fold, rest=found.rest or "train",
        grouped=not found.image_level, repair=bool(found.repair), workers=found.workers,
    )  # fmt: skip
    _say(summary.lines())
    return EXIT_ERROR if summary.failed else 0


def _leaks_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser)
    parser.add_argument("--fresh", action="store_true", help="decode all images again; trust no fingerprints.npz")
    _workers(parser)


def _leaks(found: argparse.Namespace) -> int:
    from cogalign.data.caseset import read_case_set
    from cogalign.data.leaks import find_leaks, write_leak_report

    report = find_leaks(read_case_set(found.dir), workers=found.workers, fresh=found.fresh)
    write_leak_report(report, found.dir)
    _say(report.lines())
    return EXIT_ERROR if report.failed else 0


def _annotate_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser)
    parser.add_argument("--teacher", choices=("template", "endpoint"), default="template",
                        help="template: offline, says what the annotation supports; endpoint: a multimodal LLM")  # fmt: skip
    parser.add_argument("--url", default=None, help="endpoint, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default=None, help="name of the model at the endpoint")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="NAME",
                        help="environment variable that holds the key")  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=4, help="requests under way at once")
    parser.add_argument("--requests-per-minute", type=float, default=None, help="rate limit")
    parser.add_argument("--tokens-per-minute", type=int, default=None, help="rate limit")
    parser.add_argument("--timeout", type=float, default=60.0,
                        help="seconds that one request may take, to the last byte of the answer")  # fmt: skip
    parser.add_argument("--retries", type=int, default=3, help="times that a failed request is sent again")
    parser.add_argument("--max-completion-length", type=int, default=2048,
                        help="longest answer in tokens; what a model thinks counts too")  # fmt: skip
    parser.add_argument("--attempts", type=int, default=3, help="answers asked for until one passes the checks")
    parser.add_argument("--splits", nargs="+", default=None, metavar="SPLIT",
                        help="only these splits; by default all but left_out")  # fmt: skip
    parser.add_argument("--limit", type=int, default=None, help="at most so many cases")
    parser.add_argument("--price-in", type=float, default=None, help="price of a million input tokens")
    parser.add_argument("--price-out", type=float, default=None, help="price of a million output tokens")
    parser.add_argument("--max-cost", type=float, default=None, help="stop before this cost is passed")
    parser.add_argument("--image-side", type=int, default=1024, help="longest side of the pictures that are sent")
    parser.add_argument("--reasoning-effort", default=None, help="for models that think, e.g. low")
    parser.add_argument("--overwrite", action="store_true",
                        help="also reports that came with the case set; never what a person has passed or revised")  # fmt: skip
    parser.add_argument("--estimate", action="store_true", help="say what it would cost, ask nothing")


def _annotate(found: argparse.Namespace) -> int:
    from cogalign.data.annotation.annotate import annotate_case_set
    from cogalign.data.annotation.settings import AnnotateSettings
    from cogalign.models.endpoint import EndpointSettings

    if found.teacher == "endpoint" and not (found.url and found.model):
        raise UsageError("--teacher endpoint: wanted --url and --model")
    endpoint = EndpointSettings(
        url=found.url or "", model=found.model or "", api_key_env=found.api_key_env, concurrency=found.concurrency,
        timeout=found.timeout, retries=found.retries, requests_per_minute=found.requests_per_minute,
        tokens_per_minute=found.tokens_per_minute, max_completion_length=found.max_completion_length,
        reasoning_effort=found.reasoning_effort,
    )  # fmt: skip
    settings = AnnotateSettings(
        teacher=found.teacher, endpoint=endpoint if found.teacher == "endpoint" else None, attempts=found.attempts,
        splits=tuple(found.splits) if found.splits else None, limit=found.limit,
        price_in=found.price_in, price_out=found.price_out, max_cost=found.max_cost,
        image_side=found.image_side, overwrite=found.overwrite,
    )  # fmt: skip
    summary = annotate_case_set(found.dir, settings, estimate_only=found.estimate)
    _say(summary.lines())
    return EXIT_ERROR if summary.unanswered else 0


def _export_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--format", required=True, choices=EXPORTS, help="whose format")
    parser.add_argument("--splits", nargs="+", default=None, metavar="SPLIT", help="only these splits")
    parser.add_argument("--images", choices=("copy", "reference", "relative"), default="copy",
                        help="copy images beside the file, link to them, or name them where they lie")  # fmt: skip
    parser.add_argument("--require", choices=("commercial", "redistribution"), default=None,
                        help="refuse if a data set's licence does not allow this")  # fmt: skip


def _export(found: argparse.Namespace) -> int:
    from cogalign.data.interchange.commands import export_case_set

    summary = export_case_set(
        found.dir, found.out, found.format, splits=found.splits, images=found.images, require=found.require
    )
    _say(summary.lines())
    return 0


def _check_options(parser: argparse.ArgumentParser) -> None:
    _dir(parser)
    _workers(parser)


def _check(found: argparse.Namespace) -> int:
    from rich.console import Console

    from cogalign.data.check import check_case_set, format_table

    problems = check_case_set(found.dir, workers=found.workers)
    if not problems:
        print(f"{found.dir}: no problems")
        return 0
    Console().print(format_table(problems))
    return EXIT_ERROR


def _positive(found: argparse.Namespace, *names: str) -> None:
    """Raise a `UsageError` for an option that is given and below 1."""
    for name in names:
        value = getattr(found, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: found {value}, wanted at least 1")


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Action]] = {
    "cards": ("list the public data sets that can be imported, or show one card", _cards_options, _cards),
    "import": ("a public data set, or a file of another tool, as a case set", _import_options, _import),
    "merge": ("one case set of several: duplicates share a group, overlays are flagged", _merge_options, _merge),
    "overview": ("plots of classes and sources, licences, overlays", _overview_options, _overview),
    "check": ("list all problems of a case set; exit code 1 if there are any", _check_options, _check),
    "split": ("set the splits; exit code 1 if something leaks or a split is empty", _split_options, _split),
    "leaks": ("what of one split is in another; exit code 1 if anything is", _leaks_options, _leaks),
    "annotate": ("clinical reports and keywords by a teacher", _annotate_options, _annotate),
    "export": ("a case set in the format of another tool", _export_options, _export),
    "phantom": ("make a case set of phantoms: procedural endoscopy", _phantom_options, _phantom),
}
COMMANDS: Sequence[str] = tuple(_COMMANDS)
"""What `cogalign data` can do."""
