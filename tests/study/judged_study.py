"""A study's folder with real files: painted case sets, and predictions judged from what rules say of each image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cogalign.cognition.report import render
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter
from cogalign.evaluation.audit_sets import kind_in
from cogalign.evaluation.predict import frame_of, judge
from cogalign.evaluation.storage import write_frame
from cogalign.generation.hf import Completion
from cogalign.training.stage_file import StageFile
from tests.evaluation.conftest import case_of, paint, report_of

POLYP, NORMAL = ("polyp",), ("normal",)
SEEDS = (1, 2)
ARMS: dict[str, dict[str, Any]] = {
    "sft": {"title": "SFT", "trains": "sft"},
    "longer": {"title": "SFT longer", "trains": "sft", "after": "sft"},
    "ours": {"title": "GRPO <ours>", "trains": "grpo", "after": "sft"},
}
STEPS = {"sft": 60, "longer": 40, "ours": 40}
POLYPS = [f"p{number:02d}" for number in range(10)]


def _add(writer: CaseSetWriter, case: Case, number: int) -> Case:
    pixels, mask = paint(case.findings, "normal", seed=number)
    writer.add(case, pixels, mask if case.mask_file_name else None)
    return case


def write_cases(out: Path) -> tuple[list[Case], dict[str | None, list[Case]]]:
    """The shared case set (20 cases of `test`, 12 of `cross_source`) and the pairs of ten polyps: those of the study and of a set."""
    with CaseSetWriter(out / "shared" / "data") as writer:
        cases = [_add(writer, case_of(name, POLYP, dataset="A"), place) for place, name in enumerate(POLYPS)]
        cases += [_add(writer, case_of(f"n{place:02d}", NORMAL), 50 + place) for place in range(10)]
        for place in range(12):
            finding = POLYP if place < 8 else NORMAL
            cases.append(_add(writer, case_of(f"x{place:02d}", finding, split="cross_source"), 100 + place))
    kinds = {None: ("removal", "control", "transplant", "background"), "unseen_fill": ("removal", "control")}
    pairs: dict[str | None, list[Case]] = {}
    for name, wanted in kinds.items():
        folder = out / "shared" if name is None else out / "sets" / name
        with CaseSetWriter(folder / "counterfactual") as writer:
            pairs[name] = [
                _add(writer, case_of(f"{source}-{kind}", NORMAL if kind == "removal" else POLYP, counterfactual_of=source,
                                     intervention=kind, mask_file_name=None), len(pairs) * 200 + place)
                for place, source in enumerate(POLYPS) for kind in wanted
            ]  # fmt: skip
    return cases, pairs


def says(arm: str, seed: int, kind: str, case: Case) -> Sequence[str]:
    """What an arm says: SFT and longer read the background, ours the lesion but for some images."""
    place = int(case.id[1:3])
    wrong = NORMAL if case.findings == POLYP else POLYP
    if arm != "ours":
        half_seen = case.split == "cross_source" and case.findings == POLYP and place % 2 == 0
        fooled = kind in ("removal", "transplant", "unseen_fill/removal", "background_blur") or half_seen
        return wrong if fooled or (kind == "factual" and case.id == "n09") else case.findings
    if kind == "unseen_fill/removal":
        return case.findings if place < (8 if seed == 1 else 6) else wrong
    return wrong if case.id in ("n00", "n09") or (kind == "spots" and case.id == "p01") else case.findings


def _rows(arm: str, seed: int, kind: str, cases: Sequence[Case], model: str) -> list[dict[str, Any]]:
    return [judge(case, Completion(render(report_of(tuple(says(arm, seed, kind, case)))), (), True), model=model, kind=kind)
            for case in cases]  # fmt: skip


def write_stage(folder: Path, stage: str, **fields: Any) -> None:
    StageFile(stage=stage, digest="d", status="finished", **fields).write(folder / stage)


def write_run(out: Path, arm: str, seed: int, cases: Sequence[Case], pairs: dict[str | None, list[Case]]) -> Path:
    """One judged run, as `cogalign run` leaves it."""
    folder, stage = out / "arms" / arm / f"seed{seed}", ARMS[arm]["trains"]
    model = "sft" if stage == "sft" else "aligned"
    write_stage(folder, stage, seconds=100.0 * seed, metrics={"steps": STEPS[arm]})
    curve = {"step": [1, 20, 40], "loss": [3.0, 1.0, 0.5]}
    if stage == "grpo":
        curve |= {"reward": [1.0, 2.0, 2.5], "rewards/diagnosis/mean": [0.2, 0.5, 0.8], "kl": [0.0, 0.1, 0.1]}
    pd.DataFrame(curve).to_csv(folder / stage / "metrics.csv", index=False)
    write_frame(folder / "evaluate" / "predictions.parquet", frame_of(_rows(arm, seed, "factual", cases, model)))
    write_stage(folder, "evaluate")
    test = [case for case in cases if case.split == "test"]
    polyps = [case for case in test if case.findings == POLYP]
    rows = [row for kind, asked in (("factual", test), ("spots", test), ("background_blur", polyps))
            for row in _rows(arm, seed, kind, asked, model)]  # fmt: skip
    for name, made in pairs.items():
        for case in made:
            rows += _rows(arm, seed, kind_in(name, str(case.intervention)), [case], model)
    write_frame(folder / "audit" / "predictions.parquet", frame_of(rows))
    write_stage(folder, "audit")
    return folder


def write_study(out: Path, **changes: Any) -> Path:
    """The whole folder."""
    content = {
        "name": "painted", "recipe": "recipes/recipe.yaml", "seeds": list(SEEDS), "arms": ARMS, "reference": "sft",
        "sets": {"unseen_fill": {"counterfactual.fill": "telea"}}, "compare": [["ours", "longer"], ["ours", "sft"]],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
    cases, pairs = write_cases(out)
    for arm in ARMS:
        for seed in SEEDS:
            write_run(out, arm, seed, cases, pairs)
    return out
