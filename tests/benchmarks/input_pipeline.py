"""How fast images come to SFT, and how much memory that takes: with the pixel cache, without, and plainly.

`python tests/benchmarks/input_pipeline.py` gives images a second in the first and in later epochs for two processors
and several numbers of workers; `--memory` follows the memory of the loader's processes over many epochs.

"Plain" is what a trainer does that knows no cache: a list of cases in every worker, and each image decoded and processed
whenever it comes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from peer.machine import machine, versions
from peer.tiny_qwen3vl import TinyConfig, synthetic_image
from peer.tiny_qwen3vl import build_processor as small_qwen3_vl
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set
from cogalign.data.collator import SftCollator
from cogalign.data.datamodule import CaseDataset, SftData
from cogalign.data.sampler import StepSampler
from cogalign.models.pixel_cache import with_pixel_cache
from cogalign.models.tiny import packaged_base

MIB = 2**20
ANSWER = "1. Location & Imaging Environment\nStomach, white light.\nThe diagnosis result is polyp. " * 12


class Counting:
    """An image processor that counts its images over all processes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.images = multiprocessing.Value("q", 0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        with self.images.get_lock():
            self.images.value += len(images)
        return self.inner(images, **options)


class PlainDataset(Dataset[tuple[Case, Image.Image]]):
    """A list of cases, and an image decoded for each item."""

    def __init__(self, case_set: CaseSet, cases: Sequence[Case]) -> None:
        self.case_set, self.cases = case_set, list(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Case, Image.Image]:
        return self.cases[index], self.case_set.image(self.cases[index])


def write_images(folder: Path, count: int, side: int) -> None:
    """A case set of `count` smooth pictures of `side` x `side` pixels with reports."""
    patches = TinyConfig(image_tokens=(side // 32) ** 2)
    with CaseSetWriter(folder) as writer:
        for number in range(count):
            case = Case(f"c{number}", f"images/c{number}.png", ("polyp",), "train", answer=ANSWER,
                        keywords={"location": ["stomach"]}, attributes={"number": number})  # fmt: skip
            writer.add(case, np.asarray(synthetic_image(patches, number)))


def open_processor(name: str) -> Any:
    """`tiny` (64 visual tokens) or `qwen3-vl` (256, patches of 16 pixels as in the released models)."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(packaged_base()) if name == "tiny" else small_qwen3_vl(TinyConfig())
    processor.image_processor = Counting(processor.image_processor)
    return processor


def loader_of(
    kind: str, case_set: CaseSet, processor: Any, run: Path, options: argparse.Namespace, workers: int
) -> Any:
    """Batches of all epochs: `cache`, `no cache` (ours, without) or `plain`."""
    cases = case_set.split("train")
    batches = options.epochs * len(cases) // options.batch
    if kind == "plain":
        sampler = StepSampler(len(cases), options.batch, batches, 0)
        collate = SftCollator(processor, "What?", 4096)
        return DataLoader(PlainDataset(case_set, cases), batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    gigabytes = options.cache_gb if kind == "cache" else None
    collate = SftCollator(with_pixel_cache(processor, run, gigabytes), "What?", 4096)
    processor.image_processor.images.value = 0  # not those of the comparison beforehand
    return SftData(
        CaseDataset(CaseSet(case_set.root, []), cases), None, collate, options.batch, batches, 0, workers
    ).train_dataloader()


def memory_of(pid: int | str) -> dict[str, float]:
    """MiB of a process: `rss`, and `own` (pages that no other process has)."""
    values: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        values[name.rstrip(":")] = int(size)
    return {"rss": values["Rss"] / 1024, "own": (values["Private_Clean"] + values["Private_Dirty"]) / 1024}


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds of some processes so far."""
    ticks = 0
    for pid in pids:
        ticks += sum(int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def slope(values: Sequence[float]) -> float:
    """Growth of a value an epoch: least squares over the second half of the epochs."""
    later = np.asarray(values[len(values) // 2 :])
    return float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else float("nan")


def measure(kind: str, name: str, workers: int, case_set: CaseSet, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second, calls of the processor and memory, epoch by epoch."""
    run = Path(tempfile.mkdtemp(prefix="cogalign-cache-"))
    processor = open_processor(name)
    loader = loader_of(kind, case_set, processor, run, options, workers)
    images = len(case_set.split("train"))
    an_epoch = images // options.batch
    seconds: list[float] = []
    cpu: list[float] = []
    before = cpu_seconds([os.getpid()])
    memory: list[dict[str, float]] = []
    start = time.perf_counter()
    for number, batch in enumerate(loader, start=1):
        del batch
        if number % an_epoch == 0:
            seconds.append(time.perf_counter() - start)
            pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
            cpu.append(cpu_seconds(pids) - before)
            each = [memory_of(pid) for pid in pids]
            memory.append({"main": each[0]["own"], "workers": sum(one["own"] for one in each[1:]),
                           "main_rss": each[0]["rss"], "workers_rss": sum(one["rss"] for one in each[1:])})  # fmt: skip
            start, before = time.perf_counter(), cpu_seconds(pids)
    cache = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    shutil.rmtree(run)
    used = an_epoch * options.batch
    return {
        "kind": kind, "processor": name, "workers": workers, "images": images,
        "images_per_second": [round(used / one, 1) for one in seconds],
        "cpu_ms_per_image": [round(1000 * one / used, 2) for one in cpu],
        "processed_per_image": round(processor.image_processor.images.value / images, 3),
        "cache_mb": round(cache / 1e6, 1), "memory_mib": memory,
        "growth_mib_per_epoch": {key: round(slope([row[key] for row in memory]), 3) for key in memory[0]},
    }  # fmt: skip


def show(row: dict[str, Any], memory: bool) -> str:
    """One line of the table."""
    rates, cpu = row["images_per_second"], row["cpu_ms_per_image"]
    text = f"| {row['processor']} | {row['workers']} | {row['kind']} | {rates[0]} | {np.median(rates[1:]):.1f} | "
    text += f"{cpu[0]} | {np.median(cpu[1:]):.2f} | "
    text += f"{row['processed_per_image']} | {row['cache_mb']} |"
    if memory:
        first, last, growth = row["memory_mib"][0], row["memory_mib"][-1], row["growth_mib_per_epoch"]
        text += "".join(f" {first[key]:.1f} → {last[key]:.1f} ({growth[key]:+.3f}) |" for key in first)
    return text


def main() -> None:
    """Measure, print a table, and write the figures if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--side", type=int, default=640, help="pixels of a source image's side, a multiple of 32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--processors", nargs="+", default=["tiny", "qwen3-vl"], choices=["tiny", "qwen3-vl"])
    parser.add_argument("--kinds", nargs="+", default=["plain", "no cache", "cache"])
    parser.add_argument("--cache-gb", type=float, default=4.0)
    parser.add_argument("--memory", action="store_true", help="show the processes' memory over the epochs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes.*")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images, options.side)
        case_set = read_case_set(folder)
        print(
            "| processor | workers | loader | images/s, epoch 1 | later | CPU ms an image, epoch 1 | later "
            "| processed per image | cache, MB |"
        )
        for name in options.processors:
            for workers in options.workers:
                for kind in options.kinds:
                    rows.append(measure(kind, name, workers, case_set, options))
                    print(show(rows[-1], options.memory), flush=True)
    if options.json:
        found = {"machine": machine(1), "versions": versions(), "options": vars(options) | {"json": None}, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
