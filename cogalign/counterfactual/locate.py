"""Finding masks for the cases without an expert's one: Lightning `predict` over ranks, resumable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset

from cogalign.counterfactual.evidence import NO_EVIDENCE, FoundMask, Untrusted, find_mask
from cogalign.counterfactual.grounding import grounding_prompt, parse_boxes
from cogalign.counterfactual.located import EXPERT, Store, write_mask
from cogalign.counterfactual.located import Located as Located
from cogalign.counterfactual.masks import Image
from cogalign.counterfactual.workers import Failed, loader, raise_failed, sound, told_of_killed
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSet
from cogalign.recipe import CounterfactualSettings, MaskSettings
from cogalign.training.context import StageContext
from cogalign.training.progress import say, track
from cogalign.training.ranks import is_distributed, is_first
from cogalign.training.trainer import build_trainer, processes

if TYPE_CHECKING:
    from cogalign.counterfactual.grounding_client import Grounder
    from cogalign.models.segmenter import Segmenter

BATCH = 8
"""Cases between two writes."""
VERSION = 1
"""Raised when the same settings would find other masks: what an older version found is not used."""
NO_ANSWER = "the endpoint did not answer for the image"


def locate(context: StageContext, case_set: CaseSet, cases: Sequence[Case]) -> dict[str, Located]:
    """The masks of cases, by case id, or the reasons why there are none.

    A case whose mask was drawn by an expert, or of which nothing is known, comes back at once. For the others images
    are read, and the segmenter and a grounding model are asked as far as the recipe allows. Masks go to
    `<stage>/located/<position>.png`, the list of what was found to `<stage>/located.jsonl`. An interrupted run goes on.

    Args:
        context: recipe and folders.
        case_set: the factual case set.
        cases: those whose masks are wanted; their order is that of the result.

    Raises:
        FileNotFoundError: the segmenter, an image or a mask is missing.
        ValueError: an image cannot be read.
        GroundingError: the endpoint cannot be used.
        ChildProcessError: a worker process was killed.
        RuntimeError: the ranks do not see one another's files.
    """
    at_once, todo, store = _begin(context, case_set, cases)
    found = store.read(todo) if todo else {}
    # One of several ranks searches even if all is found: all go the same way.
    if todo and (len(found) < len(todo) or is_distributed()):
        if found:
            say(f"masks: going on, {len(found)} of {len(todo)} were looked for before")
        _search(context, case_set, todo, store, found)
        found = store.read(todo)
        missing = [case.id for _, case in todo if case.id not in found]
        if missing:
            raise RuntimeError(
                f"{store.folder}: {len(missing)} cases were not looked at, the first {missing[0]!r}; do all processes see "
                "this folder, and have they the same recipe?"
            )
    known = at_once | found
    located = {case.id: known[case.id] for case in cases}
    if is_first():
        store.write_list(case_set, located)
    return located


def located_before(context: StageContext, case_set: CaseSet, cases: Sequence[Case]) -> dict[str, Located]:
    """What `locate` has found, without looking for anything or writing.

    Args:
        context: recipe and folders.
        case_set: the factual case set.
        cases: those whose masks are wanted; their order is that of the result.

    Raises:
        FileNotFoundError: not all of them were looked for; the message names the command to run.
    """
    at_once, todo, store = _begin(context, case_set, cases)
    found = store.read(todo) if todo else {}
    if len(found) < len(todo):
        raise FileNotFoundError(
            f"{store.folder}: {len(todo) - len(found)} of {len(todo)} cases were not looked at for lesions; run "
            "`cogalign counterfactual RECIPE --phase masks` first"
        )
    known = at_once | found
    return {case.id: known[case.id] for case in cases}


def _begin(
    context: StageContext, case_set: CaseSet, cases: Sequence[Case]
) -> tuple[dict[str, Located], list[tuple[int, Case]], Store]:
    """What can be said at once, the cases that must be looked at with their positions, and where that is kept."""
    settings = context.recipe.counterfactual.masks
    positions = {case.id: position for position, case in enumerate(case_set.cases)}
    quick = {case.id: _without_looking(case_set, case, settings) for case in cases}
    todo = [(positions[case.id], case) for case in cases if quick[case.id] is None]
    store = Store(context.folder, "" if not todo else _digest(context, case_set))
    return {name: one for name, one in quick.items() if one is not None}, todo, store


def _without_looking(case_set: CaseSet, case: Case, settings: MaskSettings) -> Located | None:
    """What can be said of a case without its image; None if that is nothing."""
    if case.mask_file_name is not None and "expert" in settings.evidence:
        return Located(case_set.path(case.mask_file_name), EXPERT, 1.0)
    if (case.boxes and "box" in settings.evidence) or {"segmenter", "grounding"} & set(settings.evidence):
        return None
    return Located(None, reason=NO_EVIDENCE)


def segmenter_folder(context: StageContext) -> Path | None:
    """Folder of the segmenter that the recipe names, or None if it names none.

    Raises:
        FileNotFoundError: it is not there.
    """
    name = context.recipe.counterfactual.masks.segmenter
    if name is None:
        return None
    folder = context.run_dir / "segmenter" / "model" if name == "run" else Path(name).expanduser()
    if not (folder / "model.safetensors").is_file():
        hint = "run the stage segmenter first (cogalign segmenter RECIPE)" if name == "run" else "wanted its folder"
        raise FileNotFoundError(f"counterfactual.masks.segmenter: no segmenter in {folder}; {hint}")
    return folder


def _digest(context: StageContext, case_set: CaseSet) -> str:
    """A short digest of all that decides the masks, but the pixels of the images."""
    settings = context.recipe.counterfactual
    keys: dict[str, Any] = {"masks": asdict(settings.masks), "area": [settings.min_area, settings.max_area]}
    for name in ("api_key_env", "concurrency", "timeout", "retries"):
        del keys["masks"]["grounding"][name]
    if "grounding" in settings.masks.evidence and settings.masks.grounding.url is None:
        keys["model"] = asdict(context.recipe.model)
    content = sha256(json.dumps([VERSION, keys], sort_keys=True).encode())
    content.update((case_set.root / METADATA).read_bytes())
    folder = segmenter_folder(context)
    for name in ("model.safetensors", "config.json") if folder is not None else ():
        assert folder is not None
        content.update((folder / name).read_bytes())
    return content.hexdigest()[:12]


@dataclass(frozen=True)
class Open:
    """A case to be looked at: its image (None if an earlier run has looked), and what a worker found without nets."""

    position: int
    case: Case
    image: Image | None
    result: FoundMask | Untrusted | None = None


@dataclass(frozen=True)
class Found:
    """What was found of a case."""

    position: int
    case: Case
    result: FoundMask | Untrusted


class _Images(Dataset[Open]):
    """The cases of a rank, read when they are asked for; what needs no net is found here, in a worker process."""

    def __init__(
        self,
        case_set: CaseSet,
        share: Sequence[tuple[int, Case]],
        found: dict[str, Located],
        settings: CounterfactualSettings,
    ) -> None:
        self.case_set, self.share, self.found, self.settings = case_set, share, found, settings

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Open:
        position, case = self.share[index]
        if case.id in self.found:
            return Open(position, case, None)
        image = np.asarray(self.case_set.image(case))
        if self.settings.masks.segmenter is not None:
            return Open(position, case, image)
        area = (self.settings.min_area, self.settings.max_area)
        return Open(position, case, image, find_mask(image, case, None, self.settings.masks, *area))


class LocateModule(LightningModule):
    """Finds masks; the nets are opened on the rank's device when the first open case comes.

    Args:
        context: recipe and folders.
        case_set: the factual cases.
        todo: position and case of all that are looked for, by all ranks.
        found: what an earlier run found.
    """

    def __init__(
        self, context: StageContext, case_set: CaseSet, todo: Sequence[tuple[int, Case]], found: dict[str, Located]
    ) -> None:
        super().__init__()
        self.context, self.case_set, self.todo, self.found = context, case_set, todo, found
        self.settings = context.recipe.counterfactual
        self._segmenter: Segmenter | None = None
        self._grounder: Grounder | None = None

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every `world_size`-th case, from this rank's on."""
        share = self.todo[self.trainer.global_rank :: self.trainer.world_size]
        images = _Images(self.case_set, share, self.found, self.settings)
        return loader(images, self.settings.workers, BATCH)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Pictures stay on the CPU."""
        return batch

    def predict_step(self, batch: list[Open | Failed], batch_idx: int) -> list[Found]:
        """The masks of a batch; boxes are asked for only where other evidence gave none."""
        opened = [(one, one.image) for one in sound(batch) if one.image is not None]
        if not opened:
            return []
        maps = self._maps([image for _, image in opened])
        results = [
            one.result if one.result is not None else self._find(one, image, part, [])
            for (one, image), part in zip(opened, maps, strict=True)
        ]
        asked = [index for index, (one, _) in enumerate(opened) if self._wants_boxes(one.case, results[index])]
        for index, result in self._grounded(asked, opened, maps):
            results[index] = result
        return [Found(one.position, one.case, result) for (one, _), result in zip(opened, results, strict=True)]

    def _maps(self, images: Sequence[Image]) -> list[Any]:
        """The segmenter's probabilities, or None for each image without a segmenter."""
        folder = segmenter_folder(self.context)
        if folder is None:
            return [None] * len(images)
        if self._segmenter is None:
            from cogalign.models.segmenter import Segmenter

            self._segmenter = Segmenter.load(folder, self.trainer.strategy.root_device)
        return list(self._segmenter.probabilities(images))

    def _find(self, one: Open, image: Image, probability: Any, grounded: Sequence[Any]) -> FoundMask | Untrusted:
        """`find_mask` with this recipe's settings."""
        sure = None if self._segmenter is None else self._segmenter.confidence
        settings = self.settings
        area = (settings.min_area, settings.max_area)
        return find_mask(image, one.case, None, settings.masks, *area, probability, sure, grounded)

    def _wants_boxes(self, case: Case, result: FoundMask | Untrusted) -> bool:
        """Whether boxes are to be proposed for a case."""
        evidence = self.settings.masks.evidence
        boxed = bool(case.boxes) and "box" in evidence
        return "grounding" in evidence and not boxed and isinstance(result, Untrusted)

    def _grounded(
        self, asked: Sequence[int], opened: Sequence[tuple[Open, Image]], maps: Sequence[Any]
    ) -> Iterator[tuple[int, FoundMask | Untrusted]]:
        """The masks in proposed boxes, with their places in the batch."""
        if not asked:
            return
        settings = self.settings.masks.grounding
        images = [opened[index][1] for index in asked]
        prompts = [
            grounding_prompt(opened[index][0].case, image.shape[1], image.shape[0], settings.coordinates)
            for index, image in zip(asked, images, strict=True)
        ]
        answers = self._ask(images, prompts)
        for index, image, answer in zip(asked, images, answers, strict=True):
            one = opened[index][0]
            if answer is None:
                yield index, Untrusted(NO_ANSWER)
                continue
            finding = next((name for name in one.case.findings if name != "normal"), "lesion")
            boxes = parse_boxes(answer, image.shape[1], image.shape[0], settings.coordinates, finding)
            yield index, self._find(one, image, maps[index], boxes)

    def _ask(self, images: Sequence[Image], prompts: Sequence[str]) -> list[str | None]:
        """Ask the endpoint or the recipe's own model."""
        if self._grounder is None:
            from cogalign.counterfactual.grounding_client import EndpointGrounder, OwnGrounder

            settings = self.settings.masks.grounding
            if settings.url is not None:
                self._grounder = EndpointGrounder(settings)
            else:
                device = self.trainer.strategy.root_device
                self._grounder = OwnGrounder(self.context.recipe.model, settings.max_completion_length, device)
        return self._grounder.ask(images, prompts)

    def on_predict_end(self) -> None:
        """Close what was opened."""
        if self._grounder is not None:
            self._grounder.close()
        self._grounder = self._segmenter = None


