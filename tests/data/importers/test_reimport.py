from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cogalign.data import images
from cogalign.data.cards.find import read_card
from cogalign.data.caseset import read_case_set
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.images import fingerprint, load_pixels
from cogalign.data.importers import importer, state
from cogalign.data.importers.importer import import_card
from cogalign.data.importers.state import State
from cogalign.data.importers.work import Done, Job, Settings, work
from tests.data.importers.small_sets import lesion_mask, photograph, quarantine, write_kvasir_seg

CARD = read_card("kvasir-seg")


@pytest.fixture
def kvasir_seg(tmp_path: Path) -> Path:
    folder = write_kvasir_seg(tmp_path / "Kvasir-SEG", 6)
    (folder / "kavsir_bboxes.json").unlink()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the cases that were really decoded."""
    done: list[str] = []

    def noted(settings: Settings, job: Job) -> Done:
        done.append(job.case_id.rpartition("-")[2])
        return work(settings, job)

    monkeypatch.setattr(importer, "work", noted)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a case set without those of its import."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".import" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def run(src: Path, out: Path, **options: Any) -> Any:
    return import_card(CARD, src, out, workers=1, **options)


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Stop the import at so many photographs."""
    count = 0

    def stopping(settings: Settings, job: Job) -> Done:
        nonlocal count
        count += 1
        if count > number:
            raise KeyboardInterrupt
        return work(settings, job)

    monkeypatch.setattr(importer, "work", stopping)


