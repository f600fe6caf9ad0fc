"""VLMEvalKit's TSV, in which EndoBench comes: `index`, `image` (base64), `question`, `A` to `E`, `answer`, `category`.

An image cell of at most 64 characters is the index of another row with the same image. Choices are columns and not part
of the question; a case asks them, and keeps the bare question as the attribute `stem`. A case is held whole: what has
no column of its own stands as JSON in the column `case`, which VLMEvalKit carries along.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import io
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.interchange.choices import letter_of, with_choices
from cogalign.data.interchange.sample import DEFAULT_QUESTION, Picture, Sample, beside
from cogalign.data.paths import inside
from cogalign.training.atomic import atomic_file

SUFFIX = ".tsv"
LONGEST_INDEX = 64
"""An image cell up to so many characters is an index."""
READ_AS_MISSING = {"None", "NA", "N/A", "n/a", "nan", "NaN", "NULL", "null", "<NA>", "#N/A", "-nan", "-NaN", "#NA", ""}
"""Some texts that pandas, with which VLMEvalKit reads, takes for a missing cell."""
_CELL = 2**31 - 1  # the csv module's own limit is too short for images


def choices_of(case: Case) -> dict[str, str]:
    """The choices of a case: its attribute `choices`, if that is an object of texts by capital letter."""
    found = case.attributes.get("choices")
    if not isinstance(found, dict):
        return {}
    return {
        key: text
        for key, text in found.items()
        if key in string.ascii_uppercase and len(key) == 1 and isinstance(text, str)
    }


def write(path: Path, cases: Sequence[Case], root: Path) -> None:
    """Write cases with their images (from `root`), each image once.

    Raises:
        FileNotFoundError, ValueError: an image is missing or lies outside `root`.
    """
    letters = sorted({letter for case in cases for letter in choices_of(case)})
    names = ["index", "image", "question", *letters, "answer", "category", "case"]
    first: dict[str, int] = {}
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.DictWriter(text, names, delimiter="\t", lineterminator="\n", restval="", quoting=csv.QUOTE_ALL)
        table.writeheader()
        for index, case in enumerate(cases):
            seen = first.setdefault(case.file_name, index)
            image = str(seen)
            if seen == index:
                image = base64.b64encode(inside(root, case.file_name).read_bytes()).decode("ascii")
            table.writerow({"index": index, "image": image, **cells(case)})
        text.detach()


def cells(case: Case) -> dict[str, str]:
    """The cells of a case but `index` and `image`."""
    choices = choices_of(case)
    stem, category = case.attributes.get("stem"), case.attributes.get("category")
    question = stem if choices and isinstance(stem, str) and stem else case.question or DEFAULT_QUESTION
    answer = (letter_of(case.answer, choices) if choices else None) or case.answer
    kept = {"file_name": case.file_name, **beside(case, without=() if answer != case.answer else ("answer",))}
    return {"question": question, **choices, "answer": answer,
            "category": category if isinstance(category, str) else "",
            "case": json.dumps(kept, ensure_ascii=False)}  # fmt: skip


def read(path: Path) -> Iterator[Sample]:
    """The rows of a file, one at a time.

    Raises:
        ValueError: the file is no TSV with `index`, `question`, `answer` and `image` or `image_path`, or its cells do not
            fit the head; names row and column.
    """
    csv.field_size_limit(_CELL)
    known: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, delimiter="\t")
            _check_head(path, table.fieldnames or ())
            for number, row in enumerate(table, start=1):
                if None in row or None in row.values():
                    raise ValueError(f"{path} row {number}: found another number of cells than the head has")
                yield _sample(path, f"row {number}", row, known)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TSV in UTF-8 ({error})") from None


def _check_head(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in ("index", "question", "answer") if name not in names]
    if not {"image", "image_path"} & set(names):
        missing.append("image or image_path")
    if missing:
        raise ValueError(f"{path}: found the columns {', '.join(names)[:200]}, wanted {', '.join(missing)} too")


def _sample(path: Path, place: str, row: Mapping[str, str], known: dict[str, str]) -> Sample:
    pictures, problem = _pictures(row, known, path)
    choices = {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter)}
    used = {"index", "image", "image_path", "question", "answer", "case", *string.ascii_uppercase}
    try:
        own = json.loads(row["case"]) if row.get("case") else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} {place}: column 'case': not JSON ({error}), wanted the fields of a case") from None
    if not isinstance(own, dict):
        raise ValueError(f"{path} {place}: column 'case': found {type(own).__name__}, wanted an object")
    answer = own.get("answer") or row["answer"]
    if own:
        name = str(own.pop("file_name", ""))
        pictures = tuple(replace(picture, path=name) for picture in pictures)
        return Sample(place, pictures, ((own.get("question") or row["question"], answer),), own, {}, problem)
    extra: dict[str, Any] = {name: text for name, text in row.items() if name not in used and text}
    extra["index"] = row["index"]
    stem = f"{row['hint']}\n{row['question']}" if row.get("hint") else row["question"]
    if choices:
        extra |= {"choices": choices, "stem": stem}
        stem = with_choices(stem, choices)
    return Sample(place, pictures, ((stem, answer),), {}, extra, problem)


def _pictures(row: Mapping[str, str], known: dict[str, str], file: Path) -> tuple[tuple[Picture, ...], str]:
    """The images of a row, and what is wrong with them; `known` gathers their keys by index."""
    cell, path = row.get("image", ""), row.get("image_path", "")
    if not cell:
        return tuple(Picture(name) for name in _listed(path)), ""
    if len(cell) <= LONGEST_INDEX:
        if cell not in known:
            return (), f"its image is that of index {cell!r}, which is not above it"
        known[row["index"]] = known[cell]
        return (Picture(known[cell].partition("\0")[0], key=known[cell]),), ""
    several = _listed(cell)
    if len(several) > 1:
        return tuple(Picture() for _ in several), ""
    try:
        content = base64.b64decode("".join(several[0].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return (), f"its image is no base64 ({error})"
    name = path if path and len(_listed(path)) == 1 else ""
    known[row["index"]] = f"{name}\0{row['index']}\0{file}"
    return (Picture(name or f"images/{row['index']}", content, known[row["index"]]),), ""


def _listed(cell: str) -> list[str]:
    """The texts of a cell that holds one, or a list of them as Python writes it."""
    if cell.startswith("[") and cell.endswith("]"):
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
        if isinstance(found, list):
            return [str(text) for text in found]
    return [cell] if cell else []
