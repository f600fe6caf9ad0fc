"""Kvasir-VQA-x1's parquet (read only): questions of three levels of complexity about images of Kvasir-VQA.

Columns `img_id`, `complexity`, `question`, `answer`, `original` (a text of JSON), `question_class` (a list) and `image`
(an address, which is not fetched: the images lie in a folder, named by `img_id`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogalign.data.interchange.sample import Picture, Sample, wanted
from cogalign.data.interchange.tables import parquet_rows

SUFFIX = ".parquet"
DATASET = "Kvasir-VQA-x1"


def read(path: Path) -> Iterator[Sample]:
    """The rows of a file, one at a time; the image of a row is `<img_id>` with any suffix.

    Raises:
        ValueError: the file is no parquet, or a row lacks `img_id`, `question` or `answer`; names row and column.
    """
    for place, row in parquet_rows(path):
        name = wanted(path, place, row, "img_id", str, "the name of an image")
        question = wanted(path, place, row, "question", str, "a text")
        answer = wanted(path, place, row, "answer", str, "a text")
        extra = {key: row[key] for key in ("complexity", "question_class") if row.get(key) is not None}
        if row.get("original") is not None:
            extra["original"] = _decoded(row["original"])
        if isinstance(row.get("image"), str):
            extra["image_url"] = row["image"]
        own = {"dataset": DATASET, "group": name}
        yield Sample(place, (Picture(name),), ((question, answer),), own, extra)


def _decoded(value: Any) -> Any:
    """The JSON of a text; what is none stays."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
