import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cogalign.training.ranks import by_first, is_distributed, is_first, together

FAILS = """
import sys
from datetime import timedelta

from torch import distributed

from cogalign.training.ranks import by_first, everyone

rank, file = sys.argv[1:]
distributed.init_process_group(
    "gloo", init_method=f"file://{file}", rank=int(rank), world_size=2, timeout=timedelta(seconds=100)
)
done = []
by_first(lambda: done.append(rank))
try:
    by_first(lambda: open(f"{file}/adapter"))
except OSError as error:
    print(done, type(error).__name__, error, everyone(rank))
"""


def test_a_process_alone_is_the_first_and_waits_for_nobody() -> None:
    assert not is_distributed() and is_first()
    together()


def test_a_group_is_seen_as_long_as_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        assert is_distributed() and is_first()
        together()
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        assert not is_first()
    finally:
        torch.distributed.destroy_process_group()
    assert not is_distributed()


def test_a_process_alone_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        by_first(lambda: 1 / 0)


@pytest.mark.slow
def test_what_the_first_process_fails_at_ends_in_an_error_of_all(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", FAILS, str(rank), str(tmp_path / "group")] for rank in (0, 1)]
    both = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True, env=environment) for one in commands]
    said = [process.communicate(timeout=180)[0].strip() for process in both]
    why = f"[Errno 20] Not a directory: '{tmp_path}/group/adapter'"
    assert said == [f"['0'] NotADirectoryError {why} ['0', '1']", f"[] OSError rank 0: {why} ['0', '1']"]
