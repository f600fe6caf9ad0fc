from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.interchange.colonr1 import solution, understood
from cogalign.data.interchange.commands import FORMATS, export_case_set
from cogalign.data.interchange.sample import DEFAULT_QUESTION
from cogalign.recipe import DataSettings
from tests.data.interchange.conftest import REPORT, make_cases, write_set


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def test_rows_look_as_each_tool_wants_them(case_set: Path, tmp_path: Path) -> None:
    for name in ("ms-swift", "trl", "llava", "colonvqa", "colonr1"):
        export_case_set(case_set, tmp_path / name, name, splits=["train"])
        (row,) = rows_of(tmp_path / name / f"train{FORMATS[name].suffixes[0]}")
        assert row["findings"] == ["polyp"] and row["dataset"] == "Kvasir-SEG" and row["licence"] == "research only"
        asked, image = DEFAULT_QUESTION, "images/p1.png"
        expected: dict[str, Any] = {
            "ms-swift": {"messages": [{"role": "user", "content": f"<image>{asked}"}, {"role": "assistant", "content": REPORT}],
                         "images": [image]},
            "trl": {"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": REPORT}],
                    "images": [image]},
            "llava": {"id": "p1", "image": image, "conversations": [{"from": "human", "value": f"<image>\n{asked}"},
                                                                   {"from": "gpt", "value": REPORT}]},
            "colonvqa": {"id": image, "image": image, "case_id": "p1"},
            "colonr1": {"image": image, "problem": asked,
                        "solution": f"<think>{REPORT.rpartition(chr(10))[0]}</think><answer>Polyp</answer>"},
        }  # fmt: skip
        assert {key: row[key] for key in expected[name]} == expected[name]
        assert (tmp_path / name / image).is_file() and (tmp_path / name / "masks/p1.png").is_file()
    assert DataSettings().question == DEFAULT_QUESTION


def test_predictions_are_appended_to_colonvqa_conversations(tmp_path: Path) -> None:
    case = replace(make_cases()[2], attributes={"prediction": "<B> ulcer"})
    export_case_set(write_set(tmp_path / "set", [case]), tmp_path / "out", "colonvqa")
    (row,) = rows_of(tmp_path / "out" / "test.json")
    assert [message["from"] for message in row["conversations"]] == ["human", "gpt", "prediction"]


def test_the_tsv_is_what_vlmevalkit_reads(case_set: Path, tmp_path: Path) -> None:
    """Its rules: an integer index, an image longer than 64 characters or an index above, letters with texts."""
    import base64

    import pandas as pd

    export_case_set(case_set, tmp_path / "out", "vlmevalkit", splits=["test"])
    table = pd.read_csv(tmp_path / "out" / "test.tsv", sep="\t")
    assert list(table.columns) == ["index", "image", "question", "A", "B", "C", "answer", "category", "case"]
    assert table["index"].tolist() == [0, 1, 2] and table["index"].dtype.kind == "i"
    images = table["image"].astype(str).tolist()
    assert [len(cell) > 64 for cell in images] == [True, True, False] and images[2] == "1"
    assert base64.b64decode(images[0]) == (case_set / "images/n1.png").read_bytes()
    assert table.loc[1, ["A", "B", "C", "answer", "category"]].tolist() == ["polyp", "ulcer", "no polyp", "A", "lesion"]
    assert pd.isna(table.loc[2, "A"])
    with (tmp_path / "out" / "test.tsv").open(newline="", encoding="utf-8") as stream:
        assert sum(1 for _ in csv.reader(stream, delimiter="\t")) == 4


def test_choices_that_pandas_takes_for_missing_are_warned_about(tmp_path: Path) -> None:
    case = replace(make_cases()[2], attributes={"choices": {"A": "polyp", "B": "None"}})
    summary = export_case_set(write_set(tmp_path / "set", [case]), tmp_path / "out", "vlmevalkit")
    assert any("'None'" in line and "missing" in line for line in summary.lines())


