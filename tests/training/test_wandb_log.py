"""wandb's offline files, as its own writer leaves them and as a kill leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cogalign.training.wandb_log import BLOCK, HEADER, mend, records
from tests.wandb_files import config_of_file, history_rows, rows_of_file
from tests.wandb_server import run_id_of, sync, wandb_server

LONG = 100_000
"""Letters of a text in a row: its record spans four blocks."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """A file of wandb's own, with records of all sizes, some over several blocks."""
    import wandb

    folder = tmp_path_factory.mktemp("offline")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    run = wandb.init(mode="offline", dir=str(folder), config={"seed": 3}, settings=settings)
    for step in range(1, 31):
        run.log({"loss": step / 4, "text": "x" * (LONG if step % 10 == 0 else 977 * step)}, step=step)
    run.finish()
    wandb.teardown()
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    yield path.read_bytes()


@pytest.fixture
def path(written: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    path.parent.mkdir(parents=True)
    path.write_bytes(written)
    return path


def steps(path: Path) -> list[int]:
    return [row["_step"] for row in rows_of_file(path)]


def test_every_row_of_a_real_file_is_read_also_over_several_blocks(path: Path) -> None:
    rows = rows_of_file(path)
    assert [row["_step"] for row in rows] == list(range(1, 31))
    assert [row["loss"] for row in rows] == [step / 4 for step in range(1, 31)]
    assert [len(row["text"]) for row in rows] == [LONG if step % 10 == 0 else 977 * step for step in range(1, 31)]
    assert path.stat().st_size > 10 * BLOCK
    assert config_of_file(path)["seed"] == 3


@pytest.mark.parametrize("cut", [BLOCK, 2 * BLOCK, 5 * BLOCK, 5 * BLOCK + 3, 5 * BLOCK + 100, -1, -5000])
def test_a_file_that_a_kill_has_cut_keeps_its_whole_records(path: Path, written: bytes, cut: int) -> None:
    whole = records(path)
    path.write_bytes(written[:cut])
    before = records(path)
    assert before == whole[: len(before)]
    mend(path)
    assert records(path) == before
    assert path.stat().st_size <= len(written[:cut])
    size = path.stat().st_size
    mend(path)
    assert path.stat().st_size == size  # nothing is left to mend
    assert steps(path) == list(range(1, len(steps(path)) + 1))


def test_a_whole_file_is_not_touched(path: Path, written: bytes) -> None:
    mend(path)
    assert path.read_bytes() == written


def test_a_file_with_nothing_but_a_header_is_removed(path: Path, written: bytes) -> None:
    path.write_bytes(written[:HEADER])
    mend(path)
    assert not path.exists()


def test_damage_in_the_middle_ends_the_reading_and_is_left_as_it_is(path: Path, written: bytes) -> None:
    """What follows may still be of use to somebody, so nothing is cut off."""
    damaged = bytearray(written)
    damaged[3 * BLOCK + 500] ^= 1
    path.write_bytes(damaged)
    found = steps(path)
    assert found == list(range(1, len(found) + 1))
    assert 0 < len(found) < 30
    mend(path)
    assert path.read_bytes() == bytes(damaged)


def test_another_file_is_refused(path: Path) -> None:
    path.write_bytes(b"step,loss\n")
    with pytest.raises(ValueError, match=r"run-abc.wandb: found b'step' at the start"):
        records(path)
    with pytest.raises(ValueError, match=r"run-abc.wandb"):
        mend(path)


def test_rows_of_several_lives_come_in_the_order_of_their_starts(path: Path, tmp_path: Path, written: bytes) -> None:
    later = tmp_path / "wandb" / "offline-run-20260101_000005-abc"
    later.mkdir()
    (later / "run-abc.wandb").write_bytes(written)
    other = tmp_path / "wandb" / "offline-run-20260101_000003-other"
    other.mkdir()
    (other / "run-other.wandb").write_bytes(written)
    assert [row["_step"] for row in history_rows(tmp_path, "abc")] == [*range(1, 31), *range(1, 31)]
    with pytest.raises(ValueError, match="found runs abc, other; name one"):
        history_rows(tmp_path)


@pytest.mark.parametrize(("cut", "complaint"), [(HEADER, "Failed to read"), (5 * BLOCK, "incomplete record")])
def test_wandbs_own_sync_has_no_complaint_about_what_is_mended(
    path: Path, tmp_path: Path, written: bytes, cut: int, complaint: str
) -> None:
    """A file of a header only even keeps it from uploading the other lives of the run."""
    path.write_bytes(written[:cut])
    later = tmp_path / "wandb" / "offline-run-20260101_000005-abc"
    later.mkdir()
    (later / "run-abc.wandb").write_bytes(written)
    before = steps(path)
    with wandb_server() as server:
        said = sync(server, tmp_path)
        assert complaint in said
        assert bool(server.lines) == (cut > HEADER)
    for mark in tmp_path.glob("wandb/*/*.sync*"):
        mark.unlink()
    mend(path)
    with wandb_server() as server:
        said = sync(server, tmp_path)
        assert "ERROR" not in said
        assert sorted(server.steps(run_id_of(said))) == sorted([*before, *range(1, 31)])
