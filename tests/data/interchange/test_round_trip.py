"""Case to format to case keeps every field exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set
from cogalign.data.interchange.cases import Place, cases_of
from cogalign.data.interchange.commands import FORMATS, export_case_set, import_interchange
from cogalign.data.sources import read_sources
from tests.data.interchange.conftest import PIXELS, any_case, make_cases, picture, write_set

WRITTEN = [name for name, one in FORMATS.items() if one.write]
ELSEWHERE = Place("images/a.png", "a group", "a split", "an id")
"""What a row gets if it says nothing itself: nothing of it may show."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("round")
    for name in ("images/a.png", "b.jpg", "images/deep/c d.png"):
        picture(root / name)
    return root


def written(case: Case) -> str:
    """All fields of a case, types of numbers among them."""
    return json.dumps(case.to_row(), sort_keys=True)


def there_and_back(name: str, cases: list[Case], root: Path) -> list[Case]:
    """The cases after a file of the format; the image is named as in the file."""
    kind = FORMATS[name]
    path = root / f"file{kind.suffixes[0]}"
    assert kind.write is not None
    kind.write(path, cases, root)
    back = []
    for sample in kind.read(path):
        assert not sample.problem and len(sample.pictures) == 1
        back += cases_of(sample, replace(ELSEWHERE, file_name=sample.pictures[0].path))
    return back


@pytest.mark.parametrize("name", WRITTEN)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(cases=st.lists(any_case, min_size=1, max_size=3))
@example(cases=make_cases())
def test_every_field_of_a_case_comes_back(name: str, folder: Path, cases: list[Case]) -> None:
    if name in ("vlmevalkit", "trl-parquet"):  # these hold the images
        cases = [replace(case, file_name="images/a.png") for case in cases]
    back = there_and_back(name, cases, folder)
    assert sorted(map(written, back)) == sorted(map(written, cases))


@pytest.mark.parametrize("images", ["copy", "reference", "relative"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_case_set_comes_back_with_images_masks_and_sources(
    name: str, images: str, case_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(tmp_path))
    summary = export_case_set(case_set, tmp_path / "out", name, images=images)  # type: ignore[arg-type]
    assert sum(summary.files.values()) == 4
    root = case_set if images == "relative" or FORMATS[name].holds_images else None
    done = import_interchange(name, tmp_path / "out", tmp_path / "back", root)
    assert (done.cases, done.questions, done.images, done.quarantined) == (4, 2, 3, {})
    before, after = read_case_set(case_set), read_case_set(tmp_path / "back")
    licensed = {case.id: case for case in before.cases} | {
        "p1": replace(before.by_id["p1"], licence="research only")  # said on every sample
    }
    assert after.by_id == licensed
    for case in before.cases:
        assert after.image(after.by_id[case.id]).tobytes() == before.image(case).tobytes()
    mask, expected = after.mask(after.by_id["p1"]), PIXELS[..., 0] > 99
    assert mask is not None and (mask == expected).all()
    assert [source.title for source in read_sources(tmp_path / "back")] == ["Kvasir-SEG", "HyperKvasir"]


def test_a_case_without_an_answer_is_kept_by_ms_swift_and_left_out_by_the_others(folder: Path, tmp_path: Path) -> None:
    bare = replace(make_cases()[0], answer="")
    assert there_and_back("ms-swift", [bare], folder) == [bare]
    write_set(tmp_path / "set", [bare, make_cases()[1]])
    summary = export_case_set(tmp_path / "set", tmp_path / "out", "llava")
    assert summary.without_answer == 1 and any("1 cases are left out" in line for line in summary.lines())
