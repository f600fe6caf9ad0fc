import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cogalign.data.importers.readers.kvasir_vqa_x1 import _rows
from cogalign.data.interchange import tables
from cogalign.data.interchange.tables import parquet_rows


def written(path: Path, columns: dict[str, Any], **how: Any) -> Path:
    pq.write_table(pa.table(columns), path, **{"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, **how})
    return path


def unpacked(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in parquet_rows(path)]


def test_all_kinds_of_values_come_back_as_they_are(tmp_path: Path) -> None:
    rows = [
        {
            "id": number,
            "text": "ä" * (number % 3) if number % 7 else None,
            "images": [{"bytes": os.urandom(50), "path": None}] * (number % 4),
            "lists": [["a", None], [], None][number % 3],
            "deep": {"one": [{"name": f"n{number}"}], "share": number / 3, "good": number % 2 == 0},
        }
        for number in range(100)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("large", pa.array([f"l{n}" for n in range(100)], pa.large_string()))
    table = table.append_column("word", pa.array(["a", "b"] * 50).dictionary_encode())
    table = table.append_column("count", pa.array([1, 2] * 50).dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    found = list(parquet_rows(tmp_path / "a.parquet", batch=7))
    assert [row for _, row in found] == table.to_pylist()
    assert [place for place, _ in found] == [f"row {n}" for n in range(1, 101)]
    some = [row for _, row in parquet_rows(tmp_path / "a.parquet", columns=["deep", "id"])]
    assert some == table.select(["id", "deep"]).to_pylist()


def test_large_columns_and_pieces_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": {"bytes": os.urandom(900)}, "text": "word " * number} for number in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for most in (1200, 5000, 40_000):
        monkeypatch.setattr(tables, "MOST_ROW", most)
        assert unpacked(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize("nested", [False, True], ids=["rows", "one list"])
def test_a_small_file_that_stands_for_gigabytes_is_refused_in_little_memory(tmp_path: Path, nested: bool) -> None:
    # 2 000 times the same 1.3 MB, written once: 2.6 GB
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 1_300_000]))
    column = pa.ListArray.from_arrays(pa.array([0, 2000], pa.int32()), words) if nested else words
    path = written(tmp_path / "bomb.parquet", {"q": column}, store_schema=False)
    assert path.stat().st_size < 1000
    program = """
import resource, sys
from pathlib import Path
import pyarrow.parquet, pyarrow.compute
from cogalign.data.interchange.tables import parquet_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for _ in parquet_rows(Path(sys.argv[1])):
        pass
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60, stdout=subprocess.PIPE)
    message, grown = done.stdout.decode().splitlines()
    assert "bomb.parquet: row 1 has a text of 1300000 bytes, wanted at most 1000000" in message
    assert int(grown) < 100_000  # kB


def test_many_texts_in_one_row_are_too_much_of_a_row(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 100_000]))
    column = pa.ListArray.from_arrays(pa.array([0, 5, 995, 1000], pa.int32()), words)
    path = written(tmp_path / "a.parquet", {"q": column}, store_schema=False)
    with pytest.raises(ValueError, match=r"a\.parquet: row 2 has 99000000 bytes, wanted at most 64000000"):
        unpacked(path)


def test_a_large_column_of_nothing_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.parquet", {"b": pa.array([bytes(66_000_000)])}, use_dictionary=False, write_statistics=False
    )
    with pytest.raises(ValueError, match=r"a\.parquet: column 'b' unpacks from \d+ to 66\d+ bytes"):
        unpacked(path)


def test_an_image_of_a_few_megabytes_is_no_text(tmp_path: Path) -> None:
    image = os.urandom(3_000_000)
    path = written(tmp_path / "a.parquet", {"b": pa.array([image] * 30)})
    assert [row["b"] == image for row in unpacked(path)] == [True] * 30


@pytest.mark.parametrize("cut", [0, 8, -1, -20, 200])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    content = io.BytesIO()
    pq.write_table(pa.table({"q": [f"question {n}" for n in range(1000)]}), content)
    (tmp_path / "bad.parquet").write_bytes(content.getvalue()[:cut])
    with pytest.raises(ValueError, match=r"bad\.parquet: not parquet"):
        unpacked(tmp_path / "bad.parquet")
    with pytest.raises(FileNotFoundError):
        unpacked(tmp_path / "gone.parquet")


def test_the_questions_of_kvasir_vqa_x1_are_short(tmp_path: Path) -> None:
    columns = {name: ["a"] * 3 for name in ("img_id", "question", "answer", "original", "question_class")}
    path = written(tmp_path / "a.parquet", {**columns, "complexity": [1] * 3, "more": ["x"] * 3})
    assert list(_rows(path)) == [{**dict.fromkeys(columns, "a"), "complexity": 1}] * 3
    long = written(tmp_path / "b.parquet", {**columns, "complexity": [1] * 3, "answer": ["a", "a", "a" * 100_001]})
    with pytest.raises(ValueError, match=r"b\.parquet: row 3 has a text of 100001 bytes, wanted at most 100000"):
        list(_rows(long))
