"""Which photographs of a data set are wanted: those of some findings, and so many of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.cards.card import Card
from cogalign.data.importers.base import Photograph
from cogalign.data.importers.labels import LabelMap, LeftOut, decide
from cogalign.data.importers.work import Done, Job


def check_findings(findings: Sequence[str]) -> None:
    """Refuse a finding that the taxonomy does not have.

    Raises:
        ValueError: names it, and the nearest that there is.
    """
    for name in findings:
        if name not in FINDINGS:
            near = get_close_matches(name, FINDINGS, n=1)
            hint = f"nearest: {near[0]!r}" if near else f"known: {', '.join(FINDINGS)}"
            raise ValueError(f"findings: found {name!r}, wanted a finding of the taxonomy ({hint})")


@dataclass(frozen=True)
class Wanted:
    """Which cases are wanted, and the split that they all go to."""

    limit: int | None
    findings: tuple[str, ...]
    split: str | None

    def digest(self) -> list[str]:
        """Texts for the digest of an import; as they were before findings and split could be asked for."""
        asked = [repr((sorted(set(self.findings)), self.split))] if self.findings or self.split else []
        return [repr(self.limit), *asked]


def chosen_jobs(
    card: Card,
    jobs: Sequence[Job],
    results: dict[int, Done],
    plans: dict[int, tuple[str, ...] | Done | None],
    wanted: Wanted,
) -> Iterator[int]:
    """Numbers of the jobs to do: those of the wanted findings, with a limit the first of each, as far as findings are known.

    Args:
        card: of the data set.
        jobs: all photographs, in order.
        results: what became of those that are done; gains those that will give no case.
        plans: findings by number, as `planned` tells them; gains those asked for here.
        wanted: findings and limit.
    """
    limit = wanted.limit
    counts: Counter[str] = Counter()
    for number, job in enumerate(jobs):
        done = results.get(number)
        if done is None:
            if number not in plans:
                plans[number] = planned(card, job.photograph)
            plan = plans[number]
            if isinstance(plan, Done):
                results[number] = plan
                continue
        else:
            plan = tuple(done.row["findings"]) if done.row else None
            if plan is None:
                continue
        if wanted.findings and plan is not None and not set(plan) & set(wanted.findings):
            continue
        if limit is not None and plan is not None:
            if any(counts[finding] >= limit for finding in plan or ("no finding",)):
                continue
            counts.update(plan or ("no finding",))
        yield number


def planned(card: Card, photograph: Photograph) -> tuple[str, ...] | Done | None:
    """The findings of a photograph before it is opened; None if only its mask tells; `Done` if it will give no case."""
    if photograph.label_from == "masks" or (photograph.mask and photograph.mask.rule.empty == "normal"):
        return None
    try:
        return decide(photograph, LabelMap(card, photograph)).findings
    except LeftOut as error:
        return Done(left_out=error.labels)
    except ValueError as error:
        return Done(reason=str(error))
