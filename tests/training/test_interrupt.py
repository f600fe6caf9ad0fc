import os
import signal
import threading

import pytest

from cogalign.training.interrupt import SIGNALS, Interrupted, install, restore, signals_interrupt
from cogalign.training.progress import track


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
