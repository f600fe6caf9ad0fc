"""How fast is an import, against plain decoding of the same files?

Both read the same image and mask files in the same number of processes. Plain decoding opens each file with Pillow and
gives an array of its pixels; an import also checks, hashes, copies, and writes masks as PNG. The time of starting the
processes is part of both. Prints images (with their masks) per second and the ratio of import to plain decoding; on a busy machine look at the
ratio of processor time:

    python tests/benchmarks/import_speed.py [--card kvasir-seg] [--src ../shared/realdata/Kvasir-SEG] [--times 8]
        [--workers 2] [--repeat 3] [--json out.json]

`--times 8` puts eight copies of the folder's image and mask files in a new folder, under new names, so that starting
the processes does not count more than it does with a whole data set.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cogalign.data.cards.card import Card
from cogalign.data.cards.find import read_card
from cogalign.data.importers.base import Photograph
from cogalign.data.importers.importer import import_card, read_records
from cogalign.data.parallel import each


def pixels(files: tuple[Path, ...]) -> int:
    """Decode the files of one photograph; gives the number of values."""
    return sum(np.asarray(Image.open(path).convert("RGB")).size for path in files)


def cpu_seconds() -> float:
    """Processor time of this process and of those it started and waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def copies(card: Card, src: Path, folder: Path, times: int) -> None:
    """A folder with several copies of each image and mask, and the box file's entries for them."""
    root, records = read_records(card, src)
    found = [record for record in records if isinstance(record, Photograph)]
    used = {path for one in found for path in one.files}
    for number in range(times):
        for path in used:
            target = folder / path.relative_to(root).with_name(f"{path.stem}x{number}{path.suffix}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for path in root.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and not content.keys().isdisjoint(one.path.stem for one in found):
            more = {f"{stem}x{number}": entry for number in range(times) for stem, entry in content.items()}
            (folder / path.relative_to(root)).write_text(json.dumps(more), encoding="utf-8")


def measure(card: Card, src: Path, out: Path, workers: int) -> dict[str, float]:
    """Seconds of both, and the number of photographs."""
    files = [one.files for one in read_records(card, src)[1] if isinstance(one, Photograph)]
    start, busy = time.perf_counter(), cpu_seconds()
    decoded = sum(each(pixels, files, "plain decoding", workers))
    plain, plain_cpu = time.perf_counter() - start, cpu_seconds() - busy
    start, busy = time.perf_counter(), cpu_seconds()
    summary = import_card(card, src, out, workers=workers)
    imported, imported_cpu = time.perf_counter() - start, cpu_seconds() - busy
    if not decoded or summary.cases != len(files):
        raise RuntimeError(f"decoded {len(files)} photographs, imported {summary.cases}")
    return {"photographs": len(files), "plain": plain, "imported": imported,
            "plain_cpu": plain_cpu, "imported_cpu": imported_cpu}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="kvasir-seg")
    parser.add_argument("--src", type=Path, default=Path("../shared/realdata/Kvasir-SEG"))
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    card = read_card(arguments.card)
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        src = arguments.src
        if arguments.times > 1:
            src = Path(scratch) / "copies"
            copies(card, arguments.src, src, arguments.times)
        for number in range(arguments.repeat):
            out = Path(scratch) / f"out{number}"
            rounds.append(measure(card, src, out, arguments.workers))
            shutil.rmtree(out)
    best = {name: min(one[name] for one in rounds) for name in ("plain", "imported", "plain_cpu", "imported_cpu")}
    count = rounds[0]["photographs"]
    result = {
        "card": card.id,
        "photographs": count,
        "workers": arguments.workers,
        "plain_per_s": round(count / best["plain"], 1),
        "import_per_s": round(count / best["imported"], 1),
        "ratio": round(best["plain"] / best["imported"], 3),
        "ratio_of_processor_time": round(best["plain_cpu"] / best["imported_cpu"], 3),
        "processor_ms_each": [round(1000 * best[name] / count, 2) for name in ("plain_cpu", "imported_cpu")],
        "ratios": [round(one["plain"] / one["imported"], 3) for one in rounds],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
