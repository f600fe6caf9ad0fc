"""What a measurement depends on: the machine, how fast it multiplies matrices, and how much memory was used."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

# Dense bfloat16 peak of the tensor cores with float32 accumulation, in 1e12 operations a second, by a pattern in the
# name that torch gives. Vendors' figures as published, not measured by us; a GPU that is not here has no utilisation.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bH200$", 989.5),
    (r"\bH100 80GB HBM3$", 989.5),
    (r"\bA100\b", 312.0),
    (r"\bA40$", 149.7),
    (r"\bA10$", 125.0),
    (r"\bL40S$", 362.0),
    (r"\bL4$", 121.0),
)
SIZES = {"cpu": 1536, "cuda": 8192}
"""Side of the square matrices whose product is timed."""


def peak_rate(name: str) -> float | None:
    """Dense bfloat16 peak of a GPU in operations a second; None for one that is not in the table, or a slice of one.

    Args:
        name: as `torch.cuda.get_device_name` gives it.
    """
    if re.search(r"\bMIG\b", name):
        return None
    return next((peak * 1e12 for pattern, peak in PEAKS if re.search(pattern, name)), None)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 15) -> float:
    """Operations a second that a product of two square matrices reaches on this machine, the best of `repeats`.

    Args:
        device: where.
        dtype: of the matrices.
        size: their side; None chooses one that keeps the device busy.
        repeats: products that are timed, after one that is not.
    """
    side = size or SIZES[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the rest of the machine, as plain values."""
    return {
        "device": device.type,
        "name": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


class PeakMemory:
    """The largest memory in use since it was made.

    On a GPU what torch had allocated at most, weights included; on a CPU the process's resident memory over that at the
    start (Linux only).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        self._may_reset = reset_resident_peak()
        self._start = resident()

    @property
    def kind(self) -> str:
        """What is measured, in words."""
        return "allocated on the GPU" if self.device.type == "cuda" else "resident, over the start"

    def read(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        now = resident()
        if self._start is None or now is None:
            return None
        if not self._may_reset and now["peak"] == self._start["peak"]:
            return None  # the peak may be older than the start
        return now["peak"] - self._start["now"]


def resident() -> dict[str, int] | None:
    """Bytes of resident memory of this process, `now` and at its `peak`; None on systems other than Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE))
    if len(found) != 2:
        return None
    return {"now": int(found["VmRSS"]) * 1024, "peak": int(found["VmHWM"]) * 1024}


def reset_resident_peak() -> bool:
    """Forget the peak so far; whether the system let us (proc(5), `clear_refs`)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
