"""Rows of parquet files, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def parquet_rows(path: Path, batch: int = 1024) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (`row 7`) and values of each row.

    Raises:
        ValueError: the file is no parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for part in file.iter_batches(batch_size=batch):
                for row in part.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not parquet ({error})") from None
