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

from cogalign.training.checkpoint_content import trainable_state_dict
from cogalign.training.checkpoints import FOLDER, latest_checkpoint, path_of, read, step_of, temporary_of
from cogalign.training.disk import is_disk_full
from cogalign.training.interrupt import Interrupted
from cogalign.training.tracking import CHECKPOINT_KEY, restore_id
from tests.training import tiny_training
from tests.training.tiny_training import STEPS, Automatic, Manual, same, signal_at, train


def names(folder: Path) -> list[str]:
    """Everything in a stage's checkpoint folder."""
    return sorted(path.name for path in (folder / FOLDER).iterdir())


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
def test_checkpoints_come_every_n_optimizer_steps_and_the_newest_two_stay(
    tmp_path: Path, kind: type[Automatic], per_batch: int
) -> None:
    train(tmp_path, kind, every=2 * per_batch)
    assert names(tmp_path) == [f"step-{step * per_batch:08d}.ckpt" for step in (4, 6)]


@pytest.mark.parametrize("keep", [1, 3, 9])
def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path: Path, keep: int) -> None:
    train(tmp_path, every=1, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}.ckpt" for step in range(1, STEPS + 1)][-keep:]


def test_optimizer_states_are_kept_by_the_names_of_the_parameters(tmp_path: Path) -> None:
    train(tmp_path, every=2)
    content = torch.load(path_of(tmp_path, 6), weights_only=True)
    (state,) = content["optimizer_states"]
    assert set(state["state"]) == {"net.1.weight", "net.1.bias"}
    assert [group["params"] for group in state["param_groups"]] == [["net.1.weight", "net.1.bias"]]
    for name, values in state["state"].items():
        assert values["exp_avg"].shape == content["state_dict"][name].shape
        assert float(values["step"]) == 6


def test_a_state_is_loaded_by_name_whatever_the_order_of_the_parameters(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", every=2)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", at_step=signal_at(3))
    path = path_of(tmp_path / "b", 3)
    content = torch.load(path, weights_only=True)
    for group in content["optimizer_states"][0]["param_groups"]:
        group["params"].reverse()
    torch.save(content, path)
    assert same(whole, train(tmp_path / "b"))


def test_a_state_of_other_parameters_is_refused_with_the_name_of_one(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=signal_at(3))
    content = torch.load(path_of(tmp_path, 3), weights_only=True)
    content["optimizer_states"][0]["param_groups"][0]["params"][0] = "net.7.weight"
    torch.save(content, path_of(tmp_path, 3))
    with pytest.raises(ValueError, match=r"net\.1\.weight is in one of them only"):
        train(tmp_path)


def test_a_checkpoint_holds_trainable_weights_only(tmp_path: Path) -> None:
    module = train(tmp_path, every=2)
    content = torch.load(path_of(tmp_path, 6), weights_only=True)
    assert set(content["state_dict"]) == {"net.1.weight", "net.1.bias"} == set(trainable_state_dict(module))


def test_after_a_damaged_checkpoint_the_run_goes_on_from_the_one_before_and_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "a")
    with pytest.raises(Interrupted):
        train(tmp_path / "b", every=2, at_step=signal_at(5))
    newest, before = path_of(tmp_path / "b", 5), path_of(tmp_path / "b", 4)
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert same(whole, train(tmp_path / "b", every=2))
    said = capsys.readouterr().err
    assert f"warning: {newest} is damaged (" in said and f"going back to {before}" in said
    assert names(tmp_path / "b") == [before.name, "step-00000006.ckpt"]


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, at_step=signal_at(2))
    temporary_of(path_of(tmp_path, 9)).write_bytes(b"half")
    (temporary_of(path_of(tmp_path, 8)) / "part").mkdir(parents=True)
    train(tmp_path)
    assert names(tmp_path) == ["step-00000002.ckpt"]


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_a_full_disk_gives_one_clear_message_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    def fill_the_disk(module: Automatic) -> None:
        if module.global_step == 3:
            temporary_of(path_of(tmp_path, 4)).symlink_to("/dev/full")

    wanted = r"disk full while writing the checkpoint of step 4 .*is kept \(step-00000002.ckpt\)"
    with pytest.raises(OSError, match=wanted) as raised:
        train(tmp_path, every=2, at_step=fill_the_disk)
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-00000002.ckpt"]
    assert same(train(tmp_path / "whole"), train(tmp_path))


def test_the_wandb_run_is_named_in_the_checkpoint(tmp_path: Path) -> None:
    restore_id(tmp_path, "abc123")
    train(tmp_path, every=6)
    assert read(path_of(tmp_path, 6))[CHECKPOINT_KEY] == "abc123"


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
