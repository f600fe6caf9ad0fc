import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogalign.data.cards.find import cards_folder
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSetWriter, read_case_set
from cogalign.data.paths import DATA_ROOTS
from cogalign.data.prepare import case_set_digest, prepare
from cogalign.recipe import DataSettings, ImportSettings, PhantomSettings

IMAGE = np.full((20, 24, 3), 90, np.uint8)


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("esophagitis", "polyps"):
        for number in range(3):
            path = tmp_path / "root" / "kvasir" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "root"


def imports(root: Path, **settings) -> DataSettings:
    return DataSettings(imports=[ImportSettings("kvasir-v2", "kvasir")], root=str(root), **settings)


def own_case_set(folder: Path) -> Path:
    with CaseSetWriter(folder) as writer:
        writer.add(Case("a", "images/a.png", ("normal",), "train"), IMAGE)
    return folder


def test_a_case_set_on_disk_is_used_as_it_is(tmp_path):
    own = own_case_set(tmp_path / "own")
    assert prepare(DataSettings(case_set=str(own)), tmp_path / "run") == own
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError, match=METADATA):
        prepare(DataSettings(case_set=str(tmp_path / "none")), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (DataSettings(), "none of them"),
        (DataSettings(case_set="x", phantom=PhantomSettings()), "data.case_set and data.phantom"),
        (DataSettings(imports=[], phantom=None), "none of them"),
    ],
)
def test_exactly_one_source_is_wanted(settings, found, tmp_path):
    with pytest.raises(ValueError, match=f"found {found}, wanted exactly one"):
        prepare(settings, tmp_path)


def test_a_second_call_finds_the_work_done_and_other_settings_do_it_anew(root, tmp_path):
    folder = prepare(imports(root, image_side=16), tmp_path / "run")
    first = case_set_digest(folder)
    (root / "kvasir/polyps/0.jpg").unlink()
    prepare(imports(root, image_side=16), folder)
    assert case_set_digest(folder) == first
    prepare(imports(root, image_side=20), folder)
    assert len(read_case_set(folder).cases) == 5
    assert read_case_set(folder).image(read_case_set(folder).cases[0]).size == (20, 20)


def test_an_unfinished_write_leaves_no_metadata_and_is_done_again(root, tmp_path, monkeypatch):
    from cogalign.data import splits

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(splits, "split_case_set", _interrupt)
        prepare(imports(root), tmp_path / "run")
    assert not (tmp_path / "run" / METADATA).exists()
    assert len(read_case_set(prepare(imports(root), tmp_path / "run")).cases) == 6
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]


CARD = """
id: own
title: Own
summary: Two folders that share a photograph.
homepage: https://example.org
obtain: made here
citation: none
licence: {name: CC BY 4.0, redistribution: "yes", commercial: "yes"}
imaging: endoscopy
light: unknown
defects: []
unknowns: []
expected: {images: 8}
label_map: {polyps: polyp}
layout:
  root_markers: ["first"]
  parts:
    - images: "{half:first|second}/{stem}.{suffix}"
      key: "{half}/{stem}"
      label: polyps
      split: {values: {first: train, second: test}, from: "{half}"}
"""


def test_a_split_that_leaks_makes_no_run_and_its_report_stays(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "root" / ("first" if number < 5 else "second") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(path)
    shutil.copy(tmp_path / "root/first/0.jpg", tmp_path / "root/second/copy.jpg")
    (tmp_path / "own.yaml").write_text(CARD)
    own = [ImportSettings(str(tmp_path / "own.yaml"), ".")]
    wanted = DataSettings(imports=own, root=str(tmp_path / "root"), split="official")
    with pytest.raises(ValueError, match=r"data\.split official: 2 pairs leak between splits: see ") as caught:
        prepare(wanted, tmp_path / "run")
    report = tmp_path / "run.imports/merged/leaks.md"
    assert str(report) in str(caught.value) and "There are leaks" in report.read_text()
    assert "set data.split: stratified, or move" in str(caught.value) and "--repair" in str(caught.value)
    assert not (tmp_path / "run" / METADATA).exists()
    folder = prepare(replace(wanted, split="stratified"), tmp_path / "run")
    assert len({case.split for case in read_case_set(folder).cases}) > 1 and not report.exists()


def test_a_wanted_split_without_cases_makes_no_run(root, tmp_path):
    photograph = (root / "kvasir/polyps/0.jpg").read_bytes()
    for path in (root / "kvasir").rglob("*.jpg"):
        path.write_bytes(photograph)
    with pytest.raises(ValueError, match=r"data\.split stratified: the splits test are empty: see .*data\.case_set"):
        prepare(imports(root), tmp_path / "run")


def test_another_card_makes_the_case_set_anew(root, tmp_path):
    card = tmp_path / "own.yaml"
    text = (cards_folder() / "kvasir-v2.yaml").read_text().replace("id: kvasir-v2", "id: own")
    card.write_text(text)
    settings = DataSettings(imports=[ImportSettings(str(card), "kvasir")], root=str(root))
    folder = prepare(settings, tmp_path / "run")
    written = (folder / METADATA).stat().st_mtime_ns
    prepare(settings, folder)
    assert (folder / METADATA).stat().st_mtime_ns == written
    card.write_text(text.replace("title: Kvasir v2", "title: Another name"))
    prepare(settings, folder)
    assert {case.dataset for case in read_case_set(folder).cases} == {"Another name"}


def test_images_stay_where_they_are_if_the_recipe_says_so(root, tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ROOTS, "")
    folder = prepare(imports(root, images="reference"), tmp_path / "run")
    found = read_case_set(folder)
    assert all(found.path(case.file_name).is_symlink() for case in found.cases)
    assert found.image(found.cases[0]).size == (40, 32)
    monkeypatch.setenv(DATA_ROOTS, "")
    with pytest.raises(ValueError, match=DATA_ROOTS):
        found.image(found.cases[0])
    prepare(imports(root, images="reference"), folder)  # nothing is made anew, but the links may be followed again
    assert found.image(found.cases[0]).size == (40, 32)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_case_set_of_other_origin_is_never_written_over(root, tmp_path):
    own = own_case_set(tmp_path / "own")
    with pytest.raises(FileExistsError, match="other origin"):
        prepare(imports(root), own)
    assert len(read_case_set(own).cases) == 1


def test_phantoms_are_made_once_and_the_question_does_not_matter(tmp_path):
    small = PhantomSettings(train=4, validation=2, test=2, size=32)
    folder = prepare(DataSettings(phantom=small), tmp_path / "run")
    assert {"train", "validation", "test"} <= set(read_case_set(folder).splits)
    written = (folder / METADATA).stat().st_mtime_ns
    prepare(DataSettings(phantom=small, question="What is seen?"), folder)
    assert (folder / METADATA).stat().st_mtime_ns == written


def test_the_digest_is_that_of_the_metadata(tmp_path):
    own = own_case_set(tmp_path / "own")
    assert case_set_digest(own) == hashlib.sha256((own / METADATA).read_bytes()).hexdigest()
    with pytest.raises(FileNotFoundError, match=METADATA):
        case_set_digest(tmp_path)
