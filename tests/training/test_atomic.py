import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.training.atomic import append_lines, atomic_file, readable, write_json, write_text

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(content=PLAIN)
def test_json_is_read_back_as_it_was_written(content: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("atomic") / "deep" / "file.json"
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_an_error_while_writing_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="broken"), atomic_file(path) as file:
        file.write(b"half of the n")
        raise RuntimeError("broken")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr("cogalign.training.atomic.temporary_name", lambda path: path.with_name(".file.7.tmp"))
    (tmp_path / ".file.7.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        write_text(path, "new")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == "old"


def test_numbers_of_numpy_and_paths_become_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": Path("d") / "e"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 0.5, "b": [0, 1], "c": "d/e"}


def test_a_value_that_json_does_not_have_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set"):
        write_json(tmp_path / "x.json", {"a": {1}})
    assert not list(tmp_path.iterdir())


def test_files_of_a_checkpoint_get_the_permissions_of_new_files(tmp_path: Path) -> None:
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir()
    weights.touch(mode=0o600)
    before = os.umask(0o022)
    try:
        readable(tmp_path)
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == 0o644


def test_lines_are_added_after_what_a_killed_run_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rank-0.jsonl"
    append_lines(path, [{"id": "é"}, {"id": "b"}])
    append_lines(path, [{"id": "c"}])
    with open(path, "ab") as file:
        file.write(b'{"id": "cut o')
    append_lines(path, [{"id": "d"}])
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"id": "é"}', '{"id": "b"}', '{"id": "c"}', '{"id": "cut o', '{"id": "d"}'
    ]  # fmt: skip
