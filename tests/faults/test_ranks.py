"""Two ranks: when one hangs, fails or dies, both end soon, and one message says which and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES = {
    "hang:1": ("a rank hangs", "the watchdog", 124, 12.0),
    "kill:1": ("a rank is killed", "the other ranks, the main process", 1, 60.0),
    "kill:0": ("the main process is killed", "the other ranks", -9, 60.0),
    "raise:1": ("one rank alone fails", "the other ranks", 1, 60.0),
}


@pytest.mark.parametrize("fault", CASES)
def test_both_ranks_end_with_one_clear_message(
    runs: Runs, whole_on_two: Path, row: Callable[..., None], tmp_path: Path, fault: str
) -> None:
    name, detected, code, timeout = CASES[fault]
    first = runs.on_two(tmp_path / "run", fault, trainer__timeout=timeout)
    assert first.code == code, first.output[-3000:]
    assert first.stage["status"] == "failed" and first.stage["message"] in first.error
    second = runs.on_two(tmp_path / "run")
    row(name, detected, first, second, whole_on_two)
