"""The README's results table: quickstart and quickstart-paper over several seeds, mean and standard deviation.

    python tests/benchmarks/quickstart_seeds.py OUT --seeds 1 2 3

Both recipes share data, SFT model and counterfactuals of a seed, so their difference is GRPO's mix
alone. Finished runs in OUT are not made again; `--table` only prints what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("quickstart", "quickstart-paper")
SHARED = ("data", "sft", "counterfactual")
COLUMNS = {
    "`test`": "evaluate.{}.test.accuracy",
    "`test_shifted`": "evaluate.{}.test_shifted.accuracy",
    "removal → normal": "audit.{}.removal_normal_rate",
    "control kept": "audit.{}.control_keep_rate",
    "transplant kept": "audit.{}.transplant_keep_rate",
    "background flips": "audit.{}.background_flip_rate",
    "causal score": "audit.{}.causal_score",
}


def run(out: Path, seed: int, options: list[str]) -> None:
    """Both recipes with one seed; the second takes over what the first made."""
    for recipe in RECIPES:
        folder = out / f"seed-{seed}" / recipe
        first = out / f"seed-{seed}" / RECIPES[0]
        if recipe != RECIPES[0] and not folder.exists():
            for stage in SHARED:
                shutil.copytree(first / stage, folder / stage)
        command = [sys.executable, "-m", "cogalign", "run", str(ROOT / "recipes" / f"{recipe}.yaml")]
        seeds = [f"--seed={seed}", f"--data.phantom.seed={seed + 2}", f"--out={folder}"]
        subprocess.run([*command, *seeds, *options], check=True)


def value(folder: Path, path: str) -> float:
    """A metric of a run by `stage.model.name`, or `stage.model.split.name`."""
    stage, model, *names = path.split(".")
    found: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"][stage]["metrics"]
    for name in ("models", model, *names):
        found = found[name]
    return float(found)


def table(out: Path, seeds: list[int]) -> str:
    """The table in Markdown."""
    rows = [("after SFT", RECIPES[0], "sft"), ("+ GRPO, removal only (`quickstart-paper`)", RECIPES[1], "aligned")]
    rows.append(("+ GRPO, removal, transplant, control (`quickstart`)", RECIPES[0], "aligned"))
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for label, recipe, model in rows:
        cells = []
        for path in COLUMNS.values():
            values = [value(out / f"seed-{seed}" / recipe, path.format(model)) for seed in seeds]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line; options that are not known here go to `cogalign run`."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments, options = parser.parse_known_args()
    if not arguments.table:
        for seed in arguments.seeds:
            run(arguments.out, seed, options)
    print(table(arguments.out, arguments.seeds))


if __name__ == "__main__":
    main()
