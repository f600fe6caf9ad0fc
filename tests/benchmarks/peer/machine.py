"""What a measurement depends on: versions, the machine, its load, and how fast one of its cores multiplies."""

from __future__ import annotations

import datetime
import os
import platform
import time
from importlib.metadata import version
from typing import Any

import torch

from cogalign.training.hardware import device_name

PACKAGES = ("torch", "transformers", "peft", "trl", "lightning", "accelerate")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, date and load average."""
    return {
        "cpu": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": threads,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def matmul_rate(threads: int, size: int = 1536, repeats: int = 5) -> float:
    """Float32 operations a CPU second that a square product of matrices reaches (best of `repeats`)."""
    torch.set_num_threads(threads)
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(a, b)
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds)
