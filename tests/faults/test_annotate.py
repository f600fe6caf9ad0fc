"""An annotation endpoint that dies in the middle: a real server whose port is closed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.annotation.ledger import LEDGER, read_entries
from cogalign.data.caseset import METADATA
from tests.data.annotation.conftest import Teacher, write_cases
from tests.faults.conftest import RowCheck, good
from tests.faults.runs import Ended, Runs
from tests.local_server import Reply

pytestmark = pytest.mark.slow
CASES, ANSWERS = 8, 3


def annotated(runs: Runs, folder: Path, url: str) -> Ended:
    """What `cogalign data annotate` comes to."""
    options = ("--teacher", "endpoint", "--model", "teacher", "--concurrency", "1", "--retries", "0")
    return runs.start(["data", "annotate", str(folder), "--url", url, *options], folder)


def reports(folder: Path) -> list[tuple[str, Any]]:
    """Report and keywords of each case."""
    rows = [json.loads(line) for line in (folder / METADATA).read_text(encoding="utf-8").splitlines()]
    return [(row["answer"], row["keywords"]) for row in rows]


def test_an_annotation_endpoint_that_dies_costs_no_answer(runs: Runs, row: RowCheck, tmp_path: Path) -> None:
    teacher, dying = Teacher(), Teacher()

    def last_words(request: dict[str, Any]) -> Reply | None:
        if len(dying.requests) == ANSWERS:  # no connection is taken any more; this answer still goes out
            threading.Thread(target=dying.http.shutdown).start()
            dying.http.server_close()
        return dying.says(dying.report(request)) if len(dying.requests) <= ANSWERS else None

    dying.reply = last_words
    whole, folder = write_cases(tmp_path / "whole", CASES), write_cases(tmp_path / "set", CASES)
    try:
        good(annotated(runs, whole, teacher.url))
        first = annotated(runs, folder, dying.url)
        kept = sum(entry.answer is not None for entry in read_entries(folder / LEDGER)[0])
        asked = len(teacher.requests)
        second = annotated(runs, folder, teacher.url)
    finally:
        teacher.http.shutdown()
        teacher.http.server_close()
    assert first.code == 1 and "Traceback" not in first.output and kept == ANSWERS
    good(second)
    assert reports(folder) == reports(whole)
    again = ANSWERS + len(teacher.requests) - asked - CASES
    row("the annotation endpoint dies", "three cases in a row without an answer", first, second,
        lost=f"{again} answers", resumed="yes, same reports")  # fmt: skip
