"""The stage `segmenter`: a case set with masks in, a calibrated net and its figures out."""

from __future__ import annotations

import math
from typing import Any

import torch

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.models.segmenter import Segmenter, SegmenterConfig, build, config_of
from cogalign.recipe import Recipe, SegmenterSettings
from cogalign.segmenter.dataset import PlainImages, SegmenterData, TrainImages, cases_of
from cogalign.segmenter.judge import Judged, add_confidence, calibrate, judge, write_cases
from cogalign.segmenter.metrics import summary
from cogalign.segmenter.module import SegmenterModule
from cogalign.segmenter.pictures import write_curves, write_worst
from cogalign.training.atomic import write_json
from cogalign.training.context import StageContext
from cogalign.training.finite import FiniteGuard
from cogalign.training.fitting import fit_callbacks
from cogalign.training.progress import say
from cogalign.training.seeding import derive_seed, seed_everything
from cogalign.training.strategies import devices_of
from cogalign.training.tracking import build_loggers, finish_tracking
from cogalign.training.trainer import build_trainer, fit_or_resume, uses_gpu

MODEL = "model"


def prepare_network(settings: SegmenterSettings) -> tuple[SegmenterConfig, torch.nn.Module]:
    """Configuration and net, its memory laid out channels last, which is faster on CPUs and GPUs alike."""
    config = config_of(settings)
    network = build(config, settings.pretrained)
    return config, network.to(memory_format=torch.channels_last)


def prepare_data(recipe: Recipe, case_set: CaseSet, batches: int | None = None, world: int = 1) -> SegmenterData:
    """The loaders; by default as many batches as the recipe's epochs have on `world` devices.

    Raises:
        ValueError: the splits `train` and `validation` are not both there, or have no masks.
    """
    settings = recipe.segmenter
    seed = derive_seed(recipe.seed, "segmenter", "data")
    train = TrainImages(case_set, cases_of(case_set, "train", settings), settings, seed)
    validation = PlainImages(case_set, cases_of(case_set, "validation", settings).lesions, settings.side)
    if batches is None:
        batches = settings.epochs * math.ceil(len(train) / (settings.batch_size * world))
    return SegmenterData(train, validation, settings, batches, seed)


def train(context: StageContext, case_set: CaseSet) -> tuple[SegmenterModule, SegmenterConfig, Any]:
    """Fit the net, or go on with it; the best weights lie in the stage's folder then.

    Raises:
        Interrupted: a signal ended the training; a checkpoint was saved.
    """
    recipe, settings = context.recipe, context.recipe.segmenter
    seed_everything(derive_seed(recipe.seed, "segmenter"))
    config, network = prepare_network(settings)
    data = prepare_data(recipe, case_set, world=devices_of(recipe.trainer))
    per_epoch = data.batches // settings.epochs
    guard = FiniteGuard(context.folder, recipe.trainer.nonfinite_limit)
    module = SegmenterModule(network, config, settings, data.batches, per_epoch, context.folder, guard)
    every = settings.checkpoint_every * per_epoch
    trainer = build_trainer(
        recipe,
        folder=context.folder,
        stage="segmenter",
        max_steps=data.batches,
        callbacks=fit_callbacks(recipe, context.folder, "segmenter", data.batches, every),
        loggers=build_loggers(recipe, context),
        gradient_clip_val=settings.max_grad_norm,
        val_check_interval=module.interval,
        check_val_every_n_epoch=None,
    )
    lesions, normals = len(data.train.split.lesions), data.train.negatives
    say(
        f"segmenter: {settings.architecture} with {settings.encoder}, {lesions} images with lesions and {normals} normal "
        f"ones an epoch, {per_epoch} steps an epoch, {len(data.validation)} images to validate on"
    )
    fit_or_resume(trainer, module, data, context.folder, "segmenter")
    module.catch_up()
    return module, config, trainer


def run(context: StageContext) -> dict[str, Any]:
    """Train, calibrate on `validation`, judge on `validation` and `test`, and write all of it into the stage's folder.

    Written: `model/` (`config.json`, `model.safetensors`), `scores.json`, `cases.csv`, `worst.png`, `worst.html`,
    `curves.png`, beside `metrics.csv` and the checkpoints.

    Returns:
        `best_epoch`, `temperature`, and for `validation` and (if there is one) `test`: `dice`, `iou`, `boundary_f1`,
        `confidence` with intervals (`..._ci`), `n`, `missed` and the share of normal images with a false positive.

    Raises:
        ValueError: a split or its masks are missing, or net and settings do not fit.
        Interrupted: a signal ended the training; a checkpoint was saved.
    """
    recipe, settings = context.recipe, context.recipe.segmenter
    case_set = read_case_set(context.case_set_dir)
    module, config, trainer = train(context, case_set)
    scores: dict[str, Any] = {}
    if trainer.is_global_zero:
        best = module.load_best()
        scores = {"best_epoch": best / module.steps_per_epoch, "steps": trainer.global_step}
        device = "cuda" if uses_gpu(recipe.trainer) else "cpu"
        segmenter = Segmenter(module.network.requires_grad_(False), config, device)
        scores |= _finish(context, case_set, segmenter, scores["best_epoch"])
        write_curves(module.read_history(), context.folder, module.steps_per_epoch, best)
        write_json(context.folder / "scores.json", scores)
        _tell(scores, settings)
    trainer.strategy.barrier("segmenter")  # no rank goes on to the next stage before the files are there
    finish_tracking()
    return scores


def _finish(context: StageContext, case_set: CaseSet, segmenter: Segmenter, epoch: float) -> dict[str, Any]:
    """Calibrate, save, judge, draw; the scores of each split."""
    settings = context.recipe.segmenter
    judged: dict[str, list[Judged]] = {}
    for name in ("validation", "test"):
        if name == "validation" or name in case_set.splits:
            split = cases_of(case_set, name, settings)
            judged[name] = judge(segmenter, case_set, [*split.lesions, *split.normals], name)
    calibration = calibrate(judged["validation"])
    for found in judged.values():
        add_confidence(found, calibration)
    seed = derive_seed(context.recipe.seed, "segmenter", "bootstrap")
    scores = {name: summary([one.row for one in found], settings.bootstrap, seed) for name, found in judged.items()}
    data_sets = sorted({one.case.dataset for one in judged["validation"] if not one.row["normal"]})
    notes = {"data": data_sets, "epoch": epoch, "validation_dice": scores["validation"]["dice"]}
    segmenter = segmenter.calibrated(calibration, notes)
    segmenter.save(context.folder / MODEL)
    write_cases([one for found in judged.values() for one in found], context.folder / "cases.csv")
    shown = judged.get("test", judged["validation"])
    write_worst(shown, segmenter, case_set, context.folder, settings.worst)
    return {"temperature": calibration.temperature, **scores}


def _tell(scores: dict[str, Any], settings: SegmenterSettings) -> None:
    """The figures in a line a split."""
    for name in ("validation", "test"):
        if name in scores:
            found = scores[name]
            interval = found["dice_ci"]
            within = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            say(f"segmenter: {name}: Dice {found['dice']:.3f}{within}, IoU {found['iou']:.3f}, "
                f"boundary F1 {found['boundary_f1']:.3f} over {found['n']} images")  # fmt: skip
