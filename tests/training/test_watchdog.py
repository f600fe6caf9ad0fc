"""Who keeps a run from going on: what the ranks' files say together, and where a stack stands. See also tests/faults."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from cogalign.training import ending, interrupt, local_ranks
from cogalign.training.ending import descendants
from cogalign.training.heartbeat import PULSE, beat
from cogalign.training.local_ranks import described
from cogalign.training.stacks import COLLECTIVES, Line, all_stacks, main_stack, place_of
from cogalign.training.standing import Others, Standing, failure, read_standing, verdict, write_standing
from cogalign.training.watchdog import Watchdog, is_lost_connection

POOL = "cogalign/grpo/rewards/pool.py:88 (collect)"


def rank(number: int, idle: float = 60.0, collective: str | None = None, **fields: object) -> Standing:
    state = "stalled" if idle >= 60 else "running"
    where = POOL if collective is None else "cogalign/training/ranks.py:26 (together)"
    known = {"step": 12, "phase": "training", "state": state, "where": where}
    return Standing(number, f"n{number + 1}", 100 + number, idle=idle, collective=collective, **(known | fields))  # type: ignore[arg-type]


def of(*ranks: Standing) -> dict[int, Standing]:
    return {one.rank: one for one in ranks}


def test_the_rank_that_is_not_waiting_is_the_one_for_which_the_others_wait() -> None:
    found = verdict(of(rank(0, 60, "all_reduce"), rank(1), rank(2, 61, "all_reduce")), (), 60, "grpo")
    assert found == (
        f"rank 1 (host n2) has not finished step 12 for 60 s (training): it stands in {POOL}; "
        "ranks 0, 2 wait for it in all_reduce"
    )


def test_a_rank_that_still_works_keeps_the_run_alive() -> None:
    assert verdict(of(rank(0, 500, "all_reduce"), rank(1, 5)), (), 60, "sft") is None


def test_a_rank_without_a_sign_of_life_is_named_and_not_waited_for() -> None:
    ranks = of(rank(0, 60, "barrier"), rank(1, 3))
    assert verdict(ranks, {1}, 60, "sft") == (
        "rank 1 (host n2), process 101, gives no sign of life; it was last seen in step 12; rank 0 waits for it in barrier"
    )


def test_ranks_that_all_wait_for_one_another_are_told_with_their_places() -> None:
    found = verdict(of(rank(0, 70, "all_reduce"), rank(1, 66, "broadcast")), (), 60, "sft")
    assert found is not None and found.startswith("all ranks have been waiting for one another for 70 s in step 12: ")
    assert "rank 0 (host n1) in all_reduce" in found and "rank 1 (host n2) in broadcast" in found


def test_a_run_of_one_process_is_named_by_its_stage() -> None:
    assert verdict(of(rank(0)), (), 60, "sft") == (
        f"sft has not finished step 12 for 60 s (training): it stands in {POOL}"
    )


def test_an_error_of_another_rank_is_told() -> None:
    assert failure(of(rank(0))) is None
    assert (
        failure(of(rank(0), rank(1, state="failed", error="no memory")))
        == "rank 1 (host n2) failed in step 12: no memory"
    )


def test_a_rank_is_gone_when_its_file_does_not_change(tmp_path: Path) -> None:
    others = Others(tmp_path, 0, 3, patience=0.2)
    for count in range(3):
        write_standing(tmp_path, rank(1, 0, count=count))
        found, gone = others.look()
        assert found[1].count == count and 1 not in gone
        time.sleep(0.15)
    assert others.look()[1] == {2}  # of which there never was a file
    time.sleep(0.1)
    assert others.look()[1] == {1, 2}


def test_a_folder_that_cannot_be_written_does_not_stop_the_watchdog(tmp_path: Path) -> None:
    (tmp_path / "watchdog").write_text("in the way")
    write_standing(tmp_path, rank(0))
    assert read_standing(tmp_path, 0) is None


def test_the_place_is_the_innermost_line_that_is_no_librarys() -> None:
    stack = [Line(time.__file__ if hasattr(time, "__file__") else threading.__file__, 1, "wait"),
             Line(torch.__file__, 2, "__call__"), Line(__file__, 3, "reward"), Line(ending.__file__, 4, "main")]  # fmt: skip
    assert place_of(stack).where == "training/test_watchdog.py:3 (reward)"
    assert place_of(stack[3:]).where == "cogalign/training/ending.py:4 (main)"
    assert place_of(stack).collective is None


@pytest.mark.parametrize("name", ["all_reduce", "barrier", "all_gather_object"])
def test_a_collective_is_seen_in_the_stack(name: str) -> None:
    assert name in COLLECTIVES
    inside = Line(torch.distributed.distributed_c10d.__file__, 1, name)
    assert place_of([Line(threading.__file__, 1, "wait"), inside, Line(__file__, 2, "step")]).collective == name


def test_the_sum_of_gradients_is_seen_in_a_real_backward_pass() -> None:
    found = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):  # type: ignore[no-untyped-def]
            return value

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            from cogalign.training.stacks import lines_of

            found.append(place_of(lines_of(sys._getframe())).collective)
            return gradient

    Look.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert found == ["the backward pass (sum of gradients)"]


def test_stacks_show_all_threads_and_the_short_one_only_own_lines() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="the other one")
    thread.start()
    whole, short = all_stacks(), main_stack()
    done.set()
    thread.join()
    assert "thread the other one:" in whole and whole.startswith("thread MainThread:")
    assert "test_stacks_show_all_threads" in short and "_pytest/" not in short


def test_beats_tell_step_and_phase() -> None:
    beat("sampling", 7)
    time.sleep(0.05)
    assert (PULSE.phase, PULSE.step) == ("sampling", 7) and PULSE.idle >= 0.05
    beat()
    assert PULSE.phase == "sampling" and PULSE.idle < 0.05


def test_files_are_written_seldom_and_a_rank_is_not_given_up_early() -> None:
    for timeout in (5.0, 60.0, 1800.0, 36000.0):
        watchdog = Watchdog(Path("x"), "sft", timeout)
        assert 2 <= watchdog.interval <= 10 and watchdog.patience >= 3 * watchdog.interval


def test_errors_of_the_connection_are_told_from_others() -> None:
    assert is_lost_connection(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert is_lost_connection(torch.distributed.DistBackendError("NCCL error"))
    assert not is_lost_connection(RuntimeError("shapes do not fit"))
    assert not is_lost_connection(ValueError("gloo"))


def test_exit_codes_in_words() -> None:
    assert described(3) == "ended with exit code 3"
    assert described(-15) == "was killed by SIGTERM"
    assert "memory ran out" in described(-9)


def test_lightning_keeps_its_ranks_where_they_are_taken_from(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=3)
    assert launcher.procs == []
    launcher.procs.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
    for name, value in {"_launcher": launcher, "_first": 4, "_children": {}}.items():
        monkeypatch.setattr(local_ranks, name, value)
    local_ranks._take_over()
    process = local_ranks._children[5]  # the second one of the third machine
    assert process.wait() == 3 and launcher.procs == []
    assert local_ranks.lost() == f"rank 5 (process {process.pid}) ended with exit code 3"
    observer = _ChildProcessObserver(os.getpid(), launcher.procs, sleep_period=0)
    observer.run()  # has nothing to watch, and ends without killing anybody


def test_a_connection_that_broke_because_of_a_signal_is_left_to_the_one_who_acts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = Watchdog(tmp_path, "sft", 60.0)
    monkeypatch.setattr(watchdog, "_world_size", 2)
    write_standing(tmp_path, Standing(0))
    monkeypatch.setattr(interrupt, "_stopping", ["SIGUSR1"])
    watchdog.on_exception(None, None, RuntimeError("[gloo] Connection closed by peer"))  # type: ignore[arg-type]
    assert read_standing(tmp_path, 0) is None  # nothing is told to the others, and this process goes on


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    command = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def test_children_of_children_are_found(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        found = descendants(os.getpid())
        assert {parent.pid, child} <= set(found) and found.index(parent.pid) < found.index(child)
    finally:
        os.kill(child, 9)
