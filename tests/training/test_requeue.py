"""How a stopped process asks for its job to go back into the queue, and how its ranks learn of each other's signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogalign.training.interrupt import Interrupted
from cogalign.training.requeue import VARIABLE, exit_code, ranks, requested, was_requested


@pytest.fixture
def requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "slurm" / "sft.17.requeue"
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setenv("SLURM_PROCID", "3")
    return path


def test_a_stopped_command_of_a_batch_job_writes_the_file_and_ends_with_0(requeue: Path) -> None:
    assert not was_requested()
    assert exit_code(Interrupted("SIGUSR1; step 12 is saved")) == 0
    content = json.loads(requeue.read_text())
    assert (content["signal"], content["step"], content["rank"]) == ("SIGUSR1", 12, 3)
    assert was_requested()


def test_a_stop_outside_of_a_training_has_no_step(requeue: Path) -> None:
    assert exit_code(Interrupted("SIGTERM")) == 0
    assert json.loads(requeue.read_text())["step"] is None


def test_the_first_rank_that_asks_tells_why(requeue: Path) -> None:
    assert requested("SIGTERM", 4) and requested("SIGUSR1")
    assert '"SIGTERM"' in requeue.read_text() and '"step": 4' in requeue.read_text()


def test_outside_of_a_batch_job_the_exit_code_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert exit_code(Interrupted("SIGUSR1; step 12 is saved")) == 130
    assert exit_code(KeyboardInterrupt()) == 130
    assert not requested("SIGUSR1")
    assert not was_requested()


def test_a_file_that_cannot_be_written_is_named_and_the_job_fails(
    requeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requeue.parent.write_text("no folder")
    assert exit_code(Interrupted("SIGUSR1")) == 130
    assert str(requeue.parent) in capsys.readouterr().err


@pytest.mark.parametrize(("environment", "number"), [
    ({}, 1), ({"SLURM_NTASKS": "4"}, 4), ({"WORLD_SIZE": "2"}, 2), ({"SLURM_NTASKS": "", "WORLD_SIZE": "x"}, 1),
])  # fmt: skip
def test_the_number_of_ranks_is_the_launchers(
    environment: dict[str, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_NTASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks() == number


RANK = """
import os, sys, threading, time
from cogalign import cli
from cogalign.training import requeue
requeue.LOOK_EVERY, requeue.LEAVE_AFTER = 0.1, 1.0 if sys.argv[1] == "stuck" else 60.0

def wait():
    print("ready", flush=True)
    while True:
        time.sleep(0.05)

def stuck():  # in a call that no signal ends, as a collective without partners
    import ctypes
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    print("ready", flush=True)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)

def collective():
    import torch.distributed as dist
    dist.init_process_group("gloo", rank=int(os.environ["SLURM_PROCID"]), world_size=2)
    dist.barrier()
    wait() if os.environ["SLURM_PROCID"] == "0" else (print("ready", flush=True), dist.barrier())

cli._dispatch = lambda arguments: globals()[arguments[0]]()
sys.exit(cli.main())
"""


def start(what: str, rank: int, requeue: Path, port: int = 0) -> subprocess.Popen[str]:
    """A rank that does something inside the command line's own frame, once it is ready."""
    environment = {**os.environ, VARIABLE: str(requeue), "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", RANK, what], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_rank_ends_the_other_in_good_order(tmp_path: Path, signalled: int) -> None:
    requeue = tmp_path / "job.requeue"
    processes = [start("wait", rank, requeue) for rank in (0, 1)]
    for process in processes:
        ready(process)
    processes[signalled].send_signal(signal.SIGUSR1)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("stopped (SIGUSR1)" in error for error in errors)
    assert requeue.is_file()


def test_a_rank_in_a_call_that_will_never_return_ends_too(tmp_path: Path) -> None:
    requeue = tmp_path / "job.requeue"
    with start("stuck", 0, requeue) as process:
        ready(process)
        time.sleep(0.3)
        assert process.poll() is None
        requeue.write_text("{}")
        assert process.wait(60) == 0


def test_a_rank_whose_collective_breaks_because_the_other_was_stopped_ends_in_good_order(tmp_path: Path) -> None:
    requeue = tmp_path / "job.requeue"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start("collective", rank, requeue, port) for rank in (0, 1)]
    for process in processes:
        ready(process)
    processes[0].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "another process was stopped" in errors[1] or "SIGUSR1" in errors[1]
    assert "Traceback" not in errors[1]
