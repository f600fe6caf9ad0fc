"""Many cases in few Python objects, so that worker processes share their memory.

A forked process shares its parent's memory until one of them writes to it, and Python writes to every object that it
looks at: the count of references is part of it. A list of cases is therefore copied into each worker bit by bit, epoch
after epoch. Here the cases are one block of bytes; a case is made when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from cogalign.data.case import Case


class PackedCases(Sequence[Case]):
    """A sequence of cases, each made anew from its row when it is asked for."""

    def __init__(self, cases: Sequence[Case]) -> None:
        rows = [json.dumps(case.to_row(), ensure_ascii=False).encode("utf-8", "surrogatepass") for case in cases]
        self._rows = np.frombuffer(b"".join(rows), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Case: ...

    @overload
    def __getitem__(self, index: slice) -> PackedCases: ...

    def __getitem__(self, index: int | slice) -> Case | PackedCases:
        """A case, or some of them."""
        if isinstance(index, slice):
            return PackedCases([self[place] for place in range(*index.indices(len(self)))])
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"case {index} of {len(self)}")
        row = self._rows[self._ends[place] : self._ends[place + 1]].tobytes()
        return Case.from_row(json.loads(row.decode("utf-8", "surrogatepass")))

    def __iter__(self) -> Iterator[Case]:
        """All cases in order."""
        return (self[place] for place in range(len(self)))
