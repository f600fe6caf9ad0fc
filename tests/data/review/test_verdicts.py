import json
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.review.verdicts import Verdict, merge_verdicts, parse_verdicts, read_json


def content(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {"format": "cogalign-verdicts", "version": 1, "by": "Dr. A", "verdicts": list(entries), **fields}


def test_reads_what_the_gallery_writes(tmp_path: Path) -> None:
    entries = [
        {"id": "a-removal", "verdict": "reject", "of": "a", "note": "rim left"},
        {"id": "a", "verdict": "accept", "of": None, "note": ""},
    ]
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps(content(*entries)))
    assert parse_verdicts(read_json(path), str(path)) == {
        "a-removal": Verdict("reject", "Dr. A", "rim left", "a"),
        "a": Verdict("accept", "Dr. A", "", None),
    }


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], 'wanted an object with "format"'),
        (content(format="other"), 'wanted an object with "format"'),
        (content(version=2), "version: found 2, wanted 1"),
        (content(verdicts={}), "verdicts: found dict"),
        (content({"verdict": "accept"}), "v.json: verdict 1: found .* an id"),
        (content({"id": "a", "verdict": "maybe"}), "found 'maybe', wanted one of accept, reject"),
        (content({"id": "a", "verdict": ["accept"]}), "wanted one of accept, reject"),
        (content({"id": "a", "verdict": "accept", "note": 3}), "note: found 3, wanted a text"),
        (content(by=3), "by: found 3"),
        (content({"id": "a", "verdict": "accept"}, {"id": "a", "verdict": "reject"}), "verdict 2: case 'a'"),
    ],
)
def test_a_damaged_file_is_one_clear_message(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_verdicts(found, "v.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_what_is_no_json_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.json: not JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_reviewers_may_agree_but_not_differ() -> None:
    one, same, other = Verdict("accept", "A"), Verdict("accept", "B"), Verdict("reject", "C")
    assert merge_verdicts([("x", {"a": one}), ("y", {"a": same, "b": other})]) == {"a": one, "b": other}
    with pytest.raises(ValueError, match="z: case 'a': found 'reject', but 'accept' before by A"):
        merge_verdicts([("x", {"a": one}), ("z", {"a": other})])
