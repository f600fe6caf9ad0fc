"""Lightning's trainer as all stages use it, and one call that starts a stage or goes on with it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training.checkpoints import StreamedCheckpoints, latest_checkpoint, step_of
from cogalign.training.guarded import guarded
from cogalign.training.progress import say
from cogalign.training.strategies import strategy_of
from cogalign.training.strategies import uses_gpu as uses_gpu

NOISE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*GPU available but not used.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ".*in eval mode at the start of training.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*`training_step` returned `None`.*",
    ".*`srun` command is available on your system but is not used.*",
)


def processes(settings: TrainerSettings) -> int:
    """Processes on a machine for work on the CPU: the recipe's number of devices; one where it leaves that open."""
    return int(settings.devices) if str(settings.devices).isdigit() else 1


def resolve_precision(settings: TrainerSettings) -> str:
    """Lightning's name of the precision: `auto` is bf16-mixed on a GPU with bfloat16, else 32-true."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if uses_gpu(settings) and torch.cuda.is_bf16_supported() else "32-true"


def build_trainer(
    recipe: Recipe,
    *,
    folder: Path,
    stage: str = "",
    max_steps: int = -1,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    **options: Any,
) -> Trainer:
    """A quiet Trainer for one stage.

    Args:
        recipe: gives the devices, strategy, precision and CPU threads.
        folder: the stage's folder.
        stage: its name; sft and grpo may shard their model, for all others a strategy only says where devices are.
        max_steps: optimizer steps in Lightning's count; -1 for one pass over the loader (manual optimization, where
            Lightning counts every optimizer's steps).
        callbacks: from `fitting.fit_callbacks`.
        loggers: from `tracking.build_loggers`.
        options: passed on to Lightning's `Trainer` (`accumulate_grad_batches`, `gradient_clip_val`, `val_check_interval`).

    Returns:
        A Trainer without Lightning's own checkpoints, progress bar, sanity validation and samplers.

    Raises:
        ValueError: the strategy cannot work on these devices or in this stage.
    """
    settings = recipe.trainer
    quiet()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    plugins: list[Any] = [StreamedCheckpoints(), *options.pop("plugins", [])]
    if SLURMEnvironment.detect():
        # Lightning's own requeue saves inside the signal handler, in the middle of a collective.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    defaults: dict[str, Any] = {
        "accelerator": settings.accelerator
        if settings.accelerator != "auto"
        else ("gpu" if uses_gpu(settings) else "cpu"),
        "devices": settings.devices if settings.devices != "auto" or uses_gpu(settings) else 1,
        "num_nodes": settings.num_nodes,
        "strategy": strategy_of(recipe, stage),
        "precision": resolve_precision(settings),
        "max_steps": max_steps,
        "max_epochs": -1 if max_steps > 0 else 1,
        "default_root_dir": folder,
        "plugins": plugins,
        "callbacks": list(callbacks),
        "logger": list(loggers) or False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(**{**defaults, **options})
    _without_broadcast(trainer)
    return trainer


def _without_broadcast(trainer: Trainer) -> None:
    """Keep Lightning's handler of SIGTERM out of the ranks' conversation.

    It broadcasts from inside the handler: into the middle of another collective, or to a rank that has ended. Only the
    processes that the launcher has started are told, as before; the handlers that were there are called after it.
    """

    def tell_children(number: int, _frame: FrameType | None) -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)

    trainer._signal_connector._sigterm_notifier_fn = tell_children  # type: ignore[method-assign, assignment]


def fit_or_resume(
    trainer: Trainer, module: LightningModule, data: LightningDataModule | Any, folder: Path, stage: str
) -> None:
    """Train from the start, or from the newest checkpoint in the stage's folder, and say which.

    Args:
        trainer: from `build_trainer`.
        module: what is trained.
        data: a LightningDataModule or a train loader.
        folder: the stage's folder.
        stage: its name, for the message.

    Raises:
        Interrupted: a signal ended the training; a checkpoint was saved.
        OSError: the disk is full.
        ValueError, ChildProcessError: what ended the training, in one line (see `guarded`).
    """
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None and trainer.is_global_zero:
        say(f"{stage}: going on after step {step_of(checkpoint)} ({checkpoint})")
    where = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data}
    with guarded(trainer, folder, stage):
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True, **where)


def quiet() -> None:
    """Keep Lightning's advertisements and remarks that our settings make pointless off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
