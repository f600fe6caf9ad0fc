"""Two ranks: when one hangs, fails or dies, both end soon, and one message says which and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import RowCheck
from tests.faults.runs import Runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES = (
    ("hang:1", "a rank hangs", "the watchdog", 124, 10.0),
    ("kill:1", "a rank is killed", "the other ranks, the main process", 1, 60.0),
    ("kill:0", "the main process is killed", "the other ranks", -9, 60.0),
    ("raise:1", "one rank alone fails", "the other ranks", 1, 60.0),
)


def test_both_ranks_end_with_one_clear_message_and_the_run_goes_on_time_after_time(
    runs: Runs, whole_on_two: Path, row: RowCheck, tmp_path: Path
) -> None:
    found = []
    for fault, _, _, code, timeout in CASES:
        ended = runs.on_two(tmp_path / "run", fault, trainer__timeout=timeout)
        assert ended.code == code, ended.output[-3000:]
        stage = ended.stage
        assert stage["status"] == "failed" and stage["message"] in ended.error
        found.append(ended)
    found.append(runs.on_two(tmp_path / "run"))
    for number, (_, name, detected, _, _) in enumerate(CASES):
        row(name, detected, found[number], found[number + 1], whole_on_two, last=found[-1])
