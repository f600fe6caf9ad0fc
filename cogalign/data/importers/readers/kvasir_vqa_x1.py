"""Kvasir-VQA-x1: parquet files of questions about the images of Kvasir-VQA, whose table says what an image shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogalign.data.cards.card import Card
from cogalign.data.cards.strict import nearest_of
from cogalign.data.importers.base import Record, Rejected
from cogalign.data.importers.readers.kvasir_vqa import (
    TABLE,
    Asked,
    image_paths,
    photographs,
    read_metadata,
    refused,
    stem_of,
)
from cogalign.data.importers.tree import Tree
from cogalign.data.interchange.tables import parquet_rows

COLUMNS = ("img_id", "complexity", "question", "answer", "original", "question_class")
MOST_TEXT = 100_000
"""Most bytes of a text: questions and answers have a few hundred."""
SPLITS = ("train", "validation", "test")


def read(folder: Path, card: Card) -> Iterator[Record]:
    """One photograph for each image, its questions in `attributes["questions"]`.

    A question is `{"question", "answer", "complexity", "question_class", "original", "split"}`; `original` is the list of
    `{"q", "a"}` which the file holds as a text. The split is that of the question's file: it may divide the questions of
    one image, so it is not the split of the case.

    Raises:
        ValueError: a file cannot be read or lacks a column.
    """
    asked: dict[str, Asked] = {}
    tree = Tree(folder)
    for row in read_metadata(tree):
        entry = asked.setdefault(stem_of(row["img_id"]), Asked())
        if row["source"] and row["source"] not in entry.sources:
            entry.sources.append(row["source"])
    for path in sorted({*tree.all("*.parquet"), *tree.all("*/*.parquet")}):
        yield from _add(path, asked)
    images = image_paths(tree)
    yield from refused(tree)
    yield from photographs(images, asked, folder / TABLE)


def _add(path: Path, asked: dict[str, Asked]) -> Iterator[Rejected]:
    """Put the questions of a parquet file to their images."""
    split = next((name for name in SPLITS if name in path.stem.lower()), "")
    broken = []
    for row in _rows(path):
        image_id = stem_of(str(row["img_id"]))
        try:
            question = {**_question(row), **({"split": split} if split else {})}
        except ValueError:
            broken.append(image_id)
            continue
        asked.setdefault(image_id, Asked()).questions.append(question)
    if broken:
        yield Rejected(path, f"{len(broken)} questions whose `original` is not JSON, the first: of {broken[0]}")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, the columns that are needed.

    Raises:
        ValueError: it cannot be read, lacks a column, or unpacks to more than questions have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a table of questions: {error}") from None
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        near = nearest_of(missing[0], names)
        raise ValueError(f"{path}: not a table of questions: wanted a column {missing[0]!r}, found {names} ({near})")
    for _, row in parquet_rows(path, columns=COLUMNS, most_text=MOST_TEXT):
        yield row


def _question(row: dict[str, Any]) -> dict[str, Any]:
    """One question of a row.

    Raises:
        ValueError: `original` is not JSON.
    """
    original = row["original"]
    classes = row["question_class"]
    return {
        "question": str(row["question"] or ""),
        "answer": str(row["answer"] or ""),
        "complexity": row["complexity"],
        "question_class": [str(name) for name in classes] if isinstance(classes, list) else [str(classes or "")],
        "original": json.loads(original) if isinstance(original, str) else original,
    }
