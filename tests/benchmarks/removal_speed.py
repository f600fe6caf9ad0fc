"""Removal by gaussian blur at 512 x 512, end to end: `python tests/benchmarks/removal_speed.py [--n 10000]`.

Both sides read the same JPEG images and PNG masks and write the same three files a case: the edited image and the
touched pixels as PNG, and a copy of the source.

- plain: one process, an OpenCV loop: imread, imread of the mask, the same feathered alpha, GaussianBlur of the whole
  image with the same sigma, composite, imwrite with default settings.
- cogalign: the stage `counterfactual` with `interventions: [removal]`, `quality.enabled: false`, `workers: 2`; the time
  is that of the whole stage, with planning and the case set's metadata.

Half of the plain loop runs before the stage and half after it, so that a machine that slows down hits both. While the
stage runs, the memory of its processes (proportional set size, so that shared pages count once) is noted at every
1,000 cases. Images are photographs of `COGALIGN_REALDATA` where they are, else phantoms; the cases are hard links of
few distinct files. Needs about 0.5 MB of disk for a case.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cogalign.cognition.report import render as render_report
from cogalign.cognition.templates import template_report
from cogalign.counterfactual.masks import area_problem, feathered_alpha, lesion_radius
from cogalign.counterfactual.stage import run
from cogalign.data.case import Case
from cogalign.data.caseset import write_metadata
from cogalign.recipe import DataSettings, Recipe
from cogalign.training.context import StageContext

SIDE = 512
DISTINCT = 60
"""Different images; the rest are hard links of them."""
EVERY = 1000
"""Cases between two looks at the memory."""


def _read(path: Path, how: int) -> np.ndarray:
    image = cv2.imread(str(path), how)
    if image is None:
        raise ValueError(f"{path}: cannot be read as an image")
    return image


def pictures() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (512 x 512 x 3, BGR) and masks (512 x 512, 0 or 255): photographs, or phantoms without them."""
    folder = (
        Path(os.environ.get("COGALIGN_REALDATA") or Path(__file__).parents[3] / "shared" / "realdata") / "Kvasir-SEG"
    )
    for path in sorted((folder / "images").glob("*.jpg")):
        image, mask = _read(path, cv2.IMREAD_COLOR), _read(folder / "masks" / path.name, cv2.IMREAD_GRAYSCALE)
        mask = cv2.resize((mask > 127).astype(np.uint8) * 255, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        if area_problem(mask > 0, 0.01, 0.3) is None:
            yield cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), mask
    if folder.is_dir():
        return
    from cogalign.data.phantom.render import render
    from cogalign.data.phantom.spec import draw_spec

    rng = np.random.default_rng(0)
    while True:
        rendered = render(draw_spec(rng, 0.5), SIDE)
        if rendered.mask.any():
            yield rendered.image[..., ::-1], rendered.mask.astype(np.uint8) * 255


def make_data(folder: Path, n: int) -> list[Case]:
    """A case set of `n` polyps in `folder`, of hard links."""
    answer = render_report(template_report(("polyp",), "colon"))
    first: list[Case] = []
    cases: list[Case] = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (image, mask) in zip(range(min(n, DISTINCT)), pictures(), strict=False):
        first.append(_case(number, answer))
        cv2.imwrite(str(folder / first[-1].file_name), image, (cv2.IMWRITE_JPEG_QUALITY, 92))
        cv2.imwrite(str(folder / str(first[-1].mask_file_name)), mask)
    for number in range(n):
        case = _case(number, answer)
        if number >= len(first):
            source = first[number % len(first)]
            os.link(folder / source.file_name, folder / case.file_name)
            os.link(folder / str(source.mask_file_name), folder / str(case.mask_file_name))
        cases.append(case)
    write_metadata(folder, [case.to_row() for case in cases])
    return cases


def _case(number: int, answer: str) -> Case:
    name = f"case-{number:06d}"
    return Case(
        name, f"images/{name}.jpg", ("polyp",), "train", "colon", mask_file_name=f"masks/{name}.png", answer=answer
    )


