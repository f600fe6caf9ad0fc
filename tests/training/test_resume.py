"""Training that is stopped at any step and taken up again ends with the same weights, bit for bit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cogalign.training.checkpoints import FOLDER, LAST, PREVIOUS, latest_checkpoint, step_of, trainable_state_dict
from cogalign.training.interrupt import Interrupted
from cogalign.training.resume import is_disk_full
from tests.training import tiny_training
from tests.training.tiny_training import STEPS, Automatic, Manual, same, signal_at, train


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


def test_a_process_killed_without_warning_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, runpy, pathlib, signal; t = runpy.run_path(sys.argv[1]); "
        "t['train'](pathlib.Path(sys.argv[2]), every=2, at_step=t['signal_at'](4, signal.SIGKILL))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_training.__file__, str(tmp_path / "killed")], cwd=root, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    checkpoint = latest_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert step_of(checkpoint) == 2
    assert same(train(tmp_path / "whole"), train(tmp_path / "killed"))


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


def test_going_on_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=signal_at(2))
    train(tmp_path)
    assert "tiny: going on after step 2" in capsys.readouterr().err