class LocateWriter(BasePredictionWriter):
    """Writes masks first, then the lines that say that they are there."""

    def __init__(self, store: Store, count: int) -> None:
        super().__init__(write_interval="batch")
        self.store, self.count = store, count
        self._progress: Iterator[int] = iter(())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the progress bar of the first rank."""
        if trainer.is_global_zero:
            share = len(range(0, self.count, trainer.world_size))
            self._progress = iter(track(range(share), "masks of cases", folder=self.store.root))
            next(self._progress, None)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Found],
        batch_indices: Sequence[int] | None,
        batch: list[Open | Failed],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch.

        Raises:
            OSError, ValueError: a case of this batch could not be read; what was found of the others is kept.
        """
        entries: list[dict[str, Any]] = []
        for one in prediction:
            if isinstance(one.result, Untrusted):
                entries.append({"id": one.case.id, "reason": one.result.reason})
                continue
            write_mask(self.store.mask_file(one.position), one.result.mask)
            entries.append({"id": one.case.id, "provenance": one.result.provenance,
                            "confidence": round(one.result.confidence, 4)})  # fmt: skip
        if entries:
            self.store.append(trainer.global_rank, entries)
        raise_failed(batch)
        for _ in batch:
            next(self._progress, None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until all ranks are done."""
        trainer.strategy.barrier("masks found")


def _search(
    context: StageContext,
    case_set: CaseSet,
    todo: Sequence[tuple[int, Case]],
    store: Store,
    found: dict[str, Located],
) -> None:
    """Look for the masks that are not found yet."""
    settings = context.recipe.counterfactual.masks
    own_model = "grounding" in settings.evidence and settings.grounding.url is None
    options: dict[str, Any] = {"precision": "32-true", "inference_mode": False}
    if settings.segmenter is None and not own_model:  # GrabCut alone: no work for a GPU
        options |= {"accelerator": "cpu", "devices": processes(context.recipe.trainer)}
    trainer = build_trainer(
        context.recipe, folder=context.folder, callbacks=[LocateWriter(store, len(todo))], **options
    )
    if trainer.is_global_zero:
        store.forget_others(todo, found)
    with told_of_killed("masks", "what was found"):
        trainer.predict(LocateModule(context, case_set, todo, found), return_predictions=False)
