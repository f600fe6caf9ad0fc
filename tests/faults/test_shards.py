"""Counterfactuals that jobs of an array made, with a file that is damaged before they are put together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import RowCheck, good
from tests.faults.runs import Ended, Runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(runs: Runs, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose two shards are made."""
    out = shutil.copytree(whole, tmp_path_factory.mktemp("faults") / "shards")
    good(runs.command("counterfactual", out, None, "--phase", "masks"))
    for shard in ("0/2", "1/2"):
        good(runs.command("counterfactual", out, None, "--phase", "make", "--shard", shard))
    return out


def made(out: Path) -> dict[str, bytes]:
    """The table and the pictures of the counterfactuals."""
    folder = out / "counterfactual"
    files = [folder / "metadata.jsonl", *(path for kind in ("images", "masks") for path in (folder / kind).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def went_on(ended: Ended) -> str:
    """The line of what had been made before."""
    return ended.line("were made before")


def test_a_part_file_that_is_cut_in_the_middle_costs_its_second_half(
    runs: Runs, shards: Path, pairs: Path, row: RowCheck, tmp_path: Path
) -> None:
    out = shutil.copytree(shards, tmp_path / "run")
    path = next((out / "counterfactual").glob("parts-*/rank-1-of-2-*.jsonl"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    lost = content.count(b"\n") - path.read_bytes().count(b"\n")
    ended = runs.command("counterfactual", out)
    good(ended)
    assert lost > 0 and made(out) == made(pairs)
    row("a shard's part file is cut in the middle", "the reader of part files", ended, message=went_on(ended),
        lost=f"{lost} counterfactuals", resumed="yes, same pictures")  # fmt: skip


def test_a_picture_of_a_finished_shard_that_is_gone_is_made_again(
    runs: Runs, shards: Path, pairs: Path, row: RowCheck, tmp_path: Path
) -> None:
    out = shutil.copytree(shards, tmp_path / "run")
    min((out / "counterfactual/images").iterdir()).unlink()
    ended = runs.command("counterfactual", out)
    good(ended)
    assert made(out) == made(pairs)
    row("a picture of a finished shard is gone", "the reader of part files", ended, message=went_on(ended),
        lost="1 counterfactual", resumed="yes, same pictures")  # fmt: skip
