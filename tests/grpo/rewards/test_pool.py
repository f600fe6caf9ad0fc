"""Rewards in a process pool: whatever one does, the others and the run go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogalign.grpo.rewards.pool import RewardPool
from cogalign.grpo.rewards.worker import checked

sys.path.insert(0, str(Path(__file__).parent))
import odd_rewards as odd

TEXTS = ["a", "bb", "guilty", "dddd"]
GOOD = [1.0, 2.0, 6.0, 4.0]
ALL_BUT_GUILTY = [1.0, 2.0, None, 4.0]
TIMEOUT = 1.2


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    """One pool of all odd rewards; a test asks for some of them."""
    functions = [
        odd.good, odd.sleeps_on_one, odd.raises_on_one, odd.dies_on_one, odd.returns_too_few, odd.returns_nonsense,
        odd.stuck_in_c, odd.needs_the_batch, odd.dies_once, odd.waits, odd.wants_trls_arguments, odd.imported_modules,
        odd.process_id, odd.leaves_quietly,
    ]  # fmt: skip
    with RewardPool({f.__name__: f for f in functions} | {"counter": odd.Counter()}, 1, TIMEOUT) as pool:
        yield pool


@pytest.fixture
def judge(pool: RewardPool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Values and errors of some rewards, all within the stated bound."""

    def run(*names: str, texts: list[str] = TEXTS, **columns: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        monkeypatch.setattr(pool, "names", names)
        started = time.monotonic()
        result = pool.submit(texts, columns).collect()
        assert time.monotonic() - started < pool.bound
        assert list(result.values) == list(result.seconds) == list(names)
        return result.values, result.errors

    return run


def test_good_rewards_give_their_values(judge: Any) -> None:
    assert judge("good", "waits") == ({"good": GOOD, "waits": GOOD}, [])


def test_workers_import_no_torch(judge: Any) -> None:
    assert judge("imported_modules")[0] == {"imported_modules": [0.0] * 4}


def test_trls_extra_arguments_are_given_to_those_that_ask(judge: Any) -> None:
    assert judge("wants_trls_arguments") == ({"wants_trls_arguments": [1.0] * 4}, [])


def test_a_stateful_reward_keeps_its_state(judge: Any) -> None:
    first = judge("counter")[0]["counter"][0]
    assert judge("counter")[0]["counter"][0] == first + 1


def test_a_reward_that_raises_on_one_sample_loses_that_sample(judge: Any) -> None:
    values, errors = judge("raises_on_one", "good")
    assert values == {"raises_on_one": ALL_BUT_GUILTY, "good": GOOD}
    assert errors == [("raises_on_one", 2, "RuntimeError: cannot read this one")]


def test_a_reward_that_sleeps_for_ever_on_one_sample_loses_that_sample(judge: Any) -> None:
    values, errors = judge("sleeps_on_one", "good")
    assert values == {"sleeps_on_one": ALL_BUT_GUILTY, "good": GOOD}
    assert [(name, index) for name, index, _ in errors] == [("sleeps_on_one", 2)]
    assert "took longer than" in errors[0][2]


def test_a_reward_that_ends_its_process_on_one_sample_loses_that_sample(judge: Any) -> None:
    values, errors = judge("dies_on_one", "good")
    assert values == {"dies_on_one": ALL_BUT_GUILTY, "good": GOOD}
    assert [(name, index) for name, index, _ in errors] == [("dies_on_one", 2)]
    assert "died" in errors[0][2]


def test_a_reward_that_leaves_without_a_word_loses_that_sample(judge: Any) -> None:
    values, errors = judge("leaves_quietly", "good")
    assert values == {"leaves_quietly": ALL_BUT_GUILTY, "good": GOOD}
    assert [(name, index) for name, index, _ in errors] == [("leaves_quietly", 2)]


def test_a_reward_that_returns_too_few_values_loses_that_sample(judge: Any) -> None:
    values, errors = judge("returns_too_few")
    assert values == {"returns_too_few": ALL_BUT_GUILTY}
    assert errors == [("returns_too_few", 2, "returned 0 values, wanted 1, one a completion")]


def test_what_is_no_finite_number_is_missing(judge: Any) -> None:
    values, errors = judge("returns_nonsense", texts=["guilty", "text", "none", "nan", "ok"])
    assert values == {"returns_nonsense": [None, None, None, None, 2.0]}
    assert [(index, message[:17]) for _, index, message in errors] == [
        (0, "returned inf, wan"),
        (1, "returned 'high', "),
    ]


def test_a_call_that_never_comes_back_to_python_is_killed(judge: Any) -> None:
    values, errors = judge("stuck_in_c", "good")
    assert values == {"stuck_in_c": [None] * 4, "good": GOOD}
    assert errors and {name for name, _, _ in errors} == {"stuck_in_c"}


def test_a_reward_that_needs_the_batch_is_not_fooled_into_single_calls(judge: Any) -> None:
    assert judge("needs_the_batch") == ({"needs_the_batch": GOOD}, [])


def test_a_worker_that_was_killed_from_outside_costs_nothing(judge: Any, tmp_path: Path) -> None:
    assert judge("dies_once", marker=[str(tmp_path / "seen")] * 4) == ({"dies_once": GOOD}, [])


def test_an_idle_worker_that_was_killed_is_replaced(judge: Any) -> None:
    worker = int(judge("process_id")[0]["process_id"][0])
    os.kill(worker, signal.SIGKILL)
    assert judge("good") == ({"good": GOOD}, [])
    time.sleep(0.3)
    assert judge("good") == ({"good": GOOD}, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_ignore_the_signals_of_a_preempted_job(judge: Any, number: int) -> None:
    worker = judge("process_id")[0]["process_id"]
    os.kill(int(worker[0]), number)
    assert judge("process_id")[0]["process_id"] == worker


def test_a_column_of_another_length_is_refused(pool: RewardPool) -> None:
    with pytest.raises(ValueError, match=r"'findings': found 1 values, wanted 2"):
        pool.submit(["", ""], {"findings": [["polyp"]]})


def test_a_reward_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward 'local': cannot be sent .* wanted a function of a module"):
        RewardPool({"local": lambda **_: [1.0]}, 1, 1.0)


def test_collect_gives_the_same_twice_and_several_batches_may_wait(pool: RewardPool, monkeypatch: Any) -> None:
    monkeypatch.setattr(pool, "names", ("good",))
    first, second = pool.submit(["a"], {}), pool.submit(["bb"], {})
    assert second.collect().values == {"good": [2.0]}
    assert first.collect().values == {"good": [1.0]}
    assert first.collect() is first.collect()


def test_returned_values_are_checked() -> None:
    assert checked((1, None, True), 3) == ([1.0, None, 1.0], [])
    assert checked("abc", 3)[0] is None and checked({0: 1}, 1)[0] is None


def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    program = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        import odd_rewards as odd
        from cogalign.grpo.rewards.pool import RewardPool
        if __name__ == "__main__":
            pool = RewardPool({"pid": odd.process_id, "sleeps": odd.sleeps_on_one}, 2, 60.0)
            print(int(pool.submit(["a"], {}).collect().values["pid"][0]), flush=True)
            pool.submit(["guilty"], {})
            time.sleep(60)
    """
    script = tmp_path / "main.py"
    script.write_text(textwrap.dedent(program))
    main = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert main.stdout is not None
    worker = int(main.stdout.readline())
    assert _alive(worker)
    main.kill()
    main.wait()
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
