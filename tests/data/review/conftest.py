"""A small case set: lesions with masks, one with a box alone, one normal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set

HEIGHT, WIDTH = 40, 56


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def case(name: str, findings: tuple[str, ...], masked: bool, *boxes: Box) -> Case:
    return Case(
        id=name,
        file_name=f"images/{name}.png",
        findings=findings,
        split="train",
        organ="colon",
        mask_file_name=f"masks/{name}.png" if masked else None,
        boxes=boxes,
        answer="The diagnosis result is Polyp.",
        attributes={"cue": name},
    )


def ring() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:20, 5:25] = True
    mask[9:13, 10:18] = False
    return mask


def two() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:9, 2:12] = True
    mask[20:33, 30:50] = True
    return mask


@pytest.fixture
def cases(tmp_path: Path) -> CaseSet:
    """`ring` has a hole, `two` a polyp and an erosion, `boxed` only a box, `normal` nothing."""
    root = tmp_path / "cases"
    with CaseSetWriter(root) as writer:
        writer.add(case("ring", ("polyp",), True, Box("polyp", 5, 4, 25, 20)), picture(0), ring())
        boxes = (Box("polyp", 2, 3, 12, 9), Box("erosion", 30, 20, 50, 33))
        writer.add(case("two", ("polyp", "erosion"), True, *boxes), picture(1), two())
        writer.add(case("boxed", ("polyp",), False, Box("polyp", 10, 10, 30, 25)), picture(2))
        writer.add(case("normal", ("normal",), False), picture(3))
    return read_case_set(root)


@pytest.fixture
def pairs(tmp_path: Path) -> CaseSet:
    """Counterfactuals of `ring` and `two`; one of them was rejected by the quality gate."""
    import json
    from dataclasses import replace

    root = tmp_path / "pairs"
    with CaseSetWriter(root) as writer:
        for number, (source, kind) in enumerate((("ring", "removal"), ("ring", "control"), ("two", "removal"))):
            made = replace(
                case(f"{source}-{kind}", ("normal",) if kind == "removal" else ("polyp",), True),
                counterfactual_of=source,
                intervention=kind,
                source_file_name=f"sources/{source}.png",
                attributes={"quality": {"seam": 1.5, "failed": []}},
            )
            writer.add(made, picture(10 + number), ring(), picture(0 if source == "ring" else 1))
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    bad = next(row for row in rows if row["id"] == "two-removal")
    bad["attributes"] = json.dumps({"quality": {"seam": 2.5, "failed": ["visible seam"]}})
    (root / "rejected.jsonl").write_text(json.dumps(bad) + "\n")
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row is not bad))
    return read_case_set(root)


REPORTS = {
    "one": ("polyp", "Colon, white light, clear view.", "Sessile raised lesion, Paris Is.", "Regular pits, fine vessels, no bleeding."),
    "two": ("erosion", "Stomach, antrum, white light.", "Shallow mucosal break, red rim.", "Surface coarse, vessels blurred, fibrin."),
    "three": ("polyp", "Colon, caecum, white light.", "Pedunculated lesion, lobed head.", "Branched pits, brown vessels, crest."),
    "four": ("normal", "Colon, rectum, white light.", "Smooth mucosa, folds intact.", "Regular surface, fine vessels, no scar."),
}  # fmt: skip
"""Finding and the three sections by case."""


@pytest.fixture
def reported(tmp_path: Path) -> CaseSet:
    """Four cases with full reports and nine keywords; all but `four` have a mask and a box."""
    from dataclasses import replace

    from cogalign.cognition.keywords import extract
    from cogalign.cognition.report import Report, render

    root = tmp_path / "reported"
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:20, 5:25] = True
    with CaseSetWriter(root) as writer:
        for number, (name, (finding, *sections)) in enumerate(REPORTS.items()):
            report = Report(*sections, (finding,))
            lesion = finding != "normal"
            plain = case(name, (finding,), lesion, *([Box(finding, 5, 4, 25, 20)] if lesion else []))
            new = replace(plain, answer=render(report), keywords=extract(report))
            writer.add(new, picture(number), mask if lesion else None)
    return read_case_set(root)


def handed_in(task: dict, by: object = 1, verdict: str | None = None, day: int = 1, **fields: object) -> dict:
    """An annotation of a task as Label Studio exports it: its prediction with other contents of some fields.

    `fields` are names of controls without `report_`, with their texts or choices (None: deleted), or fields of the
    annotation itself (`was_cancelled`, `ground_truth`).
    """
    own = {name: fields.pop(name) for name in ("was_cancelled", "ground_truth") if name in fields}
    results = []
    for number, result in enumerate(task["predictions"][0]["result"]):
        name = result["from_name"].removeprefix("report_")
        value = result["value"]
        if name in fields:
            content = fields.pop(name)
            if content is None:
                continue
            value = {"choices" if "choices" in value else "text": content}
        results.append({**result, "id": f"r{number}", "origin": "prediction", "value": value})
    for name, content in {**fields, "verdict": [verdict] if verdict else None}.items():
        if content is not None:
            kind, key = ("choices", "choices") if name in ("verdict", "findings") else ("textarea", "text")
            results.append({"id": name, "from_name": f"report_{name}", "to_name": "image", "type": kind, "origin": "manual",
                            "value": {key: content}})  # fmt: skip
    return {"id": 10 * day, "completed_by": by, "result": results, "was_cancelled": False, "ground_truth": False,
            "created_at": f"2026-03-{day:02d}T10:00:00.5Z", "updated_at": f"2026-03-{day:02d}T11:00:00.5Z",
            "draft_created_at": None, "lead_time": 12.5, "prediction": {}, "result_count": len(results), **own}  # fmt: skip
