"""Lightning `predict` over the plan: each rank edits its share of the cases and writes what it made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cogalign.counterfactual import interventions as do
from cogalign.counterfactual.interventions import Edited, Operator, stream
from cogalign.counterfactual.masks import Image, Mask, area_problem, outside_box
from cogalign.counterfactual.pairs import counterfactual_case
from cogalign.counterfactual.parts import Finished, Parts
from cogalign.counterfactual.plan import Edit, Plan, Task
from cogalign.counterfactual.surroundings import background as change_background
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.recipe import CounterfactualSettings
from cogalign.training.progress import track

BATCH = 8
"""Source cases edited between two writes."""
PNG = (
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_SUB,
)
"""On photographs more than twice as fast as OpenCV's defaults, and no larger."""
NO_PLACE = "no free place on visible mucosa"
NO_PARTNER = "no background of another group and a fitting organ"


@dataclass(frozen=True)
class Loaded:
    """A source case with its pixels; `edits` are those still to be made (none: nothing was read)."""

    task: Task
    edits: tuple[Edit, ...]
    image: Image | None
    mask: Mask | None


@dataclass(frozen=True)
class Made:
    """A counterfactual, or why there is none."""

    edit: Edit
    task: Task
    case: Case | None = None
    edited: Edited | None = None
    left_out: str = ""


class Sources(Dataset[Loaded]):
    """The source cases of a rank, read when they are asked for. Finished ones are passed over without reading."""

    def __init__(self, case_set: CaseSet, tasks: Sequence[Task], finished: Finished) -> None:
        self.case_set = case_set
        self.tasks = tasks
        self.finished = finished

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Loaded:
        """Read one case.

        Raises:
            FileNotFoundError, ValueError: image or mask is missing, unreadable or of another size.
        """
        task = self.tasks[index]
        edits = tuple(edit for edit in task.edits if edit.id not in self.finished)
        if not edits:
            return Loaded(task, (), None, None)
        return Loaded(task, edits, *read_pixels(self.case_set, task.case))


def read_pixels(case_set: CaseSet, case: Case) -> tuple[Image, Mask | None]:
    """Image (H x W x 3 uint8) and the visible part of the mask (H x W, None without one) of a case."""
    image = np.asarray(case_set.image(case))
    mask = case_set.mask(case)
    return image, None if mask is None else outside_box(image, mask)


class CounterfactualModule(LightningModule):
    """Makes the counterfactuals of a plan; it has no weights.

    Args:
        case_set: the factual cases.
        plan: what is made of which.
        finished: what an earlier run made.
        settings: fill, widths, area limits, seed.
    """

    def __init__(self, case_set: CaseSet, plan: Plan, finished: Finished, settings: CounterfactualSettings) -> None:
        super().__init__()
        self.case_set = case_set
        self.plan = plan
        self.finished = finished
        self.settings = settings
        self.operator = Operator(settings.fill, settings.sigma, settings.feather, settings.dilate)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every `world_size`-th task, from this rank's on."""
        tasks = self.plan.tasks[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(Sources(self.case_set, tasks, self.finished), batch_size=BATCH, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Pictures stay on the CPU."""
        return batch

    def predict_step(self, batch: list[Loaded], batch_idx: int) -> list[Made]:
        """Edit the images of a batch."""
        return [made for loaded in batch for made in self.make(loaded)]

    def make(self, loaded: Loaded) -> Iterator[Made]:
        """All open counterfactuals of a source case."""
        for edit in loaded.edits:
            assert loaded.image is not None
            mask = loaded.mask if loaded.mask is not None else np.zeros(loaded.image.shape[:2], dtype=bool)
            problem = area_problem(mask, self.settings.min_area, self.settings.max_area)
            edited, partner = None, None
            if problem is None:
                edited, partner = self._edit(loaded.task.case, edit, loaded.image, mask)
                without = edit.intervention == "transplant" and not edit.backgrounds
                problem = None if edited is not None else NO_PARTNER if without else NO_PLACE
            if edited is None:
                yield Made(edit, loaded.task, left_out=problem or NO_PLACE)
                continue
            case = counterfactual_case(loaded.task, edit, edited, self.settings.fill, partner)
            yield Made(edit, loaded.task, case, edited)

    def _edit(self, case: Case, edit: Edit, image: Image, mask: Mask) -> tuple[Edited | None, Case | None]:
        """The edited image and, for a transplant, the case it lies on; None where nothing fits."""
        rng = stream(self.settings.seed, case.id, edit.intervention, edit.index)
        if edit.intervention == "removal":
            return do.removal(image, mask, self.operator), None
        if edit.intervention == "control":
            return do.control(image, mask, self.operator, rng, case.boxes), None
        if edit.intervention == "background":
            return change_background(image, mask, rng), None
        for partner in edit.backgrounds:
            ground, own = read_pixels(self.case_set, partner)
            if own is not None and area_problem(own, 0.0, self.settings.max_area) is not None:
                continue
            edited = do.transplant(image, mask, ground, own, self.operator, rng, case.boxes)
            if edited is not None:
                return edited, partner
        return None, None


class CounterfactualWriter(BasePredictionWriter):
    """Writes the pictures and this rank's part file after every batch, and merges the parts at the end.

    Args:
        parts: the part files.
        case_set: the factual cases, whose image files are copied.
        plan: for the order of the rows.
    """

    def __init__(self, parts: Parts, case_set: CaseSet, plan: Plan) -> None:
        super().__init__(write_interval="batch")
        self.parts = parts
        self.case_set = case_set
        self.plan = plan
        self._progress: Iterator[int] = iter(())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the progress bar of the first rank."""
        if trainer.is_global_zero:
            tasks = len(self.plan.tasks[:: trainer.world_size])
            self._progress = iter(track(range(tasks), "counterfactuals of cases", total=tasks))
            next(self._progress, None)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Made],
        batch_indices: Sequence[int] | None,
        batch: list[Loaded],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write pictures first, then the lines that say that they are there."""
        for source in {made.task.source_file_name: made.task for made in prediction if made.case is not None}.values():
            self._copy_source(source)
        entries: list[dict[str, Any]] = []
        for made in prediction:
            if made.case is None or made.edited is None or made.case.mask_file_name is None:
                entries.append({"id": made.edit.id, "left_out": made.left_out})
                continue
            write_png(self.parts.root / made.case.file_name, made.edited.image)
            write_png(self.parts.root / made.case.mask_file_name, made.edited.touched.astype(np.uint8) * 255)
            entries.append({"id": made.edit.id, "row": made.case.to_row()})
        if entries:
            self.parts.append(trainer.global_rank, entries)
        for _ in batch:
            next(self._progress, None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When all ranks are done, the first one merges their parts."""
        trainer.strategy.barrier("counterfactuals made")
        if trainer.is_global_zero:
            self.parts.merge(self.plan)
        trainer.strategy.barrier("counterfactuals merged")

    def _copy_source(self, task: Task) -> None:
        """Copy the source's file as it is."""
        target = self.parts.root / task.source_file_name
        if target.is_file():
            return
        write_picture(target, self.case_set.path(task.case.file_name).read_bytes())


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (RGB or one channel) as a PNG file, whole or not at all.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    shown = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", shown, PNG)
    write_picture(path, encoded.tobytes())


def write_picture(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Unlike `training.atomic` it does not wait for the disk: thousands of small files, which can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
