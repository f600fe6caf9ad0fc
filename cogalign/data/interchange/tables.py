"""Rows of parquet files, a few at a time.

A few bytes of parquet can stand for many: a text that is written once may be named by every row. So texts and bytes are
read as such names (a dictionary) where they fit into memory, and what a row comes to is known before it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData, ParquetFile

MOST_ROW = 64_000_000
"""Most bytes of a row; of a column's part that is held at once, too."""
MOST_TEXT = 1_000_000
"""Most bytes of a text; images are no texts."""
_MOST_PACKED = 100
"""A large part of a column may come to this many times its bytes in the file: photographs do not get smaller."""
_MOST_LISTED = 16_000_000
"""Most values in the lists of a part."""


def parquet_rows(
    path: Path, batch: int = 1024, columns: Sequence[str] | None = None, *, most_text: int = MOST_TEXT
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (`row 7`) and values of each row.

    Args:
        path: the file.
        batch: most rows that are read at once; fewer where a column is large.
        columns: those to read; by default all.
        most_text: most bytes of a text.

    Raises:
        ValueError: the file is no parquet, or it unpacks to more than `MOST_ROW` bytes a row or `most_text` a text.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        named, large = _layout(metadata, columns)
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=named, buffer_size=1 << 20) as file:
            number = 0
            for part in _parts(file, 1 if large else batch, columns):
                for piece in _pieces(part, number, most_text):
                    for row in piece.to_pylist():
                        number += 1
                        yield f"row {number}", row
    except (pa.ArrowException, MemoryError) as error:
        raise ValueError(f"{path}: not parquet ({error})") from None
    except _TooLargeError as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:  # without a number: Arrow's word for a damaged file
        if error.errno is not None:
            raise
        raise ValueError(f"{path}: not parquet ({error})") from None


class _TooLargeError(ValueError):
    """What a file unpacks to is more than a data set has."""


def _layout(metadata: FileMetaData, columns: Sequence[str] | None) -> tuple[list[str], bool]:
    """The columns to read as dictionaries, and whether others are large.

    A reader of dictionaries keeps all values of a row group, so large columns (images) are read as they are, row by row.

    Raises:
        _TooLargeError: a column unpacks to far more than its bytes in the file, or has enormous lists.
    """
    named, any_large = [], False
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    for index in range(metadata.num_columns):
        leaf = metadata.schema.column(index)
        if columns is not None and leaf.path.split(".")[0] not in columns:
            continue
        parts = [group.column(index) for group in groups]
        for part, group in zip(parts, groups, strict=True):
            if part.num_values - group.num_rows > _MOST_LISTED:
                raise _TooLargeError(f"column {leaf.path!r} has {part.num_values} values in {group.num_rows} rows")
            size, packed = part.total_uncompressed_size, max(1, part.total_compressed_size)
            if size > MOST_ROW and size > _MOST_PACKED * packed:
                raise _TooLargeError(f"column {leaf.path!r} unpacks from {packed} to {size} bytes")
        large = any(part.total_uncompressed_size > MOST_ROW for part in parts)
        any_large |= large
        if leaf.physical_type == "BYTE_ARRAY" and not large:
            named.append(leaf.path)
    return named, any_large


def _parts(file: ParquetFile, batch: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Some rows at a time, never of two row groups: dictionaries in lists cannot be joined."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=batch, row_groups=[group], columns=columns)


def _pieces(part: pa.RecordBatch, before: int, most_text: int) -> Iterator[pa.RecordBatch]:
    """Rows in pieces of at most `MOST_ROW` bytes.

    Args:
        part: the rows.
        before: rows of the file before them.
        most_text: most bytes of a text.

    Raises:
        _TooLargeError: one row or text has more.
    """
    sizes = [_sizes(column) for column in part.columns]
    total, longest = sum(size for size, _ in sizes), max((text for _, text in sizes), default=0)
    if total <= MOST_ROW and longest <= most_text:
        yield part
    elif part.num_rows <= 1:
        what = f"a text of {longest}" if longest > most_text else f"{total}"
        raise _TooLargeError(
            f"row {before + 1} has {what} bytes, wanted at most {most_text if longest > most_text else MOST_ROW}"
        )
    else:
        half = part.num_rows // 2
        yield from _pieces(part.slice(0, half), before, most_text)
        yield from _pieces(part.slice(half), before + half, most_text)


def _sizes(values: pa.Array) -> tuple[int, int]:
    """Bytes that values come to when they are made, and those of the longest text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = values.flatten() if pa.types.is_struct(kind) else [values.flatten()]
        found = [_sizes(part) for part in inner]
        return sum(size for size, _ in found), max((text for _, text in found), default=0)
    entry = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(entry) or pa.types.is_large_string(entry)
    if not is_text and not pa.types.is_binary(entry) and not pa.types.is_large_binary(entry):
        return int(values.nbytes), 0
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(values.dictionary).take(values.indices)
    else:
        lengths = pc.binary_length(values)
    lengths = lengths.cast(pa.int64())
    return pc.sum(lengths).as_py() or 0, (pc.max(lengths).as_py() or 0) if is_text else 0
