"""Checkpoints from which an interrupted stage goes on: where they lie, what is in them, which one is whole.

A checkpoint holds the trainable weights only. A LightningModule does it so::

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.strict_loading = False  # the frozen weights are not in the checkpoint

        def on_save_checkpoint(self, checkpoint):
            keep_trainable(checkpoint, self)

The step counters, the optimizer, the schedule, the random generators and the position of the data
loader are saved by Lightning and by `resume.ResumeCheckpoint`. State of the module's own (a
rollout buffer, counters) belongs into `on_save_checkpoint` and `on_load_checkpoint`, as tensors and
plain values: checkpoints are read with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from cogalign.training.progress import say

FOLDER = "checkpoints"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint straight to its file and flushes it to disk.

    Lightning's own way builds the whole file in memory first, then in the system's temporary folder.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError, RuntimeError: it cannot be written; torch hides the reason in a RuntimeError's context.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def trainable_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a module that require a gradient, by their names in its state dict."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def keep_trainable(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Leave only trainable weights in a Lightning checkpoint's `state_dict` (in place).

    Args:
        checkpoint: what Lightning hands to `on_save_checkpoint`.
        module: the LightningModule.
    """
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in names}


def commit(temporary: Path, folder: Path) -> Path:
    """Make a fully written file the newest checkpoint; the one before stays as `previous.ckpt`.

    Args:
        temporary: the new checkpoint, in `folder`.
        folder: the checkpoint folder.

    Returns:
        The path of the newest checkpoint.
    """
    last = folder / LAST
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(temporary, last)
    return last


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a stage that can be read; None if there is none.

    Args:
        folder: the stage's folder.

    A damaged `last.ckpt` (a machine that lost power) is named in a message, and `previous.ckpt` taken.
    """
    for name in (LAST, PREVIOUS):
        path = folder / FOLDER / name
        if not path.exists():
            continue
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UNREADABLE as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"warning: {path} cannot be read ({reason[:120]}); looking for the one before")
            continue
        return path
    return None


def step_of(path: Path) -> int:
    """Optimizer steps that were done when a checkpoint was written."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return int(content.get("cogalign_step", content["global_step"]))
