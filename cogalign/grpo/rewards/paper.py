"""The paper's three rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cogalign.cognition.keywords import count_found
from cogalign.cognition.report import HEADINGS, parse
from cogalign.data.case import Keywords
from cogalign.grpo.rewards.protocol import Completion, completion_text


def format_reward(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """1 when all three headings occur in the completion, else 0 (CogAlign eq. 12)."""
    texts = map(completion_text, completions)
    return [float(all(heading in text for heading in HEADINGS.values())) for text in texts]


def cognition_reward(
    completions: Sequence[Completion], keywords: Sequence[Mapping[str, Sequence[str] | None] | None], **_: Any
) -> list[float | None]:
    """Share of the case's keywords, nine in the paper, that the completion contains (CogAlign eq. 13).

    Args:
        completions: What the model wrote.
        keywords: The case's keywords by section; a case without any is not judged (None).
    """
    return [_share_found(completion_text(c), k) for c, k in zip(completions, keywords, strict=True)]


def diagnosis_reward(
    completions: Sequence[Completion], findings: Sequence[Iterable[str] | None], **_: Any
) -> list[float | None]:
    """1 when the set of diagnoses read from the completion equals the case's, else 0 (CogAlign eq. 14).

    A diagnosis that the taxonomy does not know makes the sets differ.

    Args:
        completions: What the model wrote.
        findings: The case's findings (ids of the taxonomy); a case without any is not judged (None).
    """
    return [_same_diagnosis(completion_text(c), f) for c, f in zip(completions, findings, strict=True)]


def _share_found(text: str, keywords: Mapping[str, Sequence[str] | None] | None) -> float | None:
    """Share of the keywords in the text; None without keywords (Arrow tables fill missing sections with None)."""
    known: Keywords = {section: list(words) for section, words in (keywords or {}).items() if words}
    total = sum(map(len, known.values()))
    return count_found(text, known) / total if total else None


def _same_diagnosis(text: str, findings: Iterable[str] | None) -> float | None:
    """Whether the parsed set of findings equals the given one; None without findings."""
    gold = set(findings or ())
    if not gold:
        return None
    return float(parse(text).agrees_with(gold))
