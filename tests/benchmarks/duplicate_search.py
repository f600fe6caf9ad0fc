"""Time of the duplicate search: `python tests/benchmarks/duplicate_search.py [--images 50000] [--side 64]`.

Drawn images (smooth noise of random detail), of which every 25th is a copy of another one in half size, with noise and
5 grey levels brighter. Prints seconds, the pairs that were planted and found, and the same for nearly equal dark frames.
"""

from __future__ import annotations

import argparse
import resource
import time

import cv2
import numpy as np

from cogalign.data.duplicates import near_duplicates, neighbours
from cogalign.data.images import Fingerprint, fingerprint

PLANT_EVERY = 25


def picture(generator: np.random.Generator, side: int) -> np.ndarray:
    """A drawn image (side, side, 3)."""
    cells = int(generator.integers(4, 12))
    noise = generator.random((cells, cells, 3), dtype=np.float32)
    smooth = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return (smooth.clip(0, 1) * 245).astype(np.uint8)


def variant(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The image in half size, with noise and a little brighter."""
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.float32)
    return (small + generator.normal(5, 3, small.shape)).clip(0, 255).astype(np.uint8)


def planted(number: int, side: int) -> tuple[list[Fingerprint], list[tuple[int, int]]]:
    """Fingerprints, and the pairs (first, copy) among them."""
    generator = np.random.default_rng(0)
    prints: list[Fingerprint] = []
    pairs = []
    kept: list[tuple[int, np.ndarray]] = []
    for index in range(number):
        if index % PLANT_EVERY == PLANT_EVERY - 1:
            first, image = kept[int(generator.integers(len(kept)))]
            pairs.append((first, index))
            prints.append(fingerprint(variant(image, generator)))
            continue
        image = picture(generator, side)
        kept = [*kept[-200:], (index, image)]
        prints.append(fingerprint(image))
    return prints, pairs


def dark_frames(number: int) -> list[Fingerprint]:
    """Fingerprints of nearly equal dark frames: half with the same pixels, half with noise of their own."""
    generator = np.random.default_rng(1)
    dark = picture(generator, 64).astype(np.float32) * 0.2
    equal = fingerprint(dark.astype(np.uint8))
    noisy = [fingerprint((dark + generator.random(dark.shape)).astype(np.uint8)) for _ in range(number // 2)]
    return [equal] * (number - len(noisy)) + noisy


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    for name in ("drawn images", "dark frames"):
        prints, pairs = planted(options.images, options.side) if name == "drawn images" else (
            dark_frames(options.images), [])  # fmt: skip
        start = time.perf_counter()
        firsts = near_duplicates(prints)
        seconds = time.perf_counter() - start
        found = sum(firsts[one] == firsts[two] for one, two in pairs)
        repeated = len(prints) - len(set(firsts))
        print(f"{name}: near_duplicates of {len(prints)} in {seconds:.1f} s; {repeated} repeat another one", flush=True)
        if pairs:
            print(f"  planted {len(pairs)}, found {found} (recall {found / len(pairs):.4f})")
        start = time.perf_counter()
        pairs_found = neighbours(prints, 10, 12.0)
        print(f"  neighbours(10 bits, 12 grey levels): {len(pairs_found)} pairs in {time.perf_counter() - start:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, fingerprints included")


if __name__ == "__main__":
    main()
