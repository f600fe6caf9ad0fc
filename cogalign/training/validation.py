"""The validation that a killed run still owed: its checkpoint was written before it."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from cogalign.training.metrics_file import METRICS_FILE, read_rows


def owes_validation(trainer: Trainer, metric: str) -> bool:
    """Whether a validation is due at the step from which training goes on, and `metrics.csv` has no result of it.

    Args:
        trainer: it is about to train; its root folder is the stage's.
        metric: what every validation logs.
    """
    step = trainer.global_step
    batches, every = step * trainer.accumulate_grad_batches, trainer.val_check_batch
    if step == 0 or not trainer.enable_validation or not isinstance(every, int) or batches % every:
        return False
    _, rows = read_rows(Path(trainer.default_root_dir) / METRICS_FILE)
    is_done = any(row["step"] == str(step) and metric in row for row in rows[-1:])
    return bool(trainer.strategy.broadcast(not is_done))  # the first rank's word: files reach other machines late


def validate_now(trainer: Trainer) -> None:
    """Validate as Lightning does in the middle of a training, with all its hooks, before the training goes on."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    try:
        loop.run()
    finally:
        trainer.training = True
