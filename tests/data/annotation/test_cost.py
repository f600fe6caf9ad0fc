"""A limit of spending, and the ledger of what was paid for."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.annotation.cost import SpendingLimit, cost_of
from cogalign.data.annotation.ledger import LEDGER, Entry, Ledger, read_entries, usage_of
from cogalign.data.annotation.prompt import image_tokens, sent_size
from cogalign.models.endpoint_wire import Usage


@given(limit=st.floats(0, 0.2), steps=st.lists(st.tuples(st.integers(1, 3000), st.floats(0.5, 1.9), st.integers(0, 500)),
                                               max_size=40))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_limit_holds_whatever_the_answers_cost(limit: float, steps: list[tuple[int, float, int]]) -> None:
    purse = SpendingLimit(limit, 10.0, 30.0)
    spent = 0.0
    ratio = max((factor for _, factor, _ in steps), default=1.0)
    for guess, _, completion in steps:
        if not purse.take(guess, 500):
            continue
        usage = Usage(int(guess * ratio), completion, 1)
        purse.settle(guess, 500, usage)
        spent += cost_of(usage, 10.0, 30.0)
    assert spent <= limit + 1e-9 and purse.spent == pytest.approx(spent)


def test_a_request_waits_while_others_are_under_way_and_is_refused_only_by_what_was_spent() -> None:
    purse = SpendingLimit(1.0, 0.0, 1000.0)  # an answer of at most 600 tokens may cost 0.6
    assert purse.take(0, 600)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(purse.take, 0, 600)
        assert not second.done()
        threading.Timer(0.05, lambda: purse.settle(0, 600, Usage(0, 100, 1))).start()
        assert second.result(5) is True
    purse.settle(0, 600, Usage(0, 600, 1))
    assert not purse.take(0, 600) and purse.refused and purse.spent == pytest.approx(0.7)


def test_a_request_without_an_answer_counts_as_the_longest() -> None:
    purse = SpendingLimit(10.0, 1000.0, 1000.0)
    assert purse.take(100, 400)
    purse.settle(100, 400, Usage(requests=1, lost=1))
    assert purse.spent == pytest.approx(0.2 + 0.4)


def entry(key: str, attempt: int = 1, answer: str | None = "text") -> Entry:
    return Entry(
        key, "case", attempt, "seer", "1", "2026-01-01T00:00:00+00:00", answer, usage={"prompt": 5, "other": 1}
    )


def test_the_ledger_finds_answers_by_their_question_also_after_a_cut(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for number in range(3):
            ledger.add(entry("a", number + 1))
        ledger.add(entry("b", answer=None))
    content = (tmp_path / LEDGER).read_bytes()
    for end in range(len(content) - 200, len(content), 7):
        (tmp_path / LEDGER).write_bytes(content[:end])
        with Ledger(tmp_path) as ledger:
            known = len(ledger.answers("a"))
            assert known in (2, 3) and ledger.answers("b") == []
            ledger.add(entry("c"))
        entries, damaged = read_entries(tmp_path / LEDGER)
        assert entries[-1].key == "c" and damaged <= 1
    assert usage_of(entry("a")) == Usage(prompt=5)


def test_an_unused_ledger_leaves_no_file(tmp_path: Path) -> None:
    with Ledger(tmp_path):
        pass
    assert not (tmp_path / LEDGER).exists()


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger.add(entry(str(number), answer="x" * 500)), range(60)))
    entries, damaged = read_entries(tmp_path / LEDGER)
    assert damaged == 0 and {found.key for found in entries} == {str(number) for number in range(60)}


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(64, 2048))
@settings(max_examples=60, deadline=None)
def test_images_are_only_shrunk_and_keep_their_shape(width: int, height: int, side: int) -> None:
    wide, high = sent_size(width, height, side)
    assert 1 <= wide <= min(width, max(side, 1)) and 1 <= high <= min(height, max(side, 1))
    if max(width, height) <= side:
        assert (wide, high) == (width, height)
    assert image_tokens(wide, high) >= wide * high / 1024
