"""The formats by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cogalign.data.case import Case
from cogalign.data.interchange import (
    colonr1,
    colonvqa,
    kvasir_vqa_x1,
    llava,
    ms_swift,
    trl_rows,
    vlmevalkit,
)
from cogalign.data.interchange.sample import Sample
from cogalign.data.interchange.write import RowOf, write_lines, write_list

Write = Callable[[Path, Sequence[Case], Path], None]


@dataclass(frozen=True)
class Format:
    """How files of one format are read and written."""

    name: str
    suffixes: tuple[str, ...]
    """Of its files; what is written has the first."""
    read: Callable[[Path], Iterator[Sample]]
    write: Write | None
    """None: it is only read."""
    needs_answer: bool = True
    """Whether a row without an answer makes no sense there."""
    holds_images: bool = False
    """Whether the images are in the file."""
    split: str = "train"
    """Split of rows of which nothing else tells one."""


def _rows(write: Callable[[Path, Sequence[Case], RowOf], None], row: RowOf) -> Write:
    """Writes a row a case; the images stay beside the file, so their folder is not read."""
    return lambda path, cases, root: write(path, cases, row)


_ALL = (
    Format("ms-swift", (ms_swift.SUFFIX,), ms_swift.read, _rows(write_lines, ms_swift.row), needs_answer=False),
    Format("llava", (llava.SUFFIX, ".jsonl"), llava.read, _rows(write_list, llava.row)),
    Format("trl", (trl_rows.SUFFIX, ".parquet"), trl_rows.read, _rows(write_lines, trl_rows.row)),
    Format("trl-parquet", (".parquet", ".jsonl"), trl_rows.read, trl_rows.write_parquet, holds_images=True),
    Format("colonvqa", (colonvqa.SUFFIX, ".jsonl"), colonvqa.read, _rows(write_list, colonvqa.row)),
    Format("colonr1", (colonr1.SUFFIX, ".jsonl"), colonr1.read, _rows(write_list, colonr1.row)),
    Format("vlmevalkit", (vlmevalkit.SUFFIX,), vlmevalkit.read, vlmevalkit.write, holds_images=True, split="test"),
    Format("kvasir-vqa-x1-parquet", (kvasir_vqa_x1.SUFFIX,), kvasir_vqa_x1.read, None, split="test"),
)
FORMATS: dict[str, Format] = {one.name: one for one in _ALL}


def format_of(name: str, *, writes: bool = False) -> Format:
    """The format of a name.

    Raises:
        ValueError: there is none, or none that can be written; the message names the nearest and all others.
    """
    known = [one.name for one in _ALL if one.write or not writes]
    if name not in known:
        close = get_close_matches(name, known, 1, 0.0)[0]
        raise ValueError(f"format: found {name!r}, wanted one of {', '.join(known)}; nearest: {close!r}")
    return FORMATS[name]
