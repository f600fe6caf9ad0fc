"""`cogalign data split` as a person types it."""

import json

import numpy as np
import pytest
from PIL import Image

from cogalign.cli_data import UsageError, data
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter, read_case_set


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    with CaseSetWriter(tmp_path / "set") as writer:
        for number in range(20):
            small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            official = {"official_split": "test"} if number < 4 else {}
            one = Case(f"c{number}", f"images/{number}.png", ("polyp",), "train", attributes=official)
            writer.add(one, Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fold", "1"], "--fold: does nothing with --method stratified, wanted --method official"),
        (["--rest", "train"], "--rest: does nothing with --method stratified"),
        (["--repair"], "--repair: does nothing with --method stratified"),
        (["--image-level"], "--image-level: does nothing with --method stratified, wanted --method paper"),
        (["--method", "paper", "--test-share", "0.2"], "--test-share: .*wanted --method stratified or official"),
        (["--method", "paper", "--fold", "0"], "--fold: does nothing with --method paper"),
        (["--method", "official", "--image-level"], "--image-level: does nothing with --method official"),
        (["--method", "official", "--test-share", "0.2"], "--test-share: .*wanted --rest stratify with it"),
        (["--method", "official", "--rest", "train", "--validation-share", "0"], "wanted --rest stratify with it"),
    ],
)
def test_an_option_that_does_nothing_is_refused_and_nothing_changes(root, options, message):
    before = (root / "metadata.jsonl").read_bytes()
    with pytest.raises(UsageError, match=message):
        data(["split", str(root), *options])
    assert (root / "metadata.jsonl").read_bytes() == before and not (root / "split.json").exists()


def test_without_options_a_fifth_is_test_and_what_is_given_arrives(root, capsys):
    assert data(["split", str(root)]) == 0
    assert read_case_set(root).cases and json.loads((root / "split.json").read_text())["settings"]["test_share"] == 0.2
    assert data(["split", str(root), "--test-share", "0.5", "--validation-share", "0"]) == 0
    assert json.loads((root / "split.json").read_text())["splits"] == {"train": 10, "test": 10}
    options = ["--method", "official", "--rest", "stratify", "--test-share", "0.25", "--repair"]
    assert data(["split", str(root), *options]) == 0
    settings = json.loads((root / "split.json").read_text())["settings"]
    assert (settings["rest"], settings["test_share"], settings["repair"]) == ("stratify", 0.25, True)
    assert data(["split", str(root), "--method", "official"]) == 0
    assert json.loads((root / "split.json").read_text())["splits"] == {"train": 16, "test": 4}
    capsys.readouterr()


def test_an_empty_split_ends_with_an_error(root, capsys):
    lines = [json.loads(line) | {"group": "one video"} for line in (root / "metadata.jsonl").read_text().splitlines()]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert data(["split", str(root)]) == 1
    assert "EMPTY: test" in capsys.readouterr().out
