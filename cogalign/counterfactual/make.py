"""Making counterfactuals: read a case, edit it, write the pictures. Runs in worker processes too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cogalign.counterfactual import interventions as do
from cogalign.counterfactual.interventions import Edited, Operator, stream
from cogalign.counterfactual.located import Located, mask_of
from cogalign.counterfactual.masks import Image, Mask, area_problem, outside_box
from cogalign.counterfactual.pairs import counterfactual_case
from cogalign.counterfactual.parts import Finished
from cogalign.counterfactual.plan import Edit, Task
from cogalign.counterfactual.several import split_mask
from cogalign.counterfactual.surroundings import background as change_background
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.recipe import CounterfactualSettings
from cogalign.training.atomic import write_bytes

PNG = (
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_SUB,
)
"""On photographs more than twice as fast as OpenCV's defaults, and no larger."""
NO_PLACE = "no free place on visible mucosa"
NO_PARTNER = {
    "any": "no background of another group and a fitting organ",
    "normal": "no normal background of another group and a fitting organ",
    "other_source": "no normal background of another data set and a fitting organ",
}
TOO_WIDE = "the fill would cover most of the image"
NOT_APART = "lesions of different findings cannot be told apart"
Entry = dict[str, Any]
"""A line of a part file: `id` and `row`, or `id` and `left_out`."""


class Makers(Dataset[list[Entry]]):
    """The tasks of a rank; asking for one makes its open counterfactuals and writes their pictures.

    Args:
        case_set: the factual cases.
        tasks: what is made of which.
        finished: what an earlier run made; a task with nothing open is passed over without reading.
        settings: fill, widths, area limits, seed.
        located: masks by case id, for cases whose mask is not the case set's own.
        root: folder of the case set of pairs.
    """

    def __init__(
        self,
        case_set: CaseSet,
        tasks: Sequence[Task],
        finished: Finished,
        settings: CounterfactualSettings,
        located: Mapping[str, Located],
        root: Path,
    ) -> None:
        self.case_set = case_set
        self.tasks = tasks
        self.finished = finished
        self.settings = settings
        self.located = located
        self.root = root
        self.operator = Operator(
            settings.fill, settings.sigma, settings.feather, settings.dilate, settings.diffusion_model
        )

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> list[Entry]:
        """The lines of one task, whose pictures are on the disk; errors as `make`."""
        return self.make(self.tasks[index])

    def make(self, task: Task) -> list[Entry]:
        """Make all open counterfactuals of a source case; pictures are written before their line is given back.

        Raises:
            FileNotFoundError, ValueError: image or mask is missing, unreadable or of another size.
            OSError: the disk is full.
        """
        edits = [edit for edit in task.edits if edit.id not in self.finished]
        if not edits:
            return []
        image, found = self._pixels(task.case)
        mask = found if found is not None else np.zeros(image.shape[:2], dtype=bool)
        problem = self._area_problem(mask)
        if problem is not None:
            return [{"id": edit.id, "left_out": problem} for edit in edits]
        return [self._entry(task, edit, image, mask) for edit in edits]

    def _entry(self, task: Task, edit: Edit, image: Image, mask: Mask) -> Entry:
        """Make and write one counterfactual."""
        edited, partner, problem = self._edit(task.case, edit, image, mask)
        if edited is None:
            return {"id": edit.id, "left_out": problem}
        known = self.located.get(task.case.id)
        known_by = None if known is None else {"provenance": known.provenance, "confidence": known.confidence}
        case = counterfactual_case(task, edit, edited, self.settings.fill, partner, known_by)
        assert case.mask_file_name is not None
        self._copy_source(task)
        write_png(self.root / case.file_name, edited.image)
        write_png(self.root / case.mask_file_name, edited.touched.astype(np.uint8) * 255)
        return {"id": edit.id, "row": case.to_row()}

    def _edit(self, case: Case, edit: Edit, image: Image, mask: Mask) -> tuple[Edited | None, Case | None, str]:
        """The edited image and, for a transplant, the case it lies on; or why there is none."""
        rng = stream(self.settings.seed, case.id, edit.intervention, edit.index)
        if edit.removes:
            parts = split_mask(mask, case.boxes, edit.removes)
            if parts is None or not parts[0].any():
                return None, None, NOT_APART
            return do.removal(image, parts[0], self.operator, rng, parts[1]), None, NOT_APART
        if edit.intervention == "removal":
            return do.removal(image, mask, self.operator, rng), None, TOO_WIDE
        if edit.intervention == "control":
            return do.control(image, mask, self.operator, rng, case.boxes), None, NO_PLACE
        if edit.intervention == "background":
            return change_background(image, mask, rng), None, ""
        for partner in edit.backgrounds:
            ground, own = self._pixels(partner)
            # A lesion that no mask shows would stay on the background, unnamed.
            if not partner.is_normal and (own is None or self._area_problem(own) is not None):
                continue
            edited = do.transplant(image, mask, ground, own, self.operator, rng, case.boxes)
            if edited is not None:
                return edited, partner, ""
        return None, None, NO_PLACE if edit.backgrounds else NO_PARTNER[self.settings.backgrounds]

    def _area_problem(self, mask: Mask) -> str | None:
        return area_problem(mask, self.settings.min_area, self.settings.max_area)

    def _pixels(self, case: Case) -> tuple[Image, Mask | None]:
        """Image (H x W x 3 uint8) and the visible part of the mask (H x W, None without one) of a case."""
        image = np.asarray(self.case_set.image(case))
        mask = mask_of(self.case_set, case, self.located)
        return image, None if mask is None else outside_box(image, mask)

    def _copy_source(self, task: Task) -> None:
        """Copy the source's file as it is."""
        target = self.root / task.source_file_name
        if not target.is_file():
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
    """Write a file as a whole, without waiting for the disk: thousands of small files, which can be made again."""
    write_bytes(path, content, flush=False)
