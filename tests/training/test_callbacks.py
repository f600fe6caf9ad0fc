"""Training that is stopped at any step and taken up again ends with the same weights, bit for bit."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from cogalign.recipe import Recipe, TrainerSettings
from cogalign.training.callbacks import Progress
from cogalign.training.checkpoints import (
    FOLDER,
    LAST,
    PREVIOUS,
    keep_trainable,
    latest_checkpoint,
    step_of,
    trainable_state_dict,
)
from cogalign.training.interrupt import Interrupted
from cogalign.training.interruption import Interrupt
from cogalign.training.resume import ResumeCheckpoint, is_disk_full
from cogalign.training.seeding import seed_everything
from cogalign.training.trainer import build_trainer, fit_or_resume

STEPS = 6


class Noisy(Dataset[torch.Tensor]):
    """Items that depend on all three generators, as augmentation does."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(4) + index + random.random() + float(np.random.random())


class Batches(Sampler[list[int]]):
    def __init__(self, total: int, start: int) -> None:
        self.total, self.start = total, start

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.start, self.total):
            yield [(index * 3 + offset) % 64 for offset in range(3)]


class Data(LightningDataModule):
    def __init__(self, total: int, validate: bool = False) -> None:
        super().__init__()
        self.total, self.validate, self.consumed = total, validate, 0

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed = state_dict["consumed"]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Noisy(), batch_sampler=Batches(self.total, self.consumed))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return DataLoader(Noisy(), batch_size=2) if self.validate else []


class Automatic(LightningModule):
    """Dropout, a frozen layer, AdamW and a schedule; automatic optimization as in SFT."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 1))
        self.at_step: Any = None
        self.validated_at: list[int] = []

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.net(self.frozen(batch)) - batch.mean()).square().mean()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.trainer.datamodule.consumed += 1  # type: ignore[attr-defined]
        if self.at_step is not None:
            self.at_step(self)
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validated_at.append(self.global_step)
        self.log("eval_loss", self.loss(batch) + torch.rand(()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trainable(checkpoint, self)


class Manual(Automatic):
    """Manual optimization with its own count and several optimizer steps a batch, as in GRPO."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_step_count = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:  # type: ignore[override]
        self.trainer.datamodule.consumed += 1  # type: ignore[attr-defined]
        optimizer: Any = self.optimizers()
        for _ in range(2):
            if self.at_step is not None:
                self.at_step(self)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch + torch.rand(())))
            optimizer.step()
            self.optimizer_step_count += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=0.05)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["optimizer_step_count"] = self.optimizer_step_count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.optimizer_step_count = checkpoint["optimizer_step_count"]


def train(
    folder: Path,
    kind: type[Automatic] = Automatic,
    *,
    at_step: Callable[[Automatic], None] | None = None,
    every: int = 100,
    accumulate: int = 1,
    validate: bool = False,
    interrupt: bool = True,
) -> Automatic:
    """Train for STEPS batches-worth of steps (or go on with it) and give the module back."""
    seed_everything(7)
    module = kind()
    module.at_step = at_step
    stop = Interrupt()
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate} if accumulate > 1 else {}
    trainer = build_trainer(
        Recipe(trainer=TrainerSettings(accelerator="cpu")),
        folder=folder,
        max_steps=STEPS if kind is Automatic else -1,
        callbacks=[Progress("tiny", STEPS), stop, ResumeCheckpoint(folder, every, stop if interrupt else None)],
        val_check_interval=2 if validate else None,
        check_val_every_n_epoch=None if validate else 1,
        **options,
    )
    fit_or_resume(trainer, module, Data(STEPS * accumulate, validate), folder, "tiny")
    return module


def signal_at(call: int, number: int = signal.SIGTERM) -> Callable[[Automatic], None]:
    """Send a signal to this process in the call-th training step (from 1)."""
    calls = iter(range(1, 1000))

    def at_step(module: Automatic) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), number)

    return at_step


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_a_run_stopped_at_any_step_ends_with_the_same_weights(tmp_path: Path, kind: type[Automatic], step: int) -> None:
    whole = train(tmp_path / "whole", kind)
    with pytest.raises(Interrupted, match="SIGTERM"):
        train(tmp_path / "stopped", kind, at_step=signal_at(step))
    resumed = train(tmp_path / "stopped", kind)
    assert same(whole, resumed)


