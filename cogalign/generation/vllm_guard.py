"""Keeps a server from outliving the run: `python vllm_guard.py PARENT_PID COMMAND ...`.

A process of its own between the run and the server, because a run that is killed cannot clean up after itself. It
imports nothing but the standard library, and leads the process group in which the server and its workers live.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

POLL = 0.25
"""Seconds between two looks at parent and server."""
GRACE = 5.0
"""Seconds that the server may take to end by itself before it is killed."""


def guard(parent: int, command: list[str]) -> None:
    """Run `command` until it ends, the process `parent` is gone, or SIGTERM comes; then end the whole group."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked.append(received))
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while server.poll() is None and not asked and os.getppid() == parent:
        time.sleep(POLL)
    if server.poll() is not None:
        print(f"[guard] the server ended with exit code {server.returncode}", flush=True)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL)
    os.killpg(0, signal.SIGKILL)  # what is left of the group, this process with it


if __name__ == "__main__":
    if os.getpgrp() != os.getpid():
        sys.exit("vllm_guard.py ends its whole process group, so it has to be started as the leader of a new one")
    guard(int(sys.argv[1]), sys.argv[2:])
