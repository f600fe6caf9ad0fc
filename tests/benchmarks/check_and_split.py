"""How long check and split take: `python tests/benchmarks/check_and_split.py [--n 10000] [--side 512] [--workers 2]`.

Makes a case set of JPEG images (smooth colours, texture and noise, so that a file is about as large as a photograph's): a
third stand alone, a third are pairs (a copy at another quality), a third are videos of twenty frames. Times each from a cold start,
in a process of its own: check; split after check (fingerprints are known); split alone (they are not).
Goal: check and split of 10,000 cases in under 60 s on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from cogalign.data.case import Case
from cogalign.data.caseset import write_metadata
from cogalign.data.parallel import each

FINDINGS = ("polyp", "erosion", "ulcer", "normal", "angiectasia", "bleeding")
FRAMES = 20


@cache
def texture(side: int) -> np.ndarray:
    """Fine structure and noise, the same in all pictures but shifted (side, side, 3; float32)."""
    rng = np.random.default_rng(0)
    total = rng.normal(0, 3, (side, side, 3)).astype(np.float32)
    for cells, strength in ((32, 40), (96, 25)):
        field = rng.random((cells, cells, 3), dtype=np.float32) - 0.5
        total += strength * cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC)
    return total


def picture(seed: int, side: int) -> np.ndarray:
    """A picture with the frequencies of a photograph (side, side, 3; uint8): colour fields of its own and texture."""
    rng = np.random.default_rng(seed)
    field = 40 + 180 * rng.random((6, 6, 3), dtype=np.float32)
    shift = tuple(int(step) for step in rng.integers(0, side, 2))
    smooth = cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)
    return cv2.add(smooth, np.roll(texture(side), shift, (0, 1)), dtype=cv2.CV_8U)


def write(item: tuple[Path, int, int]) -> int:
    """Write one image; how many bytes it has."""
    path, seed, side = item
    quality = 90
    if seed < 0:
        seed, quality = -seed, 70
    cv2.imwrite(str(path), picture(seed, side), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path.stat().st_size


def make(root: Path, n: int, side: int, workers: int) -> float:
    """A case set of n cases; the mean size of a file in bytes."""
    (root / "images").mkdir(parents=True)
    cases, items = [], []
    for number in range(n):
        kind = number // FRAMES % 3
        seed = 1 + number if kind != 1 or number % 2 == 0 else -number  # the second of a pair repeats the first
        group = f"video-{number // FRAMES}" if kind == 2 else ""
        finding = FINDINGS[(number // FRAMES * 7 + (number % 3 if kind != 2 else 0)) % len(FINDINGS)]
        name = f"images/{number:05d}.jpg"
        cases.append(Case(f"c{number:05d}", name, (finding,), "train", group=group, dataset=f"set {number % 2}"))
        items.append((root / name, seed, side))
    sizes = list(each(write, items, "make", workers))
    write_metadata(root, [case.to_row() for case in cases])
    return float(np.mean(sizes))


def timed(code: str) -> tuple[float, float]:
    """Seconds that a command of Python takes in a process of its own, its start included: on the wall, and of the CPUs."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="cases")
    parser.add_argument("--side", type=int, default=512, help="pixels a side")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    found = parser.parse_args()
    root = Path(tempfile.mkdtemp()) / "set"
    try:
        size = make(root, found.n, found.side, found.workers)
        print(f"{found.n} cases of {found.side} x {found.side}, {size / 1024:.0f} KiB a file, {found.workers} workers")
        check = (
            "from cogalign.data.check import check_case_set\n"
            f"found = check_case_set({str(root)!r}, {found.workers})\nprint(len(found), 'problems')\n"
        )
        split = (
            "from cogalign.data.splits import split_case_set\n"
            f"print('\\n'.join(split_case_set({str(root)!r}, workers={found.workers}).lines()))\n"
        )
        (checked, check_cpu), (after, after_cpu) = timed(check), timed(split)
        (root / "fingerprints.npz").unlink()
        alone, alone_cpu = timed(split)
        print(
            f"check {checked:.1f} s, split after it {after:.1f} s, together {checked + after:.1f} s (goal: under 60 s)"
        )
        print(f"split alone, without known fingerprints: {alone:.1f} s")
        print(f"seconds of CPU: check {check_cpu:.1f}, split after it {after_cpu:.1f}, split alone {alone_cpu:.1f}")
    finally:
        shutil.rmtree(root.parent)


if __name__ == "__main__":
    main()