def test_what_the_disk_did_not_give_is_tried_again(
    kvasir_seg: Path, out: Path, worked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = images.open_image

    def failing(source: Any) -> Any:
        if str(source if isinstance(source, Path) else source.name).endswith("images/cju1.jpg"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(source)

    with monkeypatch.context() as patch:
        patch.setattr(images, "open_image", failing)
        assert run(kvasir_seg, out).cases == 5
    (line,) = quarantine(out)
    assert line["path"] == "images/cju1.jpg" and "cannot be read now (Stale file handle)" in line["reason"]
    again = run(kvasir_seg, out)
    assert (again.cases, again.unchanged) == (6, False) and worked[6:] == ["cju1"] and quarantine(out) == []
    assert run(kvasir_seg, out).unchanged


def test_a_link_is_taken_once_its_folder_is_named(
    kvasir_seg: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "else").mkdir()
    (kvasir_seg / "images/cju2.jpg").rename(tmp_path / "else/cju2.jpg")
    (kvasir_seg / "images/cju2.jpg").symlink_to(tmp_path / "else/cju2.jpg")
    assert run(kvasir_seg, out).cases == 5 and "leads out of" in quarantine(out)[0]["reason"]
    assert run(kvasir_seg, out).unchanged
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(tmp_path / "else"))
    assert run(kvasir_seg, out).cases == 6 and quarantine(out) == []


@pytest.mark.parametrize("name", ["images/kvasir-seg-cju3.jpg", "masks/kvasir-seg-cju3.png"])
def test_a_file_that_is_gone_from_the_case_set_is_made_again(
    kvasir_seg: Path, out: Path, worked: list[str], name: str
) -> None:
    run(kvasir_seg, out)
    before = contents(out)
    (out / name).unlink()
    assert not run(kvasir_seg, out).unchanged
    after = contents(out)
    assert worked[6:] == ["cju3"] and after.pop("fingerprints.npz") and before.pop("fingerprints.npz")
    assert after == before


def test_a_case_set_stays_as_it_was_if_its_sources_break(kvasir_seg: Path, out: Path) -> None:
    run(kvasir_seg, out)
    before = contents(out)
    for path in (kvasir_seg / "images").iterdir():
        path.write_bytes(b"")
    for options in ({}, {"side": 16}):
        with pytest.raises(ValueError, match=r"no case of .* stays as it was, the reasons are in its \.import"):
            run(kvasir_seg, out, **options)
        assert contents(out) == before
        assert (out / ".import/quarantine.jsonl").read_text().count("the file is empty") == 6
    assert len(read_case_set(out).cases) == 6


def test_an_import_that_is_broken_off_leaves_the_earlier_one_whole(
    kvasir_seg: Path, out: Path, monkeypatch: pytest.MonkeyPatch, worked: list[str]
) -> None:
    run(kvasir_seg, out)
    before = contents(out)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(kvasir_seg, out, side=16)
    assert contents(out) == before and run(kvasir_seg, out).unchanged
    assert run(kvasir_seg, out, side=16).cases == 6
    assert worked[6:] == ["cju3", "cju4", "cju5"]
    found = read_case_set(out)
    assert {found.image(case).size for case in found.cases} == {(16, 16)} and len(os.listdir(out / "images")) == 6


def test_files_that_are_added_or_changed_are_decoded_alone(kvasir_seg: Path, out: Path, worked: list[str]) -> None:
    run(kvasir_seg, out)
    photograph(kvasir_seg / "images/cju6.jpg", 6)
    lesion_mask(kvasir_seg / "masks/cju6.jpg")
    photograph(kvasir_seg / "images/cju1.jpg", 71)
    (kvasir_seg / "images/cju2.jpg").unlink()
    assert run(kvasir_seg, out).cases == 6
    assert sorted(worked[6:]) == ["cju1", "cju6"]
    found = read_case_set(out)
    for case, print_ in zip(found.cases, fingerprints_of(found, workers=1), strict=True):
        source = kvasir_seg / "images" / case.attributes["file"]
        assert found.path(case.file_name).read_bytes() == source.read_bytes()
        assert print_.digest == fingerprint(load_pixels(source)[0]).digest
    assert run(kvasir_seg, out).unchanged


def test_a_photograph_that_is_changed_and_changed_back_keeps_its_own_row_and_pixels(
    kvasir_seg: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kvasir_seg / "images/cju0.jpg"
    first, time = path.read_bytes(), path.stat().st_mtime_ns

    def stopped() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(importer._Outcome, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(kvasir_seg, out)

    stopped()
    photograph(path, 99)
    stopped()
    path.write_bytes(first)
    os.utime(path, ns=(time, time))
    run(kvasir_seg, out)
    found = read_case_set(out)
    case = found.by_id["kvasir-seg-cju0"]
    assert found.path(case.file_name).read_bytes() == first
    print_ = fingerprints_of(found, workers=1)[found.cases.index(case)]
    assert print_.digest == fingerprint(load_pixels(path)[0]).digest


def test_two_imports_do_not_write_to_one_folder(kvasir_seg: Path, out: Path) -> None:
    with State(out, "a", "b"), pytest.raises(FileExistsError, match="another import is writing to it"):
        run(kvasir_seg, out)
    assert run(kvasir_seg, out).cases == 6


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_run_that_is_killed_while_files_take_their_places_is_gone_on_with(
    kvasir_seg: Path, out: Path, monkeypatch: pytest.MonkeyPatch, worked: list[str], moved: int
) -> None:
    run(kvasir_seg, out)
    for number in range(3):
        photograph(kvasir_seg / f"images/cju{number}.jpg", 50 + number)
    replace, count = os.replace, 0

    def stopping(source: Path, target: Path) -> None:
        nonlocal count
        if "next" in Path(source).parts:
            if count == moved:
                raise KeyboardInterrupt
            count += 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(state.os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(kvasir_seg, out)
    assert not (out / "metadata.jsonl").exists() and len(worked) == 9
    assert run(kvasir_seg, out).cases == 6 and len(worked) == 9
    found = read_case_set(out)
    for case in found.cases:
        source = kvasir_seg / "images" / case.attributes["file"]
        assert found.path(case.file_name).read_bytes() == source.read_bytes()


def test_a_run_that_is_killed_before_its_metadata_decodes_nothing_again(
    kvasir_seg: Path, out: Path, monkeypatch: pytest.MonkeyPatch, worked: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importer, "write_metadata", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(kvasir_seg, out)
    assert run(kvasir_seg, out).cases == 6 and len(worked) == 6


def test_temporary_files_of_a_killed_process_are_removed(kvasir_seg: Path, out: Path) -> None:
    run(kvasir_seg, out)
    (out / ".fingerprints.npz.1.tmp").write_bytes(b"old")
    os.utime(out / ".fingerprints.npz.1.tmp", (1e9, 1e9))
    (out / ".metadata.jsonl.2.tmp").write_bytes(b"somebody writes this now")
    run(kvasir_seg, out, side=24)
    assert not (out / ".fingerprints.npz.1.tmp").exists() and (out / ".metadata.jsonl.2.tmp").exists()
