"""Time of the duplicate search: `python tests/benchmarks/duplicate_search.py [--images 50000] [--side 64]`.

Drawn images (smooth noise of random detail), of which every 25th is a copy of another one in half size, with noise and
5 grey levels brighter. The same for capsule-like frames: such images with less contrast under one octagon, in light that
falls off to the corners, of which every 25th is a copy that was cropped by 3 %. And for nearly equal dark frames. Prints
seconds of the processor, the pairs that were planted and found, and how many others were joined.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Callable

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


def capsule_frame(generator: np.random.Generator, side: int) -> np.ndarray:
    """A drawn image with 0.2 to 0.7 of its contrast in the light and the octagon of a capsule."""
    axis = (np.arange(side) * 2 + 1) / side - 1
    x, y = np.meshgrid(axis, axis)
    tissue = (picture(generator, side).astype(np.float32) - 122) * generator.uniform(0.2, 0.7) + (150, 100, 70)
    tissue *= (1 - 0.45 * (x * x + y * y))[..., None]
    tissue[np.abs(x) + np.abs(y) > 1.42] = 0
    return tissue.clip(0, 255).astype(np.uint8)


def cropped(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The image without 3 % on each side, with noise."""
    less = round(len(image) * 0.03)
    part = image[less:-less, less:-less].astype(np.float32)
    return (part + generator.normal(0, 2, part.shape)).clip(0, 255).astype(np.uint8)


Draw = Callable[[np.random.Generator, int], np.ndarray]
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def planted(number: int, side: int, draw: Draw, change: Change) -> tuple[list[Fingerprint], list[tuple[int, int]]]:
    """Fingerprints, and the pairs (first, copy) among them."""
    generator = np.random.default_rng(0)
    prints: list[Fingerprint] = []
    pairs = []
    kept: list[tuple[int, np.ndarray]] = []
    for index in range(number):
        if index % PLANT_EVERY == PLANT_EVERY - 1:
            first, image = kept[int(generator.integers(len(kept)))]
            pairs.append((first, index))
            prints.append(fingerprint(change(image, generator)))
            continue
        image = draw(generator, side)
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
    for name in ("drawn images", "capsule frames", "dark frames"):
        if name == "drawn images":
            prints, pairs = planted(options.images, options.side, picture, variant)
        elif name == "capsule frames":
            prints, pairs = planted(options.images, options.side, capsule_frame, cropped)
        else:
            prints, pairs = dark_frames(options.images), []
        start = time.process_time()
        firsts = near_duplicates(prints)
        seconds = time.process_time() - start
        found = sum(firsts[one] == firsts[two] for one, two in pairs)
        repeated = len(prints) - len(set(firsts))
        print(f"{name}: near_duplicates of {len(prints)} in {seconds:.1f} s; {repeated} repeat another one", flush=True)
        if pairs:
            largest = max(Counter(firsts).values())
            print(f"  photographs {len(set(firsts))}, wanted {len(prints) - len(pairs)}; most images of one {largest}")
            print(f"  planted {len(pairs)}, found {found} (recall {found / len(pairs):.4f})")
        start = time.process_time()
        pairs_found = neighbours(prints, 10, 12.0)
        print(f"  neighbours(10 bits, 12 grey levels): {len(pairs_found)} pairs in {time.process_time() - start:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, fingerprints included")


if __name__ == "__main__":
    main()
