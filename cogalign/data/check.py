"""Everything that is wrong with a case set, in one pass: `cogalign data check DIR`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

from cogalign.cognition.anatomy import ORGANS
from cogalign.cognition.taxonomy import FINDINGS, nearest
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, parse_rows
from cogalign.data.fingerprints import complete_fingerprints
from cogalign.data.images import Fingerprint, fingerprint, load_mask, load_rgb
from cogalign.data.parallel import each
from cogalign.data.paths import file_stem, inside, split_word
from cogalign.data.splits import LEFT_OUT, group_of

_FIELD_MESSAGE = re.compile(r"field '([^']+)': (.*)", re.DOTALL)
_CHECKED_FILES = ("file_name", "mask_file_name", "source_file_name")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    line: int | None
    """Line of `metadata.jsonl`, from 1; None if the problem is not in a line."""
    case_id: str | None
    field: str
    found: str
    wanted: str

    def __str__(self) -> str:
        """One plain line of text."""
        where = f"line {self.line}" if self.line is not None else METADATA
        case = f" case {self.case_id!r}" if self.case_id is not None else ""
        return f"{where}{case} {self.field}: found {self.found}, wanted {self.wanted}"


def check_case_set(root: str | Path, workers: int | None = None) -> list[Problem]:
    """All problems of a case set, in the order of its lines; an empty list means that it is fit for training.

    Every image and mask is decoded, in `workers` processes (default: one a processor). Since that is the dear part,
    `fingerprints.npz` is completed on the way, if the folder can be written to: splits and leak reports then decode
    nothing. Entries of unchanged files stay as they are, since those of an import are of the original photographs. Bad content never raises: whatever is wrong becomes a `Problem`. Repeated photographs are no problem here;
    `cogalign data leaks` looks for them.

    Raises:
        ValueError: `workers` is below 1.
    """
    folder = Path(root)
    if not folder.is_dir():
        return [Problem(None, None, "folder", f"no folder {folder}", f"a folder of images with a {METADATA}")]
    if not (folder / METADATA).is_file():
        return [Problem(None, None, METADATA, "no such file", f"a {METADATA} in {folder}, one JSON object a line")]
    numbered: list[tuple[int, Case]] = []
    problems: list[Problem] = []
    try:
        for line, row, case in parse_rows(folder / METADATA):
            if isinstance(case, str):
                problems.append(_unparsed(line, row, case))
            else:
                numbered.append((line, case))
    except OSError as error:
        return [Problem(None, None, METADATA, str(error), "a file that can be read")]
    if not numbered and not problems:
        problems.append(Problem(None, None, METADATA, "no case", "one JSON object a line"))
    shared: dict[str, list[tuple[int, Case]]] = defaultdict(list)  # questions may share an image: it is decoded once
    for line, case in numbered:
        shared[case.file_name].append((line, case))
    items = [(folder, [case for _, case in cases]) for cases in shared.values()]
    prints: dict[str, Fingerprint] = {}
    results = each(_checked, items, "check", workers) if items else ()
    for (name, cases), (found, print_) in zip(shared.items(), results, strict=True):
        for (line, case), rest in zip(cases, found, strict=True):
            problems.extend(Problem(line, case.id, *one) for one in rest)
        if print_ is not None:
            prints[name] = print_
    if prints:
        complete_fingerprints(folder, prints)
    problems.extend(_repeats(numbered))
    problems.extend(_crossing_groups(numbered))
    problems.extend(_links(numbered))
    return sorted(problems, key=lambda problem: problem.line or 0)


def format_table(problems: Sequence[Problem], limit: int = 200) -> Table:
    """The problems as a table for a rich console, at most `limit` of them; the caption counts the rest."""
    table = Table("line", "case", "field", "found", "wanted")
    table.title = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    for problem in problems[:limit]:
        cells = ("" if problem.line is None else str(problem.line), problem.case_id or "", problem.field,
                 problem.found, problem.wanted)  # fmt: skip
        table.add_row(*(Text(_short(cell)) for cell in cells))
    if len(problems) > limit:
        table.caption = f"and {len(problems) - limit} more"
    return table


def _unparsed(line: int, row: dict[str, Any] | None, message: str) -> Problem:
    """The problem of a row that is no case."""
    case_id = row.get("id") if row else None
    match = _FIELD_MESSAGE.match(message)
    field, rest = (match.group(1), match.group(2)) if match else ("row", message)
    found, _, wanted = rest.removeprefix("found ").partition(", wanted ")
    wanted = wanted or "one JSON object with the fields of a case"
    return Problem(line, case_id if isinstance(case_id, str) else None, field, _short(found), wanted)


Found = tuple[str, str, str]
"""Field, what was found, what is wanted."""


def _checked(item: tuple[Path, Sequence[Case]]) -> tuple[list[list[Found]], Fingerprint | None]:
    """Problems of each case of one image, and the image's fingerprint if it can be read. A worker calls it."""
    folder, cases = item
    image = _image(folder, cases[0].file_name)
    found = [list(_case_problems(folder, case, image)) for case in cases]
    return found, fingerprint(np.asarray(image)) if isinstance(image, Image.Image) else None


def _image(folder: Path, file_name: str) -> Image.Image | str:
    """The image of a file, or what is wrong with it."""
    try:
        return load_rgb(inside(folder, file_name))
    except (ValueError, OSError) as error:
        return _reason(error, folder)


