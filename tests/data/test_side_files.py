import os

import pytest

from cogalign.data.side_files import own_folder, read_lines, renamed_lines, side_file


@pytest.fixture
def root(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.txt").write_text("SECRET")
    return tmp_path / "set"


def test_a_link_out_of_the_set_is_refused_and_named(root):
    (root / "quarantine.jsonl").symlink_to("../secret.txt")
    with pytest.raises(ValueError, match=r"quarantine\.jsonl: a symbolic link leads out of the case set to .*secret"):
        read_lines(root, "quarantine.jsonl")


def test_links_are_refused_even_into_folders_that_images_may_link_to(root, monkeypatch):
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(root.parent))
    (root / "review.jsonl").symlink_to("../secret.txt")
    with pytest.raises(ValueError, match="leads out"):
        side_file(root, "review.jsonl")


def test_a_set_reached_over_a_link_and_links_inside_it_are_read(root):
    (root / "real.jsonl").write_text('{"path": "a"}')
    (root / "quarantine.jsonl").symlink_to("real.jsonl")
    (root.parent / "other").symlink_to(root)
    assert read_lines(root.parent / "other", "quarantine.jsonl") == '{"path": "a"}\n'
    assert read_lines(root, "annotations.jsonl") == ""


def test_only_folders_in_the_set_by_name_must_be_its_own(root):
    (root.parent / "elsewhere").mkdir()
    os.symlink(root.parent / "elsewhere", root / "overview")
    with pytest.raises(ValueError, match="leads out"):
        own_folder(root, root / "overview")
    with pytest.raises(ValueError, match="leads out"):
        own_folder(root, root / "overview" / "new")
    os.symlink(root.parent / "elsewhere", root.parent / "linked")
    assert own_folder(root, root.parent / "linked") == root.parent / "linked"
    assert own_folder(root, root / "plots") == root / "plots"


def test_lines_get_new_ids_and_what_a_killed_run_left_is_dropped(root):
    text = '{"case": "a", "key": "ü"}\n{"case": "b", "x": 1}\n["no object"]\n{"case": 3}\n{"case": "a", "ke'
    found = renamed_lines(text, {"a": "set-a", "b": "b"})
    assert found == '{"case": "set-a", "key": "ü"}\n{"case": "b", "x": 1}\n{"case": 3}\n'


def test_bytes_that_are_no_text_are_an_error(root):
    (root / "quarantine.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_lines(root, "quarantine.jsonl")
