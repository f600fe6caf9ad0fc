"""What a teacher is asked: the three-stage prompt, the schema of the answer, and the digest that names a question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cogalign.cognition.report import SECTIONS
from cogalign.cognition.taxonomy import FINDINGS, name_of
from cogalign.data.annotation.facts import Facts
from cogalign.data.annotation.remarks import Remark

PROMPT_VERSION = "three-stage-1"
"""Changes with every change of the templates or the schema: answers to an older prompt are then not used."""
PATCH = 32
"""Pixels of the side of an image patch that is one token, as in Qwen3-VL; GPT and Gemini count about as much."""


def _section_schema() -> dict[str, Any]:
    texts: dict[str, Any] = {section: {"type": "string"} for section in SECTIONS}
    lists = {section: {"type": "array", "items": {"type": "string"}} for section in SECTIONS}
    texts["keywords"] = {
        "type": "object",
        "properties": lists,
        "required": list(SECTIONS),
        "additionalProperties": False,
    }
    return {"type": "object", "properties": texts, "required": list(texts), "additionalProperties": False}


SCHEMA: dict[str, Any] = _section_schema()
"""JSON schema of an answer. Lengths are left to the checks: not every server takes limits in a schema."""


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("cogalign.data.annotation", "."), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False,
    )  # fmt: skip


@lru_cache(maxsize=1)
def system_text() -> str:
    """The rules, the same for every case."""
    return _templates().get_template("system.j2").render().strip()


def user_text(facts: Facts) -> str:
    """What is known of one case."""
    names = {finding: name_of(finding) for place in facts.places if (finding := place.finding)}
    findings = [FINDINGS[finding] for finding in facts.findings]
    return _templates().get_template("user.j2").render(facts=facts, findings=findings, names=names).strip()


def retry_text(failures: Sequence[Remark]) -> str:
    """What was wrong with an answer."""
    return _templates().get_template("retry.j2").render(failures=failures).strip()


def digest(case_id: str, image_digest: str, facts: Facts, teacher: str, sampling: dict[str, Any]) -> str:
    """32 hexadecimal digits that name a question: case, image, what is told of it, prompt, model and sampling.

    Args:
        case_id: of the case.
        image_digest: SHA-256 of the image file.
        facts: what the teacher is told.
        teacher: name of the model.
        sampling: whatever else changes the answer (length, temperature, size of the image), plain values.
    """
    parts = [case_id, image_digest, list(facts.findings), PROMPT_VERSION, system_text(), user_text(facts), teacher,
             sampling]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def sent_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of an image as it is sent: as it is, or shrunk so that its longer side is `side`."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def image_tokens(width: int, height: int) -> int:
    """About how many tokens an image of so many pixels is: one for each begun patch of `PATCH` x `PATCH`."""
    return -(-width // PATCH) * -(-height // PATCH)