def test_a_run_stopped_twice_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", at_step=signal_at(2))
    assert same(whole, train(tmp_path / "stopped"))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_stop_between_accumulated_gradients_waits_for_the_step(tmp_path: Path, batch: int) -> None:
    whole = train(tmp_path / "whole", accumulate=3)
    with pytest.raises(Interrupted, match=f"step {1 if batch <= 3 else 2} is saved"):
        train(tmp_path / "stopped", at_step=signal_at(batch), accumulate=3)
    assert same(whole, train(tmp_path / "stopped", accumulate=3))


def test_validation_leaves_training_as_it_is(tmp_path: Path) -> None:
    assert same(train(tmp_path / "without"), train(tmp_path / "with", validate=True))


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_with_validation_goes_on_bit_for_bit(tmp_path: Path, step: int) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", at_step=signal_at(step), validate=True)
    resumed = train(tmp_path / "stopped", validate=True)
    assert same(whole, resumed)
    assert resumed.validated_at == [4, 6]


def test_a_validation_that_is_due_is_done_before_the_run_stops(tmp_path: Path) -> None:
    modules: list[Automatic] = []

    def stop_in_the_second(module: Automatic) -> None:
        modules.append(module)
        if module.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="step 2 is saved"):
        train(tmp_path, at_step=stop_in_the_second, validate=True)
    assert modules[0].validated_at == [2]


def test_a_stop_in_the_last_step_ends_the_run_and_the_next_one_has_nothing_left_to_train(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"step {STEPS} is saved"):
        train(tmp_path / "stopped", at_step=signal_at(STEPS))
    steps: list[int] = []
    resumed = train(tmp_path / "stopped", at_step=lambda module: steps.append(1))
    assert same(whole, resumed)
    assert steps == []


def test_a_process_killed_without_warning_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, runpy, pathlib, signal; t = runpy.run_path(sys.argv[1]); "
        "t['train'](pathlib.Path(sys.argv[2]), every=2, at_step=t['signal_at'](4, signal.SIGKILL))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "killed")], cwd=root, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    checkpoint = latest_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert step_of(checkpoint) == 2
    assert same(train(tmp_path / "whole"), train(tmp_path / "killed"))


def test_the_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    def twice_in_the_third(module: Automatic) -> None:
        if module.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the training step went on")

    with pytest.raises(Interrupted, match="SIGINT again"):
        train(tmp_path, at_step=twice_in_the_third, every=1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert step_of(checkpoint) == 2


def test_signals_are_given_back_after_training(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=signal_at(1))
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize(("kind", "per_batch"), [(Automatic, 1), (Manual, 2)])
def test_checkpoints_come_every_n_optimizer_steps(tmp_path: Path, kind: type[Automatic], per_batch: int) -> None:
    train(tmp_path, kind, every=2 * per_batch)
    folder = tmp_path / FOLDER
    assert step_of(folder / LAST) == 6 * per_batch
    assert step_of(folder / PREVIOUS) == 4 * per_batch
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]


def test_a_checkpoint_holds_trainable_weights_only(tmp_path: Path) -> None:
    module = train(tmp_path, every=2)
    content = torch.load(tmp_path / FOLDER / LAST, weights_only=True)
    assert set(content["state_dict"]) == {"net.1.weight", "net.1.bias"} == set(trainable_state_dict(module))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "a", every=2)
    train(tmp_path / "b", every=2)
    last = tmp_path / "b" / FOLDER / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    assert latest_checkpoint(tmp_path / "b") == tmp_path / "b" / FOLDER / PREVIOUS
    assert f"warning: {last} cannot be read" in capsys.readouterr().err
    assert same(whole, train(tmp_path / "b", every=2))


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_a_full_disk_gives_one_clear_message_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    def fill_the_disk(module: Automatic) -> None:
        if module.global_step == 3:
            (tmp_path / FOLDER / f".{LAST}.tmp").symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"disk full while writing the checkpoint of step 4 .*is kept") as raised:
        train(tmp_path, every=2, at_step=fill_the_disk)
    assert raised.value.errno == errno.ENOSPC
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert step_of(checkpoint) == 2
    assert same(train(tmp_path / "whole"), train(tmp_path))


def test_a_full_disk_is_found_behind_another_error() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "no space")
        except OSError as error:
            raise RuntimeError("unexpected pos") from error
    except RuntimeError as error:
        assert is_disk_full(error)
    assert not is_disk_full(RuntimeError("other"))
    assert not is_disk_full(OSError(errno.EACCES, "not allowed"))


def test_the_last_line_of_progress_names_steps_and_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiny ")]
    assert lines[-1].startswith(f"tiny {STEPS}/{STEPS} (")
    assert "loss " in lines[-1]


def test_going_on_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=signal_at(2))
    train(tmp_path)
    assert "tiny: going on after step 2" in capsys.readouterr().err
