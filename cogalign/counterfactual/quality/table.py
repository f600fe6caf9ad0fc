"""What was measured: features by role and id, and numbers by id; kept in part files so that an interrupted run goes on."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.quality.views import Role, Views
from cogalign.training.atomic import write_bytes

HALF = np.float16
"""Type in which features are kept: a tenth of a percent is exact enough for a probe."""


@dataclass
class Table:
    """All features and numbers of a set.

    Attributes:
        dim: length of a feature vector (0 while empty).
        units: names of the source cases and normals that are in.
        numbers: measures by id of the counterfactual.
    """

    dim: int = 0
    units: set[str] = field(default_factory=set)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _blocks: list[NDArray[np.float16]] = field(default_factory=list)
    _places: dict[tuple[str, str], int] = field(default_factory=dict)
    _count: int = 0

    def add(self, units: Iterable[str], views: Views, features: NDArray[Any]) -> None:
        """Add what was measured of some units; `features` (n x dim) in the order of the pictures."""
        keys = [(role, case_id) for role, case_id, _ in views.pictures]
        self.add_rows(units, keys, views.numbers, np.asarray(features, dtype=HALF))

    def add_rows(
        self,
        units: Iterable[str],
        keys: Sequence[tuple[str, str]],
        numbers: dict[str, dict[str, Any]],
        features: NDArray[np.float16],
    ) -> None:
        """Add features (n x dim) with their role and id."""
        self.units.update(units)
        self.numbers.update(numbers)
        if len(keys):
            self.dim = features.shape[1]
            self._blocks.append(features)
            self._places.update({key: self._count + row for row, key in enumerate(keys)})
            self._count += len(keys)

    def has(self, role: Role, case_id: str) -> bool:
        """Whether there is such a picture."""
        return (role, case_id) in self._places

    def features(self, role: Role, ids: Iterable[str]) -> tuple[NDArray[np.float32], list[str]]:
        """Features (n x dim, float32) of a role for those of the ids that have it, and these ids."""
        there = [case_id for case_id in ids if (role, case_id) in self._places]
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        if not there:
            return np.zeros((0, self.dim), dtype=np.float32), []
        return self._blocks[0][[self._places[role, case_id] for case_id in there]].astype(np.float32), there


class TableParts:
    """Part files of a table, `folder/quality-<digest>/<name>.npz`; each holds some units, whole or not at all."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder / f"quality-{digest}"

    def read(self) -> Table:
        """All parts that are there. One that cannot be read is removed: its units are measured again."""
        table = Table()
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as part:
                    entry = json.loads(bytes(part["entry"]).decode())
                    features = part["features"]
                keys = [(str(role), str(case_id)) for role, case_id in entry["keys"]]
                if features.ndim != 2 or len(features) != len(keys):
                    raise ValueError("keys and features differ in number")
                table.add_rows(entry["units"], keys, entry["numbers"], features)
            except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)
        return table

    def write(self, units: Sequence[str], views: Views, features: NDArray[Any]) -> None:
        """Write one part.

        Raises:
            OSError: the disk is full.
        """
        keys = [(role, case_id) for role, case_id, _ in views.pictures]
        entry = json.dumps({"units": list(units), "keys": keys, "numbers": views.numbers}).encode()
        buffer = io.BytesIO()
        np.savez(buffer, features=np.asarray(features, dtype=HALF), entry=np.frombuffer(entry, dtype=np.uint8))
        name = sha256("\0".join(units).encode()).hexdigest()[:16]
        write_bytes(self.folder / f"{name}.npz", buffer.getvalue())

    def remove_others(self) -> None:
        """Remove the part files of other digests: of other counterfactuals, encoders or settings."""
        for old in self.folder.parent.glob("quality-*"):
            if old.is_dir() and old != self.folder:
                for path in old.iterdir():
                    path.unlink()
                old.rmdir()