def test_licences_that_forbid_it_are_named_and_refused_on_demand(case_set: Path, tmp_path: Path) -> None:
    summary = export_case_set(case_set, tmp_path / "out", "llava")
    text = "\n".join(summary.lines())
    assert "forbids redistribution: Kvasir-SEG (research only, 1 cases)" in text and "Mine" in text
    assert "HyperKvasir" not in text
    for use in ("redistribution", "commercial"):
        with pytest.raises(ValueError, match=f"require {use}: not known to be allowed for Kvasir-SEG"):
            export_case_set(case_set, tmp_path / "no", "llava", require=use)  # type: ignore[arg-type]
    assert not (tmp_path / "no").exists()
    only = write_set(tmp_path / "only", make_cases()[1:2])
    (only / "sources.json").write_bytes((case_set / "sources.json").read_bytes())
    assert export_case_set(only, tmp_path / "yes", "llava", require="commercial").warnings == []


def test_what_cannot_be_written_leaves_nothing(case_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted one of ms-swift"):
        export_case_set(case_set, tmp_path / "out", "kvasir-vqa-x1-parquet")
    with pytest.raises(ValueError, match="no split 'moon'"):
        export_case_set(case_set, tmp_path / "out", "llava", splits=["moon"])
    with pytest.raises(FileExistsError, match="is not empty"):
        export_case_set(case_set, case_set, "llava")
    tagged = write_set(tmp_path / "tagged", [replace(make_cases()[2], question="Is <image> one?")])
    with pytest.raises(ValueError, match="case 'q1': field 'question' holds '<image>'"):
        export_case_set(tagged, tmp_path / "out", "ms-swift")
    bare = write_set(tmp_path / "bare", [replace(make_cases()[0], answer="")])
    with pytest.raises(ValueError, match="none of the 1 cases has an answer"):
        export_case_set(bare, tmp_path / "out", "trl")
    twice = write_set(
        tmp_path / "twice", [replace(make_cases()[2], split="a b"), replace(make_cases()[3], split="a-b")]
    )
    with pytest.raises(ValueError, match="the same name"):
        export_case_set(twice, tmp_path / "out", "trl")
    (case_set / "images" / "q.png").unlink()
    for name in ("llava", "vlmevalkit", "trl-parquet"):
        with pytest.raises(FileNotFoundError, match=r"q\.png"):
            export_case_set(case_set, tmp_path / "out", name)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_json_lines_load_where_early_rows_have_no_value(tmp_path: Path) -> None:
    """The first rows decide the columns' types, and thousands come before the first mask."""
    from datasets import load_dataset

    case = replace(make_cases()[1], answer="x" * 3000)
    many = [replace(case, id=str(number)) for number in range(4000)] + [replace(make_cases()[0], split="test")]
    export_case_set(write_set(tmp_path / "set", many), tmp_path / "out", "ms-swift")
    assert (tmp_path / "out" / "test.jsonl").stat().st_size > 10_000_000
    table = load_dataset(
        "json", data_files=str(tmp_path / "out" / "test.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(table) == 4001 and sum(bool(boxes) for boxes in table["boxes"]) == 1


@pytest.mark.parametrize(
    "answer", ["B", "two words", REPORT, "The diagnosis result is Polyp.", " padded ", "<answer>x</answer>"]
)
def test_solutions_are_understood_or_the_answer_stands_beside(answer: str) -> None:
    assert understood(solution(answer))[0] == answer or answer in (" padded ", "<answer>x</answer>")


def test_what_the_split_left_out_is_written_only_by_name(tmp_path: Path) -> None:
    cases = [replace(case, split="left_out") if index == 0 else case for index, case in enumerate(make_cases())]
    folder = write_set(tmp_path / "set", cases)
    summary = export_case_set(folder, tmp_path / "all", "ms-swift")
    assert not (tmp_path / "all/left_out.jsonl").exists() and summary.left_out == 1
    assert any("1 cases are left out, as by the split" in line for line in summary.lines())
    named = export_case_set(folder, tmp_path / "named", "ms-swift", splits=["left_out"])
    assert named.files == {"left_out.jsonl": 1} and named.left_out == 0