def plain(data: Path, cases: Sequence[Case], out: Path, settings: Any) -> float:
    """The OpenCV loop; returns seconds."""
    for name in ("images", "masks", "sources"):
        (out / name).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for case in cases:
        image = _read(data / case.file_name, cv2.IMREAD_COLOR)
        mask = _read(data / str(case.mask_file_name), cv2.IMREAD_GRAYSCALE) > 127
        radius = lesion_radius(mask)
        alpha = feathered_alpha(mask, settings.dilate * radius, settings.feather * radius)[..., None]
        blurred = cv2.GaussianBlur(image, (0, 0), settings.sigma * radius)
        mixed = image * (1 - alpha) + blurred * alpha
        cv2.imwrite(str(out / "images" / f"{case.id}.png"), np.rint(mixed).astype(np.uint8))
        cv2.imwrite(str(out / "masks" / f"{case.id}.png"), (alpha[..., 0] > 0).astype(np.uint8) * 255)
        shutil.copyfile(data / case.file_name, out / "sources" / f"{case.id}.jpg")
    return time.perf_counter() - start


class Memory(threading.Thread):
    """Notes the memory of this process and its children whenever `EVERY` more cases are written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.noted: list[dict[str, float]] = []
        self.done = threading.Event()

    def run(self) -> None:
        """Look once a second."""
        while not self.done.wait(1.0):
            written = sum(path.read_bytes().count(b"\n") for path in self.folder.glob("parts-*/rank-*.jsonl"))
            last = self.noted[-1]["cases"] if self.noted else -EVERY
            if written and written // EVERY > last // EVERY:
                self.noted.append({"cases": written, "mib": round(proportional(os.getpid()) / 1024, 1)})


def proportional(process: int) -> int:
    """Proportional set size of a process and its descendants in KiB; 0 for one that has just ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        own = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        children = " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children"))
    except (OSError, StopIteration):
        return 0
    return own + sum(proportional(int(child)) for child in children.split())


def stage(data: Path, out: Path, workers: int) -> tuple[dict[str, Any], float, list[dict[str, float]]]:
    """The project's way: the stage's metrics, its seconds, and the memory on the way."""
    recipe = Recipe(out=str(out), data=DataSettings(case_set=str(data)))
    settings = recipe.counterfactual
    settings.splits, settings.interventions, settings.fill = ["train"], ["removal"], "gaussian_blur"
    settings.quality.enabled, settings.workers, settings.max_area = False, workers, 0.9
    recipe.trainer.accelerator = "cpu"
    watch = Memory(out / "counterfactual")
    watch.start()
    start = time.perf_counter()
    metrics = run(StageContext(recipe, out, "counterfactual"))
    seconds = time.perf_counter() - start
    watch.done.set()
    watch.join()
    return metrics, seconds, watch.noted


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--plain", type=int, default=1000, help="cases of the plain loop (at most n)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files go (and stay); default: a temporary folder")
    chosen = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        cases = make_data(folder / "data", chosen.n)
        few = cases[: min(chosen.plain, chosen.n)]
        half = math.ceil(len(few) / 2)
        settings = Recipe().counterfactual
        plain(folder / "data", few[:8], folder / "plain", settings)  # warm-up
        before = plain(folder / "data", few[:half], folder / "plain", settings)
        metrics, seconds, memory = stage(folder / "data", folder / "run", chosen.workers)
        after = plain(folder / "data", few[half:], folder / "plain", settings)
    rate, plain_rate = metrics["n"] / seconds, len(few) / (before + after)
    result = {
        "cases": metrics["n"],
        "workers": chosen.workers,
        "cogalign_per_second": round(rate, 1),
        "making_alone_per_second": metrics["per_second"],
        "plain_per_second": round(plain_rate, 1),
        "ratio": round(rate / plain_rate, 2),
        "plain_seconds": [round(before, 1), round(after, 1)],
        "memory": memory,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
