"""wandb's offline files (`*.wandb`): whole records out, and the damage mended that a kill leaves.

A file is a header of 7 bytes, then blocks of 32 KiB, counted from the start of the file. A record lies in one
or several pieces; each has a little-endian crc32 (of type and data), a length (uint16), a type (whole, first,
middle, last) and the data. wandb writes block by block, so a killed run's file ends where a block ends, in
the middle of a record, or holds nothing but the header. `wandb sync` complains of the first, and with one of the
second kind among its files it uploads none of them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from zlib import crc32

BLOCK = 32_768
MAGIC = b":W&B"
HEADER = 7
PIECE = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[bytes]:
    """The data of all whole records of a file, each a protobuf `Record`, up to where the file is damaged.

    Raises:
        ValueError: it is no file of wandb's.
    """
    return _scan(path.read_bytes(), path)[0]


def mend(path: Path) -> None:
    """Cut off the record in whose middle the file of a killed run ends; a file with nothing but a header is removed.

    Raises:
        ValueError: it is no file of wandb's.
        OSError: it cannot be written.
    """
    content = path.read_bytes()
    _, end, is_cut = _scan(content, path)
    if len(content) <= HEADER:
        path.unlink()
    elif is_cut and end > HEADER:
        with open(path, "rb+") as file:
            file.truncate(end)


def _scan(content: bytes, path: Path) -> tuple[list[bytes], int, bool]:
    """Whole records, the place where the last of them ends, and whether the file stops in the middle of another."""
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path}: found {content[: len(MAGIC)]!r} at the start, wanted {MAGIC!r}")
    found, parts = list[bytes](), list[bytes]()
    place = end = HEADER
    while place < len(content):
        left = BLOCK - place % BLOCK
        if left < PIECE.size:
            place += left
            continue
        if place + PIECE.size > len(content):
            return found, end, True
        crc, length, kind = PIECE.unpack_from(content, place)
        start, stop = place + PIECE.size, place + PIECE.size + length
        if kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return found, end, False
        if stop > len(content):
            return found, end, True
        if crc != crc32(content[start - 1 : stop]):
            return found, end, False
        parts = [content[start:stop]] if kind in (WHOLE, FIRST) else [*parts, content[start:stop]]
        place = stop
        if kind in (WHOLE, LAST):
            found.append(b"".join(parts))
            parts, end = [], stop
    return found, end, bool(parts)
