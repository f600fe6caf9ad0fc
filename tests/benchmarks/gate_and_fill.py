"""What the quality gate and another fill do to the causal score: the quickstart in three arms, over several seeds.

    python tests/benchmarks/gate_and_fill.py OUT --seeds 1 2 3 [--fill texture]

Arms: the quickstart's own fill without a gate, the same with the gate, another fill with the gate. All arms of a seed
share data and SFT model. A gate changes the pairs of the audit too, so each aligned model is also asked about the pairs
of the first arm, which are the same for all, and about *true removals*: what the phantom's renderer draws without the
lesions, on which no fill has left a trace. Finished runs in OUT are not made again; `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogalign.counterfactual.quality.stage import grade
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set, write_metadata
from cogalign.data.phantom.render import render
from cogalign.data.phantom.spec import LesionSpec, PhantomSpec
from cogalign.pipeline import stage_digest
from cogalign.recipe import INTERVENTIONS
from cogalign.recipe_file import read_recipe
from cogalign.training.context import StageContext
from cogalign.training.stage_file import read_stage_file

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
SHARED = ("data", "sft")
OWN_FILL = "surround_blur"
JUDGED = ["--stages=[sft,counterfactual,grpo,evaluate,audit]", "--evaluate.models=[sft,aligned]",
          "--audit.models=[sft,aligned]"]  # fmt: skip
NO_GATE = [f"--counterfactual.quality.max_{name}=null" for name in
           ("residual_segmenter", "residual_classifier", "seam", "realism")]  # fmt: skip
RATES = ("removal_normal_rate", "control_keep_rate", "transplant_keep_rate", "background_flip_rate", "causal_score")


def gate_of(first: Path, folder: Path, seed: int) -> None:
    """The pairs of the first arm after the gate: it measures without rejecting, so nothing has to be made again."""
    if (folder / "counterfactual").exists():
        return
    share(first, folder, ("counterfactual",))
    recipe = read_recipe(RECIPE)
    recipe.seed, recipe.out, recipe.counterfactual.fill = seed, str(folder), OWN_FILL
    assert recipe.data.phantom is not None
    recipe.data.phantom.seed = seed + 2
    pairs = read_case_set(folder / "counterfactual")
    # As they were made: in the plan's order, without measures. So the features of the first arm are found again.
    order = [(case.file_name.split("-")[0], INTERVENTIONS.index(case.intervention)) for case in pairs.cases]  # type: ignore[arg-type]
    made = [
        replace(case, attributes={key: value for key, value in case.attributes.items() if key != "quality"})
        for _, case in sorted(zip(order, pairs.cases, strict=True), key=lambda pair: pair[0])
    ]
    context = StageContext(recipe, folder, "counterfactual")
    graded = grade(context, read_case_set(folder / "data"), CaseSet(pairs.root, made), recipe.counterfactual)
    kept = graded.accepted
    write_metadata(pairs.root, [case.to_row() for case in kept])
    record = read_stage_file(pairs.root)
    assert record is not None
    record.digest = stage_digest(recipe, "counterfactual")
    made, left = (Counter(case.intervention for case in cases) for cases in (pairs.cases, kept))
    record.metrics |= {"n": len(kept), "yield": {name: left[name] / made[name] for name in made}}
    record.write(pairs.root)


def arms(fill: str) -> dict[str, list[str]]:
    """Options of each arm, the one whose pairs all are asked about first."""
    own = f"--counterfactual.fill={OWN_FILL}"
    return {
        "surround_blur, no gate": [own, *NO_GATE],
        "surround_blur, gate": [own],
        f"{fill}, gate": [f"--counterfactual.fill={fill}"],
    }


def cogalign(command: str, folder: Path, seed: int, options: list[str]) -> None:
    """One command of the project on the quickstart."""
    seeds = [f"--seed={seed}", f"--data.phantom.seed={seed + 2}", f"--out={folder}"]
    subprocess.run([sys.executable, "-m", "cogalign", command, str(RECIPE), *seeds, *options], check=True)


def share(source: Path, target: Path, stages: tuple[str, ...]) -> None:
    """Copy stages of one run into another, if they are not there."""
    for stage in stages:
        if not (target / stage).exists():
            shutil.copytree(source / stage, target / stage, copy_function=os.link)


def true_removals(data: Path, pairs: Path, out: Path) -> None:
    """The removals of the split `test`, drawn by the renderer without the lesions instead of painted over."""
    if (out / "metadata.jsonl").is_file():
        return
    factual, made = read_case_set(data), read_case_set(pairs)
    with CaseSetWriter(out) as writer:
        for case in made.cases:
            if case.split != "test" or case.intervention != "removal":
                continue
            source = factual.by_id[str(case.counterfactual_of)]
            values = dict(source.attributes["spec"])
            values["lesions"] = tuple(LesionSpec(**lesion) for lesion in values["lesions"])
            with factual.image(source) as image:
                clean = render(replace(PhantomSpec(**values), lesions=()), image.width).image
            writer.add(_without_files(case), clean)
    shutil.copy(pairs / "stage.json", out / "stage.json")


def _without_files(case: Case) -> Case:
    return replace(case, mask_file_name=None, source_file_name=None, fill=None)


def ask(run: Path, pairs: Path, folder: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """The audit of a run's models on the pairs of another folder."""
    if not (folder / "audit/metrics.json").is_file():
        share(run, folder, ("data", "sft", "grpo"))
        if not (folder / "counterfactual").exists():
            shutil.copytree(pairs, folder / "counterfactual", copy_function=os.link)
        cogalign("audit", folder, seed, options)
    found: dict[str, Any] = json.loads((folder / "audit/metrics.json").read_text(encoding="utf-8"))["models"]
    return found


