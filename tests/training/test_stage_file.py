from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign import __version__
from cogalign.training.stage_file import FILE_NAME, StageFile, digest_of, read_stage_file, versions

VALUES = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=5)


def test_a_stage_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = StageFile("sft", "abc", status="finished", started="2026-01-01", seconds=1.5, metrics={"loss": 0.1})
    written.write(tmp_path / "sft")
    assert read_stage_file(tmp_path / "sft") == written


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"stage": "sft"}', '{"stage":"s","digest":"d","status":"x"}']
)
def test_a_damaged_stage_file_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    assert read_stage_file(tmp_path) is None


def test_no_stage_file_is_none(tmp_path: Path) -> None:
    assert read_stage_file(tmp_path / "nothing") is None


@settings(max_examples=50, deadline=None)
@given(values=VALUES)
def test_a_digest_does_not_depend_on_the_order_of_keys(values: dict[str, object]) -> None:
    assert digest_of(values) == digest_of(dict(reversed(values.items())))


@settings(max_examples=50, deadline=None)
@given(one=VALUES, other=VALUES)
def test_other_settings_have_another_digest(one: dict[str, object], other: dict[str, object]) -> None:
    assert (digest_of(one) == digest_of(other)) == ((one == other and str(one) == str(other)) or _same(one, other))


def _same(one: dict[str, object], other: dict[str, object]) -> bool:
    return {k: (type(v), v) for k, v in one.items()} == {k: (type(v), v) for k, v in other.items()}


def test_another_input_has_another_digest() -> None:
    assert digest_of({"a": 1}, {"sft": "x"}) != digest_of({"a": 1}, {"sft": "y"})


def test_versions_name_what_results_depend_on() -> None:
    found = versions()
    assert found["cogalign"] == __version__
    assert {"python", "torch", "transformers", "lightning", "peft"} <= set(found)
    assert "not installed" not in found.values()
