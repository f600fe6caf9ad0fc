"""Work in several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogalign.data.parallel import FEW, each

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tests.data.test_parallel import slow
from cogalign.data.parallel import each

if __name__ == "__main__":
    list(each(slow, [sys.argv[1]] * 400, "slow", 2))
"""


def slow(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(0.05)


def double(number: int) -> int:
    if number == -1:
        raise ValueError("not this one")
    return 2 * number


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items_and_errors_as_they_are(workers: int) -> None:
    assert list(each(double, range(FEW + 9), "double", workers)) == [2 * number for number in range(FEW + 9)]
    with pytest.raises(ValueError, match="not this one"):
        list(each(double, [*range(FEW), -1], "double", workers))
    with pytest.raises(ValueError, match="workers: found 0"):
        list(each(double, [1], "double", 0))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "pids").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "pids")], env=environment, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and all(map(alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 15
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))