def _case_problems(folder: Path, case: Case, image: Image.Image | str) -> Iterator[Found]:
    """Problems of one case by itself; `image` is the decoded one, or what is wrong with it."""
    for finding in case.findings:
        if finding not in FINDINGS:
            yield "findings", repr(finding), f"a finding of the taxonomy, nearest: {nearest(finding)!r}"
    if len(case.findings) > 1 and "normal" in case.findings:
        yield "findings", repr(list(case.findings)), "normal alone or not at all"
    if case.organ not in (*ORGANS, "unknown"):
        close = get_close_matches(case.organ, [*ORGANS, "unknown"], n=1, cutoff=0.0)
        yield "organ", repr(case.organ), f"one of {', '.join(ORGANS)}, unknown; nearest: {close[0]!r}"
    for name in _CHECKED_FILES:
        file_name = getattr(case, name)
        if file_name is not None and (word := split_word(file_name)):
            wanted = (
                f"a name without {word!r}, e.g. {file_stem(Path(file_name).stem)}: imagefolder guesses splits from it"
            )
            yield name, repr(file_name), wanted
    yield from _files(folder, case, image)


def _files(folder: Path, case: Case, image: Image.Image | str) -> Iterator[Found]:
    """Problems of a case's image, mask, source and boxes."""
    size = None if isinstance(image, str) else image.size
    source = None if case.source_file_name is None else _image(folder, case.source_file_name)
    for name, found in (("file_name", image), ("source_file_name", source)):
        if isinstance(found, str):
            yield name, found, "a whole image inside the folder"
    if case.mask_file_name is not None:
        yield from _mask(folder, case, size)
    for box in case.boxes:
        yield from _box(box.finding, (box.xmin, box.ymin, box.xmax, box.ymax), size)


def _mask(folder: Path, case: Case, size: tuple[int, int] | None) -> Iterator[Found]:
    """Problems of a mask; `size` is the image's, if that could be read."""
    try:
        mask: np.ndarray = load_mask(inside(folder, str(case.mask_file_name)))
    except (ValueError, OSError) as error:
        yield "mask_file_name", _reason(error, folder), "a whole image inside the folder"
        return
    height, width = mask.shape
    if size is not None and size != (width, height):
        yield "mask_file_name", f"{width} x {height} pixels", f"{size[0]} x {size[1]} as the image"
    focal = [finding for finding in case.findings if finding in FINDINGS and FINDINGS[finding].focal]
    if focal and not mask.any():
        yield "mask_file_name", "an empty mask", f"a pixel above 127, since {focal[0]} is focal; or no mask"


def _box(finding: str, sides: tuple[int, int, int, int], size: tuple[int, int] | None) -> Iterator[Found]:
    """Problems of a box; `size` is the image's, if that could be read."""
    xmin, ymin, xmax, ymax = sides
    if finding not in FINDINGS:
        yield "boxes", repr(finding), f"a finding of the taxonomy, nearest: {nearest(finding)!r}"
    if xmin >= xmax or ymin >= ymax:
        yield "boxes", f"{sides}", "xmin < xmax and ymin < ymax"
    elif min(xmin, ymin) < 0 or (size is not None and (xmax > size[0] or ymax > size[1])):
        image = f"the image of {size[0]} x {size[1]} pixels" if size else "the image"
        yield "boxes", f"{sides}", f"xmin, ymin, xmax, ymax inside {image}"


def _repeats(numbered: Iterable[tuple[int, Case]]) -> Iterator[Problem]:
    """Ids and image files that occur twice; questions of one group may share an image."""
    first: dict[tuple[str, str], tuple[int, Case]] = {}
    for line, case in numbered:
        for name, value in (("id", case.id), ("file_name", str(PurePosixPath(case.file_name)))):
            earlier, other = first.setdefault((name, value), (line, case))
            questions = case.is_question and other.is_question and case.group != "" and case.group == other.group
            if earlier != line and not (name == "file_name" and questions):
                yield Problem(line, case.id, name, f"{value!r}, which is on line {earlier} too", "each one once")


def _crossing_groups(numbered: Iterable[tuple[int, Case]]) -> Iterator[Problem]:
    """Groups that are in two splits; cases that are left out count for nothing."""
    home: dict[str, tuple[str, int]] = {}
    told: dict[str, set[str]] = defaultdict(set)
    for line, case in numbered:
        if case.split == LEFT_OUT:
            continue
        group = group_of(case)
        split, earlier = home.setdefault(group, (case.split, line))
        if case.split != split and case.split not in told[group]:
            told[group].add(case.split)
            found = f"{group!r} in {case.split!r} and, on line {earlier}, in {split!r}"
            yield Problem(line, case.id, "group", found, "each group in one split")


def _links(numbered: Sequence[tuple[int, Case]]) -> Iterator[Problem]:
    """Counterfactuals whose source is neither a case here nor a file of theirs."""
    ids = {case.id for _, case in numbered}
    for line, case in numbered:
        source = case.counterfactual_of
        if source is not None and source not in ids and case.source_file_name is None:
            yield Problem(line, case.id, "counterfactual_of", repr(source),
                          "the id of a case of this case set, or a source_file_name")  # fmt: skip


def _reason(error: Exception, folder: Path) -> str:
    """The error's message without the folder's own path."""
    return _short(str(error).replace(f"{folder}/", "").replace(str(folder), "the folder"))


def _short(text: str, longest: int = 160) -> str:
    """The text on one line, cut in the middle if it is long."""
    line = " ".join(
        text.encode("utf-8", "backslashreplace").decode().split()
    )  # half a surrogate pair cannot be printed
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 2 :]}"
