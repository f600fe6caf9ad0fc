"""Images of the phantom a second and core: `python tests/benchmarks/phantom_speed.py [IMAGES] [SIDE]`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from cogalign.data.phantom import write_phantom
from cogalign.data.phantom.render import render
from cogalign.data.phantom.spec import draw_spec
from cogalign.recipe import PhantomSettings


def main(images: int = 500, side: int = 128) -> None:
    """Time rendering alone, and writing a whole case set, in processor seconds of this process."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    specs = [draw_spec(rng, 0.95) for _ in range(images)]
    render(specs[0], side)
    start = time.process_time()
    for spec in specs:
        render(spec, side)
    print(f"render: {images / (time.process_time() - start):.0f} images a second and core ({side} x {side})")
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        write_phantom(PhantomSettings(train=images, validation=0, test=0, size=side), Path(folder))
        print(f"case set on disk: {images / (time.process_time() - start):.0f} images a second and core")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
