from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogalign.data.cards.find import read_card
from cogalign.data.caseset import read_case_set
from cogalign.data.importers import importer
from cogalign.data.importers.importer import import_card
from cogalign.data.importers.work import Done, Job, Settings, work
from tests.data.importers.small_sets import photograph, run, write_kvasir_seg

CARD = read_card("kvasir-seg")


@pytest.fixture
def kvasir_seg(tmp_path: Path) -> Path:
    return write_kvasir_seg(tmp_path / "Kvasir-SEG", 6)


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the cases that were really decoded."""
    done: list[str] = []

    def noted(settings: Settings, job: Job) -> Done:
        done.append(job.case_id)
        return work(settings, job)

    monkeypatch.setattr(importer, "work", noted)
    return done


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_broken_off_import_goes_on_and_ends_as_if_it_had_not_been(
    kvasir_seg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def breaking(settings: Settings, job: Job) -> Done:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.case_id)
        return work(settings, job)

    with monkeypatch.context() as patch:
        patch.setattr(importer, "work", breaking)
        with pytest.raises(KeyboardInterrupt):
            import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    assert not (tmp_path / "out/metadata.jsonl").exists()
    with (tmp_path / "out/.import/next/progress.jsonl").open("a") as log:
        log.write('\n{"job": "cut')  # as a killed process leaves it
    first = list(done)

    def noted(settings: Settings, job: Job) -> Done:
        done.append(job.case_id)
        return work(settings, job)

    monkeypatch.setattr(importer, "work", noted)
    import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    assert len(first) == 3 and len(done) == 6 and len(set(done)) == 6
    import_card(CARD, kvasir_seg, tmp_path / "whole", workers=1)
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    same = [name for name in whole if name.startswith(("images/", "masks/", "metadata", "quarantine", "sources"))]
    assert len(same) == 15 and all(whole[name] == resumed[name] for name in same)


def test_a_killed_import_leaves_a_log_that_the_next_one_uses(tmp_path: Path, worked: list[str]) -> None:
    folder = tmp_path / "Kvasir-SEG"
    write_kvasir_seg(folder, 40)
    for number in range(40):
        photograph(folder / f"images/cju{number}.jpg", number, size=(900, 720))
        (folder / f"masks/cju{number}.jpg").write_bytes((folder / f"images/cju{number}.jpg").read_bytes())
    (folder / "kavsir_bboxes.json").unlink()
    out = tmp_path / "out"
    program = (
        "import sys; from pathlib import Path; from cogalign.data.cards.find import read_card;"
        "from cogalign.data.importers.importer import import_card;"
        "import_card(read_card('kvasir-seg'), Path(sys.argv[1]), Path(sys.argv[2]), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder), str(out)], stderr=subprocess.DEVNULL)
    log = out / ".import/next/progress.jsonl"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and (not log.exists() or log.stat().st_size < 9000):
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = log.read_text().count('"job"')
    assert not (out / "metadata.jsonl").exists() and 0 < before < 40
    import_card(CARD, folder, out, workers=1)
    assert len(read_case_set(out).cases) == 40
    assert 40 - before <= len(worked) <= 40 - before + 1


def test_a_finished_import_is_not_repeated(kvasir_seg: Path, tmp_path: Path, worked: list[str]) -> None:
    first = import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    before = files(tmp_path / "out")
    again = import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    assert len(worked) == 6 and files(tmp_path / "out") == before
    assert again.unchanged and not first.unchanged
    assert (again.cases, again.findings, again.differences) == (first.cases, first.findings, first.differences)
    assert "nothing to do" in again.lines()[0]


def test_other_settings_or_sources_make_the_case_set_anew(kvasir_seg: Path, tmp_path: Path, worked: list[str]) -> None:
    import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    import_card(CARD, kvasir_seg, tmp_path / "out", side=16, workers=1)
    assert len(worked) == 12
    assert {path.suffix for path in (tmp_path / "out/images").iterdir()} == {".png"}
    photograph(kvasir_seg / "images/cju0.jpg", 77)
    (kvasir_seg / "images/cju5.jpg").unlink()
    summary = import_card(CARD, kvasir_seg, tmp_path / "out", side=16, workers=1)
    assert summary.cases == 5 and len(list((tmp_path / "out/images").iterdir())) == 5


def test_metadata_that_was_changed_since_is_not_thrown_away(kvasir_seg: Path, tmp_path: Path) -> None:
    import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    metadata = tmp_path / "out/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"train"', '"test"'))
    assert import_card(CARD, kvasir_seg, tmp_path / "out", workers=1).unchanged
    with pytest.raises(FileExistsError, match="was changed since"):
        import_card(CARD, kvasir_seg, tmp_path / "out", side=16, workers=1)
    assert {case.split for case in read_case_set(tmp_path / "out").cases} == {"test"}


def test_a_folder_that_holds_something_else_is_refused(kvasir_seg: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(FileExistsError, match="wanted a new or an empty folder"):
            import_card(CARD, kvasir_seg, tmp_path / name, workers=1)
    assert files(tmp_path / "mine") == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert import_card(CARD, kvasir_seg, tmp_path / "empty", workers=1).cases == 6


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    folder = write_kvasir_seg(tmp_path / "Kvasir-SEG", 70)  # so many that processes are started
    (folder / "images/cju7.jpg").write_bytes(b"no image")
    one, rejected = run("kvasir-seg", folder, tmp_path / "one")
    two = import_card(CARD, folder, tmp_path / "two", workers=2)
    assert (two.cases, two.quarantined) == (len(one.cases), len(rejected)) == (69, 1)
    assert (tmp_path / "two/metadata.jsonl").read_bytes() == (tmp_path / "one/metadata.jsonl").read_bytes()


@pytest.mark.parametrize(("options", "message"), [({"images": "link"}, "wanted copy or reference"), ({"side": 0}, "side: found 0"),
                                                  ({"limit": -1}, "limit: found -1")])  # fmt: skip
def test_arguments_out_of_range_are_refused(
    kvasir_seg: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_card(CARD, kvasir_seg, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_log_holds_one_line_for_each_photograph(
    kvasir_seg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer._Outcome, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        import_card(CARD, kvasir_seg, tmp_path / "out", workers=1)
    rows = [
        json.loads(line) for line in (tmp_path / "out/.import/next/progress.jsonl").read_text().splitlines() if line
    ]
    assert len({row["job"] for row in rows if "job" in row}) == 6
    assert os.listdir(tmp_path / "out/.import/next/images") and not (tmp_path / "out/metadata.jsonl").exists()
