import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from cogalign.models.pixel_codec import PixelCodec
from cogalign.models.pixel_store import STOPPED, SUFFIX, PixelStore

LARGE = 2**30


def fields(number: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.full((3, 50), float(number)), "grid": torch.tensor([number])}


def key(number: int) -> str:
    return f"{number:040x}"[::-1]


SIZE = len(PixelCodec().encode(fields(0)))


def open_store(folder: Path, limit: int = LARGE) -> PixelStore:
    return PixelStore(folder, limit, keep_free=0)


def test_what_is_put_is_there_for_every_process(tmp_path: Path) -> None:
    store = open_store(tmp_path / "cache")
    assert store.get(key(1)) is None
    assert store.put(key(1), fields(1))
    found = open_store(tmp_path / "cache").get(key(1))
    assert found is not None and torch.equal(found["pixel_values"].tensor(), fields(1)["pixel_values"])
    assert store.get(key(2)) is None


def test_the_bound_holds_nothing_is_evicted_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, other = (open_store(tmp_path, limit=3 * SIZE + SIZE // 2) for _ in range(2))
    assert [store.put(key(number), fields(number)) for number in range(5)] == [True] * 3 + [False] * 2
    assert not other.put(key(9), fields(9))
    assert store.used() == 3 * SIZE == sum(path.stat().st_size for path in tmp_path.rglob(f"*{SUFFIX}"))
    assert all(other.get(key(number)) is not None for number in range(3))
    assert capsys.readouterr().err.count("no more images are added") == 1
    larger = open_store(tmp_path)
    assert not larger.put(key(3), fields(3))  # another stage begins with `recount`
    larger.recount()
    assert larger.put(key(3), fields(3))


@pytest.mark.parametrize("content", [b"", b"CAPIX1", b"\0" * SIZE])
def test_a_damaged_entry_is_removed_and_can_be_made_again(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path, limit=SIZE)
    store.put(key(1), fields(1))
    [path] = tmp_path.rglob(f"*{SUFFIX}")
    path.write_bytes(content)
    assert store.get(key(1)) is None and not path.exists()
    store.recount()
    assert store.put(key(1), fields(1))
    assert store.get(key(1)) is not None


def _fill(folder: Path, first: int, count: int, limit: int) -> None:
    store = open_store(folder, limit)
    for number in range(first, first + count):
        store.put(key(number % 60), fields(number % 60))


def test_processes_that_write_at_once_keep_the_bound_and_write_each_entry_once(tmp_path: Path) -> None:
    limit = 40 * SIZE
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, first, 60, limit)) for first in (0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = open_store(tmp_path, limit)
    found = [number for number in range(60) if store.get(key(number)) is not None]
    assert len(found) == 40 and store.used() == limit
    for number in found:
        entry = store.get(key(number))
        assert entry is not None and torch.equal(entry["grid"].tensor(), torch.tensor([number]))


def test_after_a_crash_the_total_is_right_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, limit=2 * SIZE)
    store.put(key(1), fields(1))
    (tmp_path / "bytes").write_text("999999999999")
    left = next(tmp_path.rglob(f"*{SUFFIX}")).with_name(f".x{SUFFIX}.77.tmp")
    left.write_bytes(b"half")
    assert not open_store(tmp_path, limit=2 * SIZE).put(key(2), fields(2))
    again = open_store(tmp_path, limit=2 * SIZE)
    again.recount()
    assert not left.exists() and not (tmp_path / STOPPED).exists()
    assert again.put(key(2), fields(2))


def test_a_disk_without_room_stops_the_cache_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    store = PixelStore(tmp_path / "cache", LARGE, keep_free=2 * free)
    assert not store.put(key(1), fields(1)) and store.get(key(1)) is None
    assert "the disk is nearly full" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_stops_the_cache_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = PixelStore(tmp_path / "file" / "cache", LARGE)
    assert not store.put(key(1), fields(1)) and store.get(key(1)) is None
    assert not store.put(key(2), fields(2))
    assert capsys.readouterr().err.count("it cannot be written") == 1
