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
