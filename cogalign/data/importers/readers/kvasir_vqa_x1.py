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
    stem_of,
)

COLUMNS = ("img_id", "complexity", "question", "answer", "original", "question_class")
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
    for row in read_metadata(folder):
        entry = asked.setdefault(stem_of(row["img_id"]), Asked())
        if row["source"] and row["source"] not in entry.sources:
            entry.sources.append(row["source"])
    for path in sorted({*folder.glob("*.parquet"), *folder.glob("*/*.parquet")}):
        yield from _add(path, asked)
    yield from photographs(image_paths(folder), asked, folder / TABLE)


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


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file, the columns that are needed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(f"wanted a column {missing[0]!r}, found {names} ({nearest_of(missing[0], names)})")
        return list(pq.read_table(path, columns=list(COLUMNS)).to_pylist())
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a table of questions: {error}") from None


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
