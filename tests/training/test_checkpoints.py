"""Files and folders of checkpoints: what is whole, what is damaged, what stays."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from cogalign.training.checkpoint_content import META, canonical, in_order, keep_trainable, restored_names
from cogalign.training.checkpoints import (
    COMPLETE,
    FOLDER,
    clean,
    commit,
    damage,
    latest_checkpoint,
    path_of,
    step_of,
    temporary_of,
)


def content(step: int) -> dict[str, Any]:
    weights = {"w": torch.full((64, 64), float(step))}
    return {"cogalign_step": step, "state_dict": weights, "optimizer_states": [], "loops": {}}


def write(folder: Path, step: int, keep: int = 9, sharded: bool = False) -> Path:
    path = path_of(folder, step)
    temporary = temporary_of(path)
    path.parent.mkdir(exist_ok=True)
    if sharded:
        (temporary / "parts").mkdir(parents=True)
        (temporary / "parts" / "0.distcp").write_bytes(os.urandom(1000))
        torch.save(content(step), temporary / META)
    else:
        torch.save(content(step), temporary)
    commit(path, keep)
    return path


def zero(path: Path, start: int, count: int) -> None:
    with open(path, "rb+") as file:
        file.seek(start)
        file.write(bytes(count))


def lose_a_page(path: Path) -> None:
    """A tensor's bytes become zeros: the file still opens and loads."""
    place = path.read_bytes().index(torch.full((4,), 5.0).numpy().tobytes())
    zero(path, place + 64, 512)
    assert torch.load(path, weights_only=True, mmap=True)["cogalign_step"] == 5


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "all zeros": lambda path: zero(path, 0, path.stat().st_size),
    "a page of a tensor lost": lose_a_page,
    "another file": lambda path: path.write_bytes(b"PK\x03\x04" + os.urandom(5000)),
    "other content": lambda path: torch.save({"weights": torch.ones(3)}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "an empty folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_falls_back_to_the_one_before_with_both_named(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, newest = write(tmp_path, 3), write(tmp_path, 5)
    assert latest_checkpoint(tmp_path) == newest and capsys.readouterr().err == ""
    DAMAGES[how](newest)
    assert latest_checkpoint(tmp_path) == before
    said = capsys.readouterr().err
    assert f"{newest} is damaged (" in said and f"going back to {before}" in said


@pytest.mark.parametrize("lost", [COMPLETE, META, "parts/0.distcp", "a part's end"])
def test_a_folder_without_one_of_its_parts_falls_back_to_the_one_before(lost: str, tmp_path: Path) -> None:
    before, newest = write(tmp_path, 3, sharded=True), write(tmp_path, 5, sharded=True)
    assert damage(newest) is None and latest_checkpoint(tmp_path) == newest
    if lost == "a part's end":
        part = newest / "parts" / "0.distcp"
        part.write_bytes(part.read_bytes()[:-1])
    else:
        (newest / lost).unlink()
    assert latest_checkpoint(tmp_path) == before


def test_if_all_are_damaged_the_stage_starts_anew_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 3).write_bytes(b"")
    assert latest_checkpoint(tmp_path) is None
    assert "the stage starts anew" in capsys.readouterr().err


def test_a_whole_one_for_which_there_is_no_memory_now_is_not_given_up(tmp_path: Path) -> None:
    path = path_of(tmp_path, 3)
    path.parent.mkdir()
    torch.save({**content(3), "state_dict": {"w": torch.zeros(2**26)}}, temporary_of(path))
    commit(path, 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**25, hard))
    try:
        with pytest.raises(OSError, match=r"Cannot allocate memory.*nothing is started without it"):
            latest_checkpoint(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert latest_checkpoint(tmp_path) == path


def test_an_old_one_that_cannot_be_deleted_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path, 3, sharded=True)
    (old.with_name(f".{old.name}.old") / "held open").mkdir(parents=True)
    assert write(tmp_path, 5, keep=1) == latest_checkpoint(tmp_path)
    assert f"warning: {old} is not needed any more and could not be deleted" in capsys.readouterr().err


def test_one_that_was_just_written_stays_whatever_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path, 9).write_bytes(b"")
    assert write(tmp_path, 5, keep=1) == latest_checkpoint(tmp_path)


def test_the_newest_stay_files_and_folders_alike(tmp_path: Path) -> None:
    for step in (2, 4):
        write(tmp_path, step, sharded=True)
    write(tmp_path, 6, keep=2)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["step-00000004.ckpt", "step-00000006.ckpt"]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_of_the_same_step_takes_the_place_of_a_damaged_one(tmp_path: Path, sharded: bool) -> None:
    path = write(tmp_path, 5, sharded=sharded)
    (path / COMPLETE).unlink() if sharded else path.write_bytes(b"")
    assert write(tmp_path, 5, sharded=not sharded) == latest_checkpoint(tmp_path)


def test_half_written_ones_are_no_checkpoints_and_are_cleared_away(tmp_path: Path) -> None:
    whole = write(tmp_path, 5)
    temporary_of(path_of(tmp_path, 7)).write_bytes(whole.read_bytes())
    (temporary_of(path_of(tmp_path, 8)) / "parts").mkdir(parents=True)
    (tmp_path / FOLDER / "notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path) == whole and step_of(whole) == 5
    clean(tmp_path)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["notes.txt", whole.name]


def test_names_do_not_depend_on_compiled_and_checkpointed_parts() -> None:
    assert canonical("model._orig_mod.layers.0._checkpoint_wrapped_module.w") == "model.layers.0.w"
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    compiled = torch.nn.Sequential(torch.compile(plain[0]), plain[1])
    checkpoint: dict[str, Any] = {"state_dict": compiled.state_dict()}
    keep_trainable(checkpoint, compiled)
    assert set(checkpoint["state_dict"]) == {"0.weight", "0.bias"}
    restored_names(checkpoint, compiled)
    assert set(checkpoint["state_dict"]) == {"0._orig_mod.weight", "0._orig_mod.bias"}


def test_a_state_with_other_groups_is_refused() -> None:
    state = {"state": {}, "param_groups": [{"params": ["a"]}, {"params": ["b"]}]}
    assert in_order(state, [["a"], ["b"]])["param_groups"] == state["param_groups"]
    with pytest.raises(ValueError, match="2 groups of parameters, this one 1"):
        in_order(state, [["a", "b"]])
