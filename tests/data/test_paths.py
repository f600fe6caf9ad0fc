import fnmatch
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.paths import file_stem, inside, slug, split_word

words = st.sampled_from(["train", "test", "val", "dev", "eval", "image", "7", "x", "testing", "a", "Test"])
separators = st.sampled_from(["-", "_", ".", " ", "0", ""])
names = st.lists(st.tuples(words, separators), min_size=1, max_size=5).map(
    lambda parts: "".join(w + s for w, s in parts)
)


@settings(max_examples=200, deadline=None)
@given(names)
def test_a_file_stem_names_no_split(name):
    assert split_word(f"images/{file_stem(name)}.png") is None


@settings(max_examples=200, deadline=None)
@given(names)
def test_split_words_are_those_of_the_patterns_of_datasets(name):
    from datasets.data_files import SPLIT_KEYWORDS

    keywords = [keyword for found in SPLIT_KEYWORDS.values() for keyword in found]
    separator = "[-._ 0-9]"
    patterns = [p for k in keywords for p in (f"{k}{separator}*", f"*{separator}{k}{separator}*")]
    matches = any(fnmatch.fnmatchcase(f"{name}.png", pattern) for pattern in patterns)
    assert matches == (split_word(f"{name}.png") is not None)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_a_path_stays_inside_or_is_refused(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp()
    try:
        path = inside(root, text)
    except ValueError:
        return
    assert path.resolve().is_relative_to(root.resolve())


def test_names_become_slugs():
    assert slug("Small bowel_terminal ileum") == "small-bowel-terminal-ileum"
    assert slug("Barrett's esophagus") == "barretts-esophagus"
    assert file_stem("../etc/passwd") == "etc-passwd"


def test_a_link_may_lead_out_only_into_a_folder_that_the_environment_names(tmp_path, monkeypatch):
    for name in ("set", "data", "data2"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/a.jpg").write_bytes(b"")
    (tmp_path / "data2/b.jpg").write_bytes(b"")
    (tmp_path / "set/a.jpg").symlink_to(tmp_path / "data/a.jpg")
    (tmp_path / "set/b.jpg").symlink_to(tmp_path / "data2/b.jpg")
    with pytest.raises(ValueError, match=r"leads out of .*set COGALIGN_DATA_ROOTS"):
        inside(tmp_path / "set", "a.jpg")
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", os.pathsep.join(("", str(tmp_path / "none"), str(tmp_path / "data"))))
    assert inside(tmp_path / "set", "a.jpg") == tmp_path / "set/a.jpg"
    with pytest.raises(ValueError, match="leads out"):
        inside(tmp_path / "set", "b.jpg")  # data2 begins like data, but is another folder
