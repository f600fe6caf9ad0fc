import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cogalign.training import hardware
from cogalign.training.hardware import machine, matmul_rate, peak_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_a_gpu_has_its_own_peak(name: str, tera: float) -> None:
    assert peak_rate(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA H200 NVL",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla T4",
        "NVIDIA GB10",
    ],
)
def test_no_peak_is_guessed(name: str) -> None:
    assert peak_rate(name) is None


def test_the_rate_is_that_of_the_fastest_product_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 1.0, 1.5, 2.0, 2.25])  # three products: 0.1 s, which is not counted, 0.5 s, 0.25 s
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert matmul_rate(CPU, torch.float32, size=8, repeats=2) == 2 * 8**3 / 0.25


PEAK = """
import torch
from cogalign.training.hardware import PeakMemory
torch.ones(2**20)
memory = PeakMemory(torch.device("cpu"))
held = torch.ones(2**24)  # 64 MiB
del held
print(memory.read(), PeakMemory(torch.device("cpu")).read())
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read on Linux only")
def test_peak_memory_is_what_came_on_top_even_if_it_is_gone() -> None:
    # in a process of its own: what other tests left behind would be used again before more is taken
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    found, later = map(int, done.stdout.split())
    assert 56 * 2**20 < found < 200 * 2**20 and later < 32 * 2**20


def test_the_machine_has_a_name() -> None:
    found = machine(CPU)
    assert found["device"] == "cpu" and found["name"] and found["threads"] == torch.get_num_threads()
