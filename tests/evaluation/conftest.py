"""A small run on disk, and models of paint and rules: one reads the guide box, one reads the lesion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import Report, render
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter
from cogalign.evaluation import collect, predict
from cogalign.evaluation.predict import frame_of, judge
from cogalign.generation.hf import Completion
from cogalign.recipe import AuditSettings, DataSettings, EvaluateSettings, PhantomSettings, Recipe
from cogalign.training.context import StageContext

SIDE = 64
MUCOSA = (205, 120, 105)
COLOURS = {"polyp": (235, 60, 160), "ulcer": (240, 235, 190), "bleeding": (120, 10, 15), "normal": (60, 60, 200)}
SITES = ((30, 36), (16, 16))  # first and second lesion
BOX = (50, 4)


def report_of(findings: Sequence[str], organ: str = "Colon") -> Report:
    look = (
        "smooth lining without a lesion" if findings == ("normal",) else f"focal change with {' and '.join(findings)}"
    )
    return Report(f"{organ}, white light", look, "regular branching vessels", tuple(findings))


def _disc(pixels: np.ndarray, centre: tuple[int, int], radius: int, colour: Sequence[int]) -> np.ndarray:
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    pixels[inside] = colour
    return inside


def paint(lesions: Sequence[str], cue: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image with lesions and the guide box of `cue`, and the mask of the lesions."""
    noise = np.random.default_rng(seed).normal(0, 5, (SIDE, SIDE, 1))
    pixels = np.clip(np.array(MUCOSA) + noise, 0, 255).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    for site, finding in zip(SITES, [name for name in lesions if name != "normal"], strict=False):
        mask |= _disc(pixels, site, 8, COLOURS[finding])
    pixels[BOX[0] : BOX[0] + 10, BOX[1] : BOX[1] + 10] = COLOURS[cue]
    return pixels, mask


def _nearest(colour: np.ndarray, among: dict[str, tuple[int, int, int]]) -> str:
    return min(among, key=lambda name: float(np.sum((colour - np.array(among[name])) ** 2)))


def read_lesions(image: Image.Image) -> tuple[str, ...]:
    """What is there, from the paint at the two sites."""
    pixels = np.asarray(image).astype(float)
    among = {"normal": MUCOSA, **{name: COLOURS[name] for name in ("polyp", "ulcer", "bleeding")}}
    found = [_nearest(np.median(pixels[y - 3 : y + 4, x - 3 : x + 4], axis=(0, 1)), among) for y, x in SITES]
    return tuple(name for name in found if name != "normal") or ("normal",)


def read_box(image: Image.Image) -> tuple[str, ...]:
    """What the guide box says."""
    y, x = BOX
    return (_nearest(np.median(np.asarray(image).astype(float)[y : y + 10, x : x + 10], axis=(0, 1)), COLOURS),)


