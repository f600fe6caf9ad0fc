"""Runs in which something goes wrong, and the table of what came of it (`docs/faults.md`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Ended, Runs, environment, weights
from tests.faults.table import Row, check

RowCheck = Callable[..., None]
DISK = 8 * 2**20


@pytest.fixture(scope="session")
def runs(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The starter of runs, with cases of its own: faults damage them for a while."""
    data = shutil.copytree(phantom_set, tmp_path_factory.mktemp("faults") / "data")
    zygote = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert zygote.stdin is not None and zygote.stdout is not None
    assert zygote.stdout.readline() == "ready\n"
    yield Runs(data, zygote)
    zygote.stdin.close()
    zygote.wait(30)


@pytest.fixture(scope="session")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return good(runs.of(tmp_path_factory.mktemp("faults") / "whole"))


@pytest.fixture(scope="session")
def whole_on_two(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    return good(runs.on_two(tmp_path_factory.mktemp("faults") / "two"))


@pytest.fixture(scope="session")
def pairs(runs: Runs, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its counterfactuals, which one job made; GRPO comes next."""
    out = shutil.copytree(whole, tmp_path_factory.mktemp("faults") / "pairs")
    return good(runs.command("counterfactual", out))


def good(ended: Ended) -> Path:
    """The run folder of a command that ended well."""
    assert ended.code == 0, ended.output[-3000:]
    return ended.out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own (root may mount one)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def row(runs: Runs) -> RowCheck:
    """Checks a row of the table, or writes it."""

    def tell(
        fault: str,
        detected: str,
        first: Ended,
        second: Ended | None = None,
        reference: Path | None = None,
        *,
        last: Ended | None = None,
        message: str | None = None,
        lost: str | None = None,
        resumed: str | None = None,
    ) -> None:
        """`first` had the fault, `second` went on and `last` (else `second`) ended as `reference` did; if there is no
        second, the first itself went on."""
        if second is None:
            assert resumed is not None or first.code == 0, first.output[-3000:]
            lost, resumed = lost or "0", resumed or "the run goes on"
        else:
            lost = str(first.steps - second.went_on_after) if lost is None else lost
            if resumed is None:
                assert reference is not None
                resumed = weights(last or second, reference)
        check(Row(fault, detected, message or first.error, lost, resumed), {first.out: "RUN", runs.data: "DATA"})

    return tell
