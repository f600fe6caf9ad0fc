import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from cogalign.counterfactual.workers import one_thread
from cogalign.data.datamodule import start_worker
from cogalign.training.interrupt import (
    SIGNALS,
    Interrupted,
    as_interruption,
    check,
    install,
    restore,
    signals_interrupt,
    stopping,
)
from cogalign.training.progress import track
from cogalign.training.requeue import VARIABLE


@pytest.fixture
def batch_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The requeue file of a job; the signals' handlers are put back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setenv(VARIABLE, str(tmp_path / "job.requeue"))
    yield tmp_path / "job.requeue"
    restore(before)


def send(number: int) -> None:
    """Send this process a signal and let its handler run."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_raises_interrupted_inside_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=signal.Signals(number).name), signals_interrupt():
        os.kill(os.getpid(), number)
        signal.pause()
    assert signal.getsignal(number) is before


def test_a_signal_that_some_library_swallowed_ends_the_next_tracked_loop() -> None:
    seen: list[int] = []
    with pytest.raises(Interrupted, match="SIGTERM"), signals_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except BaseException:
            seen.append(0)
        seen.extend(track([1, 2], "goes on"))
    assert seen == [0]
    assert list(track([1, 2], "afterwards")) == [1, 2]


def test_interrupted_is_not_swallowed_by_code_that_guards_against_exceptions() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_thread_installs_nothing() -> None:
    found: list[object] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: found.append(install(lambda number, frame: None)))
    thread.start()
    thread.join()
    assert found == [{}]
    assert signal.getsignal(signal.SIGINT) is before
    restore({})


def test_more_signals_of_the_batch_system_do_not_cut_the_closing_short() -> None:
    closed = []
    with pytest.raises(Interrupted, match="SIGUSR1"), signals_interrupt():
        try:
            send(signal.SIGUSR1)
        finally:
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
                send(number)
                closed.append(number)
    assert len(closed) == 3


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_any_signal_ends_at_once(first: signal.Signals) -> None:
    with pytest.raises(Interrupted, match="SIGINT"), signals_interrupt():
        try:
            send(first)
        finally:
            send(signal.SIGINT)
            pytest.fail("the closing went on")


def test_a_block_in_a_block_leaves_the_signals_to_the_outer_one() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), signals_interrupt():
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with signals_interrupt():
                assert signal.getsignal(signal.SIGTERM) is handler
                send(signal.SIGTERM)
        finally:
            check()  # the inner block is over: what is written now may run to its end
            assert stopping()
            send(signal.SIGTERM)
    assert not stopping()


@pytest.mark.usefixtures("batch_job")
def test_after_a_signal_a_batch_job_closes_what_is_open_undisturbed() -> None:
    with pytest.raises(Interrupted), signals_interrupt():
        send(signal.SIGUSR1)
    send(signal.SIGUSR1)  # with the handlers of before, these would end the process
    send(signal.SIGTERM)


@pytest.mark.usefixtures("batch_job")
def test_without_a_signal_a_batch_job_gets_its_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_interrupt():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_pool_or_connection_that_breaks_after_a_signal_is_part_of_the_stop() -> None:
    with pytest.raises(Interrupted, match="SIGTERM; then RuntimeError: DataLoader worker killed"), signals_interrupt():
        try:
            send(signal.SIGTERM)
        except Interrupted:
            raise RuntimeError("DataLoader worker killed") from None


def test_a_rank_whose_partner_was_stopped_is_stopped_too(batch_job: Path) -> None:
    with pytest.raises(Interrupted, match="another process was stopped; then RuntimeError"), signals_interrupt():
        batch_job.write_text("{}")
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("bad mask")])
def test_errors_of_disk_and_input_stay_errors_after_a_signal(error: Exception) -> None:
    with pytest.raises(type(error)), signals_interrupt():
        try:
            send(signal.SIGTERM)
        except Interrupted:
            raise error from None


def test_a_broken_connection_without_any_signal_is_an_error(batch_job: Path) -> None:
    assert as_interruption(RuntimeError("Connection closed by peer")) is None
    with pytest.raises(RuntimeError, match="closed"), signals_interrupt():
        raise RuntimeError("Connection closed by peer")


WORKER = """
import time
from cogalign.training import interrupt
interrupt.WORKER_STAYS = 0.3
interrupt.leave_to_parent()
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def test_a_worker_leaves_signals_to_the_main_process_and_sigterm_ends_it_later() -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    with worker:
        assert worker.stdout.readline() == b"ready\n"
        worker.send_signal(signal.SIGUSR1)
        worker.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.5)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0


@pytest.mark.parametrize("begin", [start_worker, one_thread])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_loader_goes_on_when_a_batch_system_signals_its_workers_too(
    begin: Callable[[int], None], number: signal.Signals
) -> None:
    loader = DataLoader(range(64), batch_size=1, num_workers=2, worker_init_fn=begin)  # type: ignore[arg-type]
    seen: list[int] = []
    for batch in loader:
        if len(seen) == 4:
            for worker in multiprocessing.active_children():
                os.kill(int(worker.pid or 0), number)
        seen.append(int(batch))
    assert seen == list(range(64))
