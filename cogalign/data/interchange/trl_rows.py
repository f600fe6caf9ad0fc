"""TRL's conversational prompt and completion with images: JSONL, or parquet with the images in it.

A case is held whole: TRL keeps other columns for reward functions and leaves them alone in SFT. In JSONL `images` are
paths; in parquet they are images as the library datasets stores them, so that TRL needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cogalign.data.case import Case
from cogalign.data.interchange.ms_swift import pictures_of
from cogalign.data.interchange.sample import (
    DEFAULT_QUESTION,
    Sample,
    asked,
    beside,
    divided,
    json_lines,
    messages_of,
    paired,
    tagged_sample,
)
from cogalign.data.interchange.tables import parquet_rows
from cogalign.data.paths import inside
from cogalign.training.atomic import atomic_file

SUFFIX = ".jsonl"
BATCH = 64
"""Rows of a parquet file that are held at once."""
_WANTED = 'a list of messages such as {"role": "user", "content": "..."}'
_NAMES = {"user": "user", "assistant": "assistant"}


def row(case: Case) -> dict[str, Any]:
    """The object of a case; raises ValueError if question or answer hold the tag of images."""
    prompt = [{"role": "user", "content": asked(case, DEFAULT_QUESTION)}]
    completion = [{"role": "assistant", "content": case.answer}]
    kept = beside(case, without=("answer",))
    return {"prompt": prompt, "completion": completion, "images": [case.file_name], **kept}


def write_parquet(path: Path, cases: Sequence[Case], root: Path) -> None:
    """Write cases as parquet with their images inside, read from `root`; a few at a time.

    Fields without one type for all rows are JSON texts, as `attributes` is: `keywords` and `boxes`.

    Raises:
        FileNotFoundError, ValueError: an image is missing, or lies outside `root`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema([name for name in beside(cases[0]) if name not in ("answer", "findings")] if cases else [])

    def plain(case: Case) -> dict[str, Any]:
        found = row(case) | {"images": [{"bytes": inside(root, case.file_name).read_bytes(), "path": case.file_name}]}
        return found | {name: json.dumps(found[name], ensure_ascii=False) for name in ("keywords", "boxes")}

    with atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(cases), BATCH):
            rows = [plain(case) for case in cases[start : start + BATCH]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schema(texts: Sequence[str]) -> Any:
    """The Arrow schema of the rows, with what the library datasets wants to know of it; `texts` are other columns."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    talk = List({"role": text, "content": text})
    columns = {"prompt": talk, "completion": talk, "images": List(Image()), "findings": List(text)}
    return Features({**columns, **dict.fromkeys(texts, text)}).arrow_schema


def read(path: Path) -> Iterator[Sample]:
    """The rows of a file, JSONL or parquet, one at a time.

    Raises:
        ValueError: a row is no object, or `prompt` or `completion` is missing or no list; names row and key.
    """
    for place, found in _parquet_rows(path) if path.suffix == ".parquet" else json_lines(path):
        prompt = messages_of(path, place, found, "prompt", _WANTED)
        completion = messages_of(path, place, found, "completion", _WANTED)
        own, extra = divided(found, ("prompt", "completion", "images", "image"))
        messages = [*prompt, *completion]
        if messages and messages[0].get("role") == "system":
            extra["system"] = messages[0].get("content")
            messages = messages[1:]
        turns, problem = paired(messages, "role", "content", _NAMES)
        images = pictures_of(found.get("images") if found.get("images") is not None else found.get("image"))
        yield tagged_sample(place, images, turns, own, extra, problem)


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of each row of a parquet file; texts of JSON are what they hold."""
    for place, row in parquet_rows(path, batch=BATCH):
        for name in ("keywords", "boxes"):
            if isinstance(row.get(name), str):
                row[name] = json.loads(row[name])
        yield place, row
