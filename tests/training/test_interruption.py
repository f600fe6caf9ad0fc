"""Signals while a Trainer fits: the step is finished and saved, a second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cogalign.training.checkpoints import latest_checkpoint, step_of
from cogalign.training.interrupt import Interrupted, check, signals_interrupt
from tests.training.tiny_training import STEPS, Automatic, same, signal_at, train


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


@pytest.mark.parametrize("more", [signal.SIGUSR1, signal.SIGTERM])
def test_more_signals_of_the_batch_system_change_nothing(tmp_path: Path, more: int) -> None:
    def three_in_the_second(module: Automatic) -> None:
        if module.global_step == 1:
            for number in (signal.SIGUSR1, more, more):
                os.kill(os.getpid(), number)

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted, match="SIGUSR1; step 2 is saved"):
        train(tmp_path / "stopped", at_step=three_in_the_second)
    assert same(whole, train(tmp_path / "stopped"))


def test_ctrl_c_after_another_signal_ends_at_once(tmp_path: Path) -> None:
    def both(module: Automatic) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the training step went on")

    with pytest.raises(Interrupted, match="SIGINT again"):
        train(tmp_path, at_step=both)


def test_a_signal_after_the_last_step_lets_the_stage_end_and_stops_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(module: Automatic) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Automatic, "on_train_epoch_end", late, raising=False)
    with signals_interrupt():
        train(tmp_path)  # ends without an exception
        with pytest.raises(Interrupted, match="SIGTERM"):
            check()
