"""Files of the evaluation: parquet frames and JSON without NaN, whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cogalign.training.atomic import atomic_file
from cogalign.training.atomic import write_json as write_plain_json


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as parquet, by rename."""
    with atomic_file(path) as file:
        frame.to_parquet(file, index=False)


def read_frame(path: Path) -> pd.DataFrame:
    """A frame that `write_frame` wrote; cells that hold several findings are lists again."""
    frame = pd.read_parquet(path)
    for column in ("findings", "diagnosis", "unknown"):
        if column in frame:
            frame[column] = [list(value) for value in frame[column]]
    return frame


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The frame's rows as named tuples, a field a column."""
    yield from frame.itertuples(index=False)


def plain(value: Any) -> Any:
    """`value` as JSON knows it: tuples become lists, numpy scalars Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `plain(value)` as JSON, by rename."""
    write_plain_json(path, plain(value))


def read_json(path: Path) -> Any:
    """The JSON of `path`.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); run the stage that writes it again") from None
