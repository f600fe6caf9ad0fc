"""Lightning `predict` over the made counterfactuals and some normals: reads, cuts, encodes, and notes what it found."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset

from cogalign.counterfactual.interventions import Operator
from cogalign.counterfactual.located import Located, mask_of
from cogalign.counterfactual.masks import Image, Mask, cut_box, outside_box
from cogalign.counterfactual.quality.patches import largest_part
from cogalign.counterfactual.quality.table import TableParts
from cogalign.counterfactual.quality.views import (
    Edit,
    SegmenterLike,
    Views,
    edit_views,
    normal_views,
    residuals,
    source_views,
    without_edge,
)
from cogalign.counterfactual.workers import Failed, loader, raise_failed, sound
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.spread import spread_evenly
from cogalign.models.encoder import FrozenEncoder
from cogalign.recipe import CounterfactualSettings
from cogalign.training.progress import track
from cogalign.training.seeding import derive_seed

T = TypeVar("T")
VERSION = 2
"""Raised when the same settings would give other measures."""
BATCH = 8
"""Units measured between two writes."""
NORMALS = 400
"""Normals that are sampled as a reference, at most."""
SHAPES = 6
"""Lesion shapes that are tried for the fill on a normal."""


@dataclass(frozen=True)
class Unit:
    """A source case with its counterfactuals, or a normal (no rows)."""

    name: str
    case: Case
    rows: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Read:
    """A unit with its pixels; `side` of its crops, None where it has no place of a lesion."""

    unit: Unit
    views: Views
    edits: tuple[Edit, ...] = ()


def units_of(case_set: CaseSet, made: CaseSet, limit: int = NORMALS) -> list[Unit]:
    """The sources of the made counterfactuals, and at most `limit` normals of the same splits, spread evenly."""
    rows: dict[str, list[Case]] = {}
    for row in made.cases:
        rows.setdefault(row.counterfactual_of or "", []).append(row)
    splits = set(made.splits)
    normals = [case for case in case_set.cases if case.is_normal and case.split in splits]
    return [Unit(f"case {name}", case_set.by_id[name], tuple(own)) for name, own in rows.items()] + [
        Unit(f"normal {case.id}", case) for case in spread_evenly(normals, limit)
    ]


def open_units(units: Sequence[Unit], measured: Container[str]) -> list[Unit]:
    """The units still to be measured, in whole batches: a feature depends in its last bits on those beside it.

    Args:
        units: all, in their order.
        measured: names of those that are done.
    """
    batches = [units[start : start + BATCH] for start in range(0, len(units), BATCH)]
    return [unit for batch in batches if any(one.name not in measured for one in batch) for unit in batch]


def share_of(items: Sequence[T], rank: int, world: int) -> list[T]:
    """Every `world`-th batch of items, from that of the rank on: batches are the same for any number of ranks."""
    starts = range(rank * BATCH, len(items), world * BATCH)
    return [item for start in starts for item in items[start : start + BATCH]]


def digest(settings: CounterfactualSettings, made: CaseSet, segmenter: str) -> str:
    """A short digest of what decides the features: the counterfactuals, the encoder and the segmenter."""
    keys = {name: value for name, value in asdict(settings).items() if name not in ("quality", "gallery", "workers")}
    look = [settings.quality.encoder, settings.quality.side, segmenter]
    content = sha256(json.dumps([VERSION, keys, look], sort_keys=True).encode())
    for case in made.cases:
        content.update(json.dumps(case.to_row(), sort_keys=True).encode())
    return content.hexdigest()[:12]


class Units(Dataset[Read]):
    """The open units of a rank; pictures are read and cut when they are asked for.

    Args:
        case_set: the factual cases.
        made: the counterfactuals.
        units: what is read.
        operator: fill and widths, for the fill on normals.
        seed: of the free places and of the shapes on normals.
        located: masks by case id, for cases whose mask is not the case set's own.
    """

    def __init__(
        self,
        case_set: CaseSet,
        made: CaseSet,
        units: Sequence[Unit],
        operator: Operator,
        seed: int,
        located: Mapping[str, Located],
    ) -> None:
        self.case_set = case_set
        self.made = made
        self.units = units
        self.operator = operator
        self.seed = seed
        self.located = located

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Read:
        """Read one unit.

        Raises:
            FileNotFoundError, ValueError: an image or mask is missing, unreadable or of another size.
        """
        unit = self.units[index]
        return self._case(unit) if unit.rows else Read(unit, self._normal(unit.case))

    @cached_property
    def _whole_removals(self) -> list[Case]:
        return [row for row in self.made.cases if row.intervention == "removal" and "removed" not in row.attributes]

    def _case(self, unit: Unit) -> Read:
        source = np.asarray(self.case_set.image(unit.case))
        edits = tuple(self._edit(row, source) for row in unit.rows)
        lesion = next((edit.touched for edit in edits if edit.intervention == "removal" and not edit.partial), None)
        if lesion is None:
            whole = mask_of(self.case_set, unit.case, self.located)
            lesion = None if whole is None else outside_box(source, whole)
        views, side = Views(), None
        if lesion is not None and lesion.any():
            rng = np.random.default_rng(derive_seed(self.seed, "free", unit.case.id))
            views, side = source_views(unit.case.id, source, lesion, rng)
        for edit in edits:
            views.add(edit_views(edit, side))
        return Read(unit, views, edits)

    def _edit(self, row: Case, source: Image) -> Edit:
        ground = source
        if row.background_of is not None:
            ground = np.asarray(self.case_set.image(self.case_set.by_id[row.background_of]))
        touched = self.made.mask(row)
        assert touched is not None  # every counterfactual has one
        focus = None
        if row.intervention == "transplant" and row.boxes:
            focus = np.zeros_like(touched)
            cut = [box for box in (cut_box(box, touched.shape) for box in row.boxes) if box is not None]
            for xmin, ymin, xmax, ymax in sorted(cut, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))[-1:]:
                focus[ymin:ymax, xmin:xmax] = True
        image = np.asarray(self.made.image(row))
        return Edit(row.id, row.intervention or "", image, ground, touched, focus, "removed" in row.attributes)

    def _normal(self, case: Case) -> Views:
        seed = [derive_seed(self.seed, "normal", case.id)]
        image = np.asarray(self.case_set.image(case))
        lenders = self._whole_removals
        drawn = np.random.default_rng(seed).permutation(len(lenders))[:SHAPES]
        shapes = [self._shape(lenders[place]) for place in drawn.tolist()]
        return normal_views(case.id, image, shapes, [("", self.operator)], seed)

    def _shape(self, row: Case) -> Mask:
        touched = self.made.mask(row)
        assert touched is not None
        return largest_part(without_edge(touched, self.operator))


class QualityModule(LightningModule):
    """Encodes the pictures of the open units, and asks the segmenter about the removals.

    Args:
        data: the units.
        encoder: makes the encoder; called on each rank.
        segmenter: makes the segmenter, or None.
        workers: processes that read images.
    """

    def __init__(
        self,
        data: Units,
        encoder: Callable[[], FrozenEncoder],
        segmenter: Callable[[], SegmenterLike] | None,
        workers: int,
    ) -> None:
        super().__init__()
        self.data = data
        self.workers = workers
        self._make_encoder, self._make_segmenter = encoder, segmenter

    def setup(self, stage: str) -> None:
        """Load encoder and segmenter."""
        self._encoder = self._make_encoder()
        self._segmenter = None if self._make_segmenter is None else self._make_segmenter()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every `world_size`-th batch of units, from this rank's on."""
        data = self.data
        own = share_of(data.units, self.trainer.global_rank, self.trainer.world_size)
        share = Units(data.case_set, data.made, own, data.operator, data.seed, data.located)
        return loader(share, self.workers, BATCH)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Pictures stay on the CPU; the encoder moves what it needs."""
        return batch

    def predict_step(self, batch: list[Read | Failed], batch_idx: int) -> tuple[list[str], Views, Any]:
        """Names of the units, their views and the features of all pictures."""
        views = Views()
        reads = sound(batch)
        for read in reads:
            if self._segmenter is not None:
                for case_id, values in residuals(read.edits, self._segmenter).numbers.items():
                    read.views.note(case_id, **values)
            views.add(read.views)
        features = self._encoder.features([picture for _, _, picture in views.pictures])
        return [read.unit.name for read in reads], views, features


class QualityWriter(BasePredictionWriter):
    """Writes a part file after every batch.

    Args:
        parts: where.
        total: units of all ranks, for the progress bar.
    """

    def __init__(self, parts: TableParts, total: int) -> None:
        super().__init__(write_interval="batch")
        self.parts = parts
        self.total = total
        self._progress: Iterator[int] = iter(())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the progress bar of the first rank."""
        if trainer.is_global_zero:
            own = share_of(range(self.total), 0, trainer.world_size)
            self._progress = iter(track(own, "quality of cases", folder=self.parts.folder.parent))
            next(self._progress, None)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: tuple[list[str], Views, Any],
        batch_indices: Sequence[int] | None,
        batch: list[Read | Failed],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write what was measured of a batch.

        Raises:
            OSError, ValueError: a unit of this batch could not be read; what was measured of the others is kept.
        """
        if prediction[0]:
            self.parts.write(*prediction)
        raise_failed(batch)
        for _ in batch:
            next(self._progress, None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until all ranks have written."""
        trainer.strategy.barrier("quality measured")


def load_segmenter(folder: Path, device: str) -> SegmenterLike:
    """The segmenter of a folder."""
    from cogalign.models.segmenter import Segmenter

    return Segmenter.load(folder, device)