def answer_of(role: str, image: Image.Image) -> str:
    if role == "base":
        return "A pink surface with a round spot."
    return render(report_of(read_box(image) if role == "sft" else read_lesions(image)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the weights by rules on pixels; the list grows by a model's role whenever one is loaded."""
    roles: list[str] = []

    def load_model(settings: Any, checkpoint: Path | None = None, device: Any = None) -> str:
        roles.append("base" if checkpoint is None else {"sft": "sft", "grpo": "aligned"}[checkpoint.parent.name])
        return roles[-1]

    def generate(loaded: str, images: Sequence[Image.Image], questions: Sequence[str], **options: Any) -> list[Any]:
        assert len(images) == len(questions) and len(images) <= options["batch_size"]
        return [[Completion(answer_of(loaded, image), (1, 2), True)] for image in images]

    monkeypatch.setattr(collect, "load_model", load_model)
    monkeypatch.setattr(collect, "cached", lambda loaded, run_dir, cache_gb: loaded)
    monkeypatch.setattr(predict, "generate", generate)
    return roles


def case_of(name: str, findings: Sequence[str], **fields: Any) -> Case:
    report = report_of(tuple(findings))
    values: dict[str, Any] = {"split": "test", "organ": "colon", "file_name": f"images/{name}.png"} | fields
    if "normal" not in findings:
        values.setdefault("mask_file_name", f"masks/{name}.png")
    return Case(id=name, findings=tuple(findings), answer=render(report), keywords=extract(report), **values)


def _write_factual(folder: Path, count: int) -> list[tuple[Case, tuple[str, ...]]]:
    kinds: list[tuple[str, ...]] = [("polyp",), ("ulcer",), ("bleeding",), ("normal",), ("polyp", "ulcer")]
    made = []
    with CaseSetWriter(folder) as writer:
        for split in ("test", "test_shifted"):
            for number in range(count):
                findings = kinds[number % len(kinds)]
                cue = findings[0] if split == "test" else kinds[(number + 1) % len(kinds)][0]
                name = f"{'a' if split == 'test' else 'b'}{number:03d}"
                case = case_of(name, findings, split=split, group=f"g{number // 2}" if split == "test" else "")
                pixels, mask = paint(findings, cue, seed=number)
                writer.add(case, pixels, mask if case.mask_file_name else None)
                made.append((case, findings))
    return [item for item in made if item[0].split == "test" and not item[0].is_normal]


def _write_pairs(folder: Path, sources: list[tuple[Case, tuple[str, ...]]]) -> None:
    with CaseSetWriter(folder) as writer:
        for number, (source, findings) in enumerate(sources):
            other = sources[(number + 1) % len(sources)][1][0]
            edits = {
                "removal": (("normal",), paint((), findings[0], number)),
                "control": (findings, paint(findings, findings[0], number + 500)),
                "transplant": (findings, paint(findings, "normal" if other == findings[0] else other, number + 900)),
                "background": (findings, paint(findings, "normal", number)),
            }
            for kind, (truth, (pixels, _)) in edits.items():
                name = f"{source.id}-{kind}"
                case = case_of(
                    name, truth, group=source.group, intervention=kind, counterfactual_of=source.id, mask_file_name=None
                )
                writer.add(case, pixels)


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Case sets `data` and `counterfactual` of a run, made once."""
    folder = tmp_path_factory.mktemp("painted")
    _write_pairs(folder / "counterfactual", _write_factual(folder / "data", 30))
    return folder


def write_curves(path: Path, steps: int = 60) -> None:
    """A table as Lightning's CSV logger writes it: rows of other events have holes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    grow = 1 - np.exp(-np.arange(steps) / 15)
    frame = pd.DataFrame({"step": np.arange(steps)})
    for name, level in (("format", 0.98), ("cognition", 0.7), ("diagnosis", 0.9)):
        frame[f"rewards/{name}/mean"] = np.clip(0.3 + (level - 0.3) * grow + rng.normal(0, 0.03, steps), 0, 1)
    parts = [frame[f"rewards/{name}/mean"] for name in ("format", "cognition", "diagnosis")]
    frame["reward"] = parts[0] + parts[1] + 2 * parts[2]
    frame["kl"] = 0.2 * grow
    pd.concat([frame, pd.DataFrame({"step": [5], "validation/loss": [0.4]})]).to_csv(path, index=False)


@pytest.fixture
def make_context(painted: Path, tmp_path: Path) -> Callable[..., StageContext]:
    """A context of a run with painted images, checkpoints of `sft` and `aligned`, and reward curves."""

    def make(stage: str = "evaluate", **changes: Any) -> StageContext:
        run_dir = tmp_path / "run"
        for name in ("data", "counterfactual"):
            if not (run_dir / name).exists():
                run_dir.mkdir(exist_ok=True)
                (run_dir / name).symlink_to(painted / name)
        for name in ("sft", "grpo"):
            (run_dir / name / "adapter").mkdir(parents=True, exist_ok=True)
            if not (run_dir / name / "adapter" / "weights").exists():
                (run_dir / name / "adapter" / "weights").write_text(name)
        write_curves(run_dir / "grpo" / "logs" / "metrics.csv")
        recipe = Recipe(
            name="painted",
            data=DataSettings(phantom=PhantomSettings()),
            evaluate=EvaluateSettings(batch_size=8, bootstrap=200),
            audit=AuditSettings(batch_size=8, bootstrap=200, spots=4),
        )
        return StageContext(replace(recipe, **changes), run_dir, stage)

    return make


def predictions(answers: Sequence[tuple[Case, str]], model: str = "aligned", kind: str = "factual") -> pd.DataFrame:
    """A frame of predictions from cases and what was said of them."""
    return frame_of([judge(case, Completion(text, (), True), model=model, kind=kind) for case, text in answers])
