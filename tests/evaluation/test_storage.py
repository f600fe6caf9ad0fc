from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cogalign.evaluation.storage import plain, read_frame, read_json, write_frame, write_json


def test_json_holds_no_nan_and_no_numpy(tmp_path: Path) -> None:
    value = {"a": np.float64("nan"), "b": (np.int64(2), float("inf")), 3: [np.bool_(True), None, "x"]}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == {"a": None, "b": [2, None], "3": [True, None, "x"]}
    assert plain(0.5) == 0.5


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json: not JSON"):
        read_json(tmp_path / "metrics.json")


def test_lists_come_back_from_parquet_as_lists(tmp_path: Path) -> None:
    frame = pd.DataFrame({"findings": [["polyp", "ulcer"], ["normal"]], "diagnosis": [[], ["normal"]], "n": [1, 2]})
    write_frame(tmp_path / "x.parquet", frame)
    assert read_frame(tmp_path / "x.parquet").to_dict("list") == frame.to_dict("list")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_a_failed_write_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_frame(path, pd.DataFrame({"n": [1]}))
    with pytest.raises(Exception):  # noqa: B017 - whichever error pyarrow raises for a cell it cannot write
        write_frame(path, pd.DataFrame({"n": [object()]}))
    assert read_frame(path)["n"].tolist() == [1]
    assert len(list(tmp_path.iterdir())) == 1
