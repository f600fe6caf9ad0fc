"""Kvasir-VQA: `images/<img_id>.jpg` and `metadata.csv` with many questions for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogalign.data.cards.card import Card, Table
from cogalign.data.cards.template import SUFFIXES
from cogalign.data.importers.base import Photograph, Record, Rejected
from cogalign.data.importers.tables import Row, read_rows
from cogalign.data.importers.tree import Tree

TABLE = "metadata.csv"
COLUMNS = ("source", "question", "answer", "img_id")


@dataclass
class Asked:
    """What the tables say of one image."""

    sources: list[str] = field(default_factory=list)
    """Class names, each once: the images' origin is the only class that the data set tells."""
    questions: list[dict[str, Any]] = field(default_factory=list)


def read(folder: Path, card: Card) -> Iterator[Record]:
    """One photograph for each image, its questions in `attributes["questions"]`.

    A question is `{"question", "answer", "answers"}`: the answer as the file has it, and its parts at semicolons.

    Raises:
        ValueError: the table cannot be read or lacks a column.
    """
    tree = Tree(folder)
    asked = _asked(read_metadata(tree))
    images = image_paths(tree)
    yield from refused(tree)
    yield from photographs(images, asked, folder / TABLE)


def read_metadata(tree: Tree) -> list[Row]:
    """The rows of the table.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read or lacks a column, or is a link out of the data set.
    """
    path = tree.first(TABLE)
    if path is None:
        raise FileNotFoundError(f"{tree.root}: wanted the table {TABLE!r}, which is not there")
    return read_rows(path, Table("questions", TABLE, {"img_id": "{stem}"}), set(COLUMNS))


def image_paths(tree: Tree) -> dict[str, Path]:
    """Images below `images/` by their name without suffix."""
    paths = (tree.root / path for path in _image_files(tree) if path not in tree.problems)
    return {path.stem: path for path in paths}


def refused(tree: Tree) -> Iterator[Rejected]:
    """What lies below `images/` and must not be opened."""
    yield from tree.refused
    yield from (Rejected(tree.root / path, tree.problems[path]) for path in _image_files(tree) if path in tree.problems)


def _image_files(tree: Tree) -> Iterator[str]:
    for path in tree.files:
        if path.startswith("images/") and path.rpartition(".")[2].lower() in SUFFIXES:
            yield path


def stem_of(image_id: str) -> str:
    """The `img_id` without a suffix, if it has one."""
    stem, dot, suffix = image_id.rpartition(".")
    return stem if dot and suffix.lower() in SUFFIXES else image_id


def answers_of(answer: str) -> list[str]:
    """The answers that a text joins with semicolons."""
    return [part.strip() for part in answer.split(";") if part.strip()]


def photographs(images: dict[str, Path], asked: dict[str, Asked], table: Path) -> Iterator[Record]:
    """A photograph for each image that has a source and a question; what does not fit is told.

    Args:
        images: path by image id.
        asked: what the tables say, by image id.
        table: named in messages.
    """
    left_out = []
    for image_id, path in images.items():
        known = asked.get(image_id)
        if known is None or not known.sources or not known.questions:
            left_out.append(image_id)
        elif len(known.sources) > 1:
            yield Rejected(path, f"{table.name} names several sources for it: {', '.join(known.sources)}")
        else:
            yield Photograph(
                path, image_id, labels=tuple(known.sources), attributes={"questions": list(known.questions)}
            )
    if left_out:
        yield Rejected(table, f"{len(left_out)} images have no source or no question, the first: {left_out[0]}")
    lost = [image_id for image_id in asked if image_id not in images and asked[image_id].questions]
    if lost:
        rows = sum(len(asked[image_id].questions) for image_id in lost)
        yield Rejected(table, f"{rows} questions have no image, the first: {lost[0]}")


def _asked(rows: Sequence[Row]) -> dict[str, Asked]:
    """Sources and questions by image id."""
    found: dict[str, Asked] = {}
    for row in rows:
        entry = found.setdefault(stem_of(row["img_id"]), Asked())
        if row["source"] and row["source"] not in entry.sources:
            entry.sources.append(row["source"])
        if row["question"]:
            question = {"question": row["question"], "answer": row["answer"], "answers": answers_of(row["answer"])}
            entry.questions.append(question)
    return found
