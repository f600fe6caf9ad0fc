"""Write a case set of phantoms: train, validation, test, and `test_shifted`, whose background contradicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import render as render_report
from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSetWriter
from cogalign.data.phantom.render import Rendered, render
from cogalign.data.phantom.spec import PhantomSpec, draw_spec
from cogalign.data.phantom.text import description, report
from cogalign.data.phantom.vocabulary import words
from cogalign.recipe import PhantomSettings
from cogalign.training.progress import track

SHIFTED = "test_shifted"
CODES = {"train": "a", "validation": "b", "test": "c", SHIFTED: "d"}
"""Letter of each split in ids and file names (Hugging Face would take the split's name for its own purposes)."""
EXERCISE_SHARE = 0.15
"""Share of language exercises among descriptions: the words of the question are repeated."""
LICENCE = "Apache-2.0"


def _boxes(spec: PhantomSpec, rendered: Rendered) -> tuple[Box, ...]:
    """The box around each lesion."""
    boxes = []
    for lesion, mask in zip(spec.lesions, rendered.masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append(Box(lesion.finding, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return tuple(boxes)


def make_case(
    spec: PhantomSpec, index: int, split: str, settings: PhantomSettings
) -> tuple[Case, NDArray[np.uint8], NDArray[np.bool_] | None]:
    """The case of a spec, its image [H, W, 3] and the mask [H, W] of its lesions (None without any)."""
    rendered = render(spec, settings.size)
    name = f"phantom-{CODES[split]}{index:05d}"
    told = report(spec)
    case = Case(
        id=name,
        file_name=f"images/{name}.png",
        mask_file_name=f"masks/{name}.png" if spec.lesions else None,
        findings=spec.findings,
        split=split,
        organ=spec.organ,
        group=name,
        dataset="phantom",
        licence=LICENCE,
        boxes=_boxes(spec, rendered),
        answer=render_report(told) if settings.text == "report" else description(spec),
        keywords=extract(told) if settings.text == "report" else {},
        attributes={"spec": asdict(spec)},
    )
    return case, rendered.image, rendered.mask if spec.lesions else None


def _with_exercise(case: Case, rng: np.random.Generator, vocabulary: list[str]) -> Case:
    """The case as a language exercise: a list of words that has nothing to do with the image, to be repeated."""
    text = " ".join(rng.choice(vocabulary, size=int(rng.integers(4, 9))))
    return Case(**{**case.__dict__, "question": f"Repeat these words: {text}", "answer": text})


def draw(settings: PhantomSettings) -> Iterator[tuple[str, int, PhantomSpec]]:
    """Split, index and spec of every image. Each split has a stream of random numbers of its own."""
    plain = settings.text == "description"
    sizes = {"train": settings.train, "validation": settings.validation, "test": settings.test, SHIFTED: settings.test}
    for stream, (split, size) in enumerate(sizes.items()):
        if split == SHIFTED and plain:
            continue  # nothing is confounded, so nothing can shift
        rng = np.random.default_rng([settings.seed, stream])
        confounding = -1.0 if split == SHIFTED else settings.confounding
        for index in range(size):
            yield split, index, draw_spec(rng, confounding, multi_share=0.3 if plain else settings.multi_label)


def write_phantom(settings: PhantomSettings, folder: Path) -> Path:
    """Write the case set of `settings` into `folder`; the same settings give the same bytes.

    Splits: `train`, `validation` and `test` are confounded with probability `settings.confounding`;
    in `test_shifted` the background always tells a finding that the image does not have.
    """
    vocabulary = words() if settings.text == "description" else []
    exercise = np.random.default_rng([settings.seed, 99])
    specs = list(draw(settings))
    with CaseSetWriter(folder) as writer:
        for split, index, spec in track(specs, "phantoms"):
            case, image, mask = make_case(spec, index, split, settings)
            if vocabulary and split == "train" and exercise.random() < EXERCISE_SHARE:
                case = _with_exercise(case, exercise, vocabulary)
            writer.add(case, image, mask)
    return folder
