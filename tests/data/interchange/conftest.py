from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from cogalign.cognition.report import Report, render
from cogalign.cognition.taxonomy import SINGLE_LABELS
from cogalign.data.case import Box, Case
from cogalign.data.caseset import write_metadata
from cogalign.data.sources import Licence, Source, write_sources

texts = st.text(max_size=30).filter(lambda text: "<image>" not in text)
"""Any characters that UTF-8 has, line ends and tabs among them."""
spoken = texts.filter(bool)
reports = st.builds(
    lambda place, form, vessels, diagnosis: render(Report(place, form, vessels, tuple(diagnosis))),
    st.sampled_from(["Colon, white light.", "Stomach; NBI"]), st.sampled_from(["A polyp, 5 mm.", "Flat\nand red"]),
    st.sampled_from(["Regular vessels.", "smooth"]), st.lists(st.sampled_from(SINGLE_LABELS), min_size=1, max_size=3, unique=True),
)  # fmt: skip
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=4,
)  # fmt: skip
attributes = st.dictionaries(
    st.sampled_from(["class", "file", "light", "score", "think", "prediction"]), plain_json, max_size=3
)
boxes = st.builds(Box, st.sampled_from(SINGLE_LABELS), *[st.integers(0, 9)] * 4)
COMMON: dict[str, Any] = {
    "id": spoken, "split": st.sampled_from(["train", "validation", "test", "test_shifted"]),
    "file_name": st.sampled_from(["images/a.png", "b.jpg", "images/deep/c d.png"]),
    "organ": st.sampled_from(["colon", "stomach", "unknown"]), "group": texts, "dataset": texts, "licence": texts,
    "mask_file_name": st.none() | st.just("masks/a.png"), "boxes": st.lists(boxes, max_size=2).map(tuple),
    "keywords": st.dictionaries(st.sampled_from(["location", "morphology"]), st.lists(texts, min_size=1, max_size=3)),
    "attributes": attributes, "counterfactual_of": st.none() | spoken, "intervention": st.none() | st.just("removal"),
    "fill": st.none() | st.just("blur"), "source_file_name": st.none() | st.just("sources/a.png"), "background_of": st.none() | spoken,
}  # fmt: skip
found = st.builds(
    Case, findings=st.lists(st.sampled_from(SINGLE_LABELS), min_size=1, max_size=3).map(tuple),
    question=texts, answer=reports | spoken, **COMMON,
)  # fmt: skip
question_cases = st.builds(Case, findings=st.just(()), question=spoken, answer=spoken.filter(str.strip), **COMMON)
any_case = found | question_cases
"""Cases that all formats can hold."""

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def picture(path: Path, shift: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(PIXELS, shift)).save(path)
    return path


REPORT = render(Report("Colon, white light.", "Sessile polyp, Paris Is.", "Smooth surface.", ("polyp",)))


def make_cases() -> list[Case]:
    """Cases of three data sets: with findings, mask and box, with a question of its own, and questions about one image."""
    choices = {"A": "polyp", "B": "ulcer", "C": "no polyp"}
    return [
        Case("p1", "images/p1.png", ("polyp",), "train", organ="colon", group="v:1", dataset="Kvasir-SEG", licence="",
             mask_file_name="masks/p1.png", boxes=(Box("polyp", 1, 2, 9, 8),), answer=REPORT,
             keywords={"location": ["colon"], "morphology": ["sessile", "Paris Is"]}, attributes={"class": "polyps"}),
        Case("n1", "images/n1.png", ("normal",), "test", dataset="HyperKvasir", licence="CC BY 4.0",
             question="Is this normal?", answer="Yes.\n\tAll of it; “quite”.\r\n"),
        Case("q1", "images/q.png", (), "test", group="images/q", dataset="Mine", question="What is <A> polyp, <B> ulcer, <C> no polyp?",
             answer="<A> polyp", attributes={"choices": choices, "category": "lesion"}),
        Case("q2", "images/q.png", (), "test", group="images/q", dataset="Mine", question="Where is it?", answer="cecum"),
    ]  # fmt: skip


def write_set(folder: Path, cases: Sequence[Case]) -> Path:
    for number, name in enumerate(dict.fromkeys(case.file_name for case in cases)):
        picture(folder / name, number)
    for case in cases:
        if case.mask_file_name:
            (folder / "masks").mkdir(exist_ok=True)
            Image.fromarray((PIXELS[..., 0] > 99).astype(np.uint8) * 255).save(folder / case.mask_file_name)
    write_metadata(folder, [case.to_row() for case in cases])
    return folder


@pytest.fixture
def case_set(tmp_path: Path) -> Path:
    """The cases of `make_cases` with images, mask and sources."""
    folder = write_set(tmp_path / "cases", make_cases())
    write_sources(folder, [
        Source("kvasir-seg", "Kvasir-SEG", Licence("research only", "no", "ask"), "Jha 2020", "https://example.org", 1),
        Source("hyperkvasir", "HyperKvasir", Licence("CC BY 4.0", "yes", "yes"), "Borgli 2020", "https://example.org", 1),
    ])  # fmt: skip
    return folder


Lines = Callable[..., Path]


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """Writes a JSONL file of objects (or raw texts) beside two images, `a.png` and `b/val/c.png`."""
    folder = tmp_path / "foreign"
    picture(folder / "a.png")
    picture(folder / "b" / "val" / "c.png", 3)

    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        path = folder / name
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return write
