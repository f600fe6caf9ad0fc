"""The tiny model's words: run once with `python -m cogalign.data.phantom.vocabulary FOLDER`.

Writes tokenizer, processor and random weights in hub layout. The corpus holds phantom reports and
descriptions, the names of the taxonomy and the words of the photographs' template reports.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cogalign.cognition.report import DIAGNOSIS_PREFIX, HEADINGS, render
from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.phantom.spec import draw_spec
from cogalign.data.phantom.text import LOOKS, MORPHOLOGY, VESSELS, description, report
from cogalign.models.tiny import write_random

PHRASES = (*HEADINGS.values(), DIAGNOSIS_PREFIX.rstrip())
"""Fixed phrases of the report template."""
QUESTIONS = (
    "Based on the image, what is the diagnosis?",
    "Describe what is seen in the image.",
    "Repeat these words:",
)


def template_texts() -> list[str]:
    """Template reports of photographs: each finding in each of its organs."""
    from cogalign.cognition.templates import template_report

    texts = []
    for finding in FINDINGS.values():
        for organ in finding.organs or ("unknown",):
            texts.append(render(template_report((finding.id,), organ)))
    return texts


def corpus(samples: int = 600) -> Iterator[str]:
    """Texts the tokenizer is trained on, always the same."""
    rng = np.random.default_rng(0)
    for _ in range(samples):
        spec = draw_spec(rng, 0.0, multi_share=0.3)
        yield render(report(spec))
        yield description(spec)
    fixed = [*MORPHOLOGY.values(), *VESSELS.values(), *LOOKS.values(), *QUESTIONS]
    for _ in range(200):
        yield from fixed
    for _ in range(30):
        yield from template_texts()
        for finding in FINDINGS.values():
            yield f"{finding.name}, {finding.name.lower()}. {finding.name}"


def words() -> list[str]:
    """Distinct words and phrases of the corpus, for language exercises."""
    found: set[str] = set()
    for text in corpus(200):
        for phrase in PHRASES:
            if phrase in text:
                found.add(phrase)
                text = text.replace(phrase, " ")
        found.update(re.findall(r"[A-Za-z]+[.,;]?", text))
    return sorted(found)


def main() -> None:
    """Command line."""
    write_random(Path(sys.argv[1]), corpus(), PHRASES)


if __name__ == "__main__":
    main()