def run(out: Path, seed: int, fill: str, options: list[str]) -> dict[str, dict[str, Any]]:
    """All arms of one seed; what each says of its own pairs, of the first arm's and of true removals."""
    results: dict[str, dict[str, Any]] = {}
    first: Path | None = None
    for number, (name, own) in enumerate(arms(fill).items()):
        folder = out / f"seed-{seed}" / (f"arm-{number}" if number < 2 else f"arm-{fill}")
        if first is not None:
            share(first, folder, SHARED)
        if number == 1 and first is not None:
            gate_of(first, folder, seed)
        cogalign("run", folder, seed, [*own, *JUDGED, *options])
        first = first or folder
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]
        true_removals(first / "data", first / "counterfactual", out / f"seed-{seed}" / "true-removals")
        models = {
            "own pairs": summary["audit"]["metrics"]["models"],
            "common pairs": ask(folder, first / "counterfactual", folder / "common", seed, [*own, *JUDGED, *options]),
            "true removals": ask(
                folder, out / f"seed-{seed}" / "true-removals", folder / "true", seed, [*own, *JUDGED, *options]
            ),
        }
        results[name] = {
            "models": models,
            "accuracy": summary["evaluate"]["metrics"]["models"],
            "counterfactual": {
                key: summary["counterfactual"]["metrics"].get(key) for key in ("n", "yield", "rejected", "seconds")
            },
        }
    return results


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    columns = {
        "`test`": lambda r: r["accuracy"]["aligned"]["test"]["accuracy"],
        "`test_shifted`": lambda r: r["accuracy"]["aligned"]["test_shifted"]["accuracy"],
        **{f"{rate} (own)": _rate("own pairs", rate) for rate in ("removal_normal_rate", "causal_score")},
        **{f"{rate} (common)": _rate("common pairs", rate) for rate in RATES},
        "removal_normal_rate (true removals)": _rate("true removals", "removal_normal_rate"),
        "yield of removals": lambda r: r["counterfactual"]["yield"]["removal"],
    }
    seeds = list(results)
    lines = ["| | " + " | ".join(results[seeds[0]]) + " |", "|---" * (len(results[seeds[0]]) + 1) + "|"]
    for label, value in columns.items():
        cells = []
        for arm in results[seeds[0]]:
            values = [value(results[seed][arm]) for seed in seeds]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(pairs: str, name: str) -> Any:
    return lambda result: result["models"][pairs]["aligned"][name]


def main() -> None:
    """Command line; options that are not known here go to `cogalign run`."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--fill", default="texture", help="fill of the third arm")
    parser.add_argument("--table", action="store_true", help="only print the table of finished seeds")
    arguments, options = parser.parse_known_args()
    for seed in [] if arguments.table else arguments.seeds:
        found = run(arguments.out, seed, arguments.fill, options)
        (arguments.out / f"seed-{seed}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    files = {seed: arguments.out / f"seed-{seed}.json" for seed in arguments.seeds}
    print(table({seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in files.items()}))


if __name__ == "__main__":
    main()
