import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cogalign.cognition.keywords import count_found
from cogalign.cognition.report import parse
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.check import check_case_set
from cogalign.data.phantom import write_phantom
from cogalign.data.phantom.dataset import draw
from cogalign.data.phantom.spec import FINDINGS
from cogalign.recipe import PhantomSettings

SETTINGS = PhantomSettings(train=24, validation=4, test=12, size=64, seed=9, multi_label=0.3)
PLAIN = PhantomSettings(train=40, validation=3, test=2, size=64, seed=9, text="description")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(SETTINGS, tmp_path_factory.mktemp("reports") / "data")


@pytest.fixture(scope="module")
def case_set(folder: Path) -> CaseSet:
    return read_case_set(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    return read_case_set(write_phantom(PLAIN, tmp_path_factory.mktemp("plain") / "data"))


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_phantom(SETTINGS, tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(folder)
    small = PhantomSettings(**{**SETTINGS.__dict__, "train": 3, "validation": 1, "test": 2})
    write_phantom(small, tmp_path / "small")
    shared, whole = fingerprint(tmp_path / "small"), fingerprint(folder)
    images = [name for name in shared if name.endswith(".png")]
    assert len(images) > 8 and all(shared[name] == whole[name] for name in images)  # the first of each split
    other = PhantomSettings(**{**small.__dict__, "seed": 10})
    write_phantom(other, tmp_path / "other")
    assert fingerprint(tmp_path / "other").items().isdisjoint(shared.items())


def test_what_is_written_passes_the_check(case_set: CaseSet, plain: CaseSet) -> None:
    assert check_case_set(case_set.root) == [] and check_case_set(plain.root) == []
    assert Counter(case.split for case in case_set.cases) == {
        "train": 24, "validation": 4, "test": 12, "test_shifted": 12
    }  # fmt: skip
    assert plain.splits == ["train", "validation", "test"]


def test_cases_say_what_is_in_the_image(case_set: CaseSet) -> None:
    assert {case.findings for case in case_set.cases} >= {(finding,) for finding in FINDINGS}
    for case in case_set.cases:
        told = parse(case.answer)
        assert told.agrees_with(case.findings) and not told.missing
        assert count_found(case.answer, case.keywords) == 9
        mask = case_set.mask(case)
        assert (mask is None) == case.is_normal == (not case.boxes)
        union = np.zeros((64, 64), bool)
        for box in case.boxes:
            union[box.ymin : box.ymax, box.xmin : box.xmax] = True
            assert mask is not None and mask[box.ymin : box.ymax, box.xmin : box.xmax].any()
        if mask is not None:
            assert not (mask & ~union).any()
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert (min(b.ymin for b in case.boxes), max(b.ymax for b in case.boxes)) == (rows[0], rows[-1] + 1)
            assert (min(b.xmin for b in case.boxes), max(b.xmax for b in case.boxes)) == (columns[0], columns[-1] + 1)
        assert {box.finding for box in case.boxes} == set(case.findings) - {"normal"}
        assert case.attributes["spec"]["organ"] == case.organ and case.licence


def test_the_shifted_split_never_tells_an_own_finding(case_set: CaseSet) -> None:
    def told(split: str) -> list[bool]:
        return [FINDINGS[c.attributes["spec"]["cue"]] in c.findings for c in case_set.split(split)]

    assert not any(told("test_shifted"))
    assert np.mean(told("train") + told("test")) > 0.8


def test_shares_hold_over_a_large_set() -> None:
    drawn = [spec for split, _, spec in draw(PhantomSettings(train=3000, validation=0, test=500)) if split == "train"]
    own = np.mean([FINDINGS[spec.cue] in spec.findings for spec in drawn])
    assert abs(own - (0.95 + 0.05 / 7)) < 0.02
    assert abs(np.mean([len(spec.findings) == 2 for spec in drawn]) - 0.12) < 0.03


def test_splits_have_streams_of_their_own() -> None:
    few, many = (list(draw(PhantomSettings(train=size, validation=5, test=5))) for size in (3, 30))
    assert [item for item in few if item[0] != "train"] == [item for item in many if item[0] != "train"]
    specs = [spec for _, _, spec in many]
    assert len({spec.seed for spec in specs}) == len(specs)


def test_descriptions_come_with_language_exercises(plain: CaseSet) -> None:
    exercises = [case for case in plain.cases if case.question]
    assert 3 <= len(exercises) <= 20 and all(case.split == "train" for case in exercises)
    for case in exercises:
        assert case.question == f"Repeat these words: {case.answer}"
        assert len(case.answer.split()) >= 4
    assert not any(parse(case.answer).diagnosis for case in plain.cases if not case.question)
    assert not any(case.keywords for case in plain.cases)


def test_rows_open_with_hugging_faces_imagefolder(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path))["train"]
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(table["id"]) == sorted(row["id"] for row in rows) and table[0]["image"].size == (64, 64)
