"""Partners for transplants: which case's background a lesion is moved onto."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.recipe import CounterfactualSettings

CANDIDATES = 4
"""Backgrounds drawn for a transplant; the next one is tried where the lesion does not fit."""
TAUGHT = ("train", "validation")
"""Splits that a model is trained and chosen on: no image of another split may be in theirs."""
Choice = Literal["any", "normal", "other_source"]


class Backgrounds:
    """Partners for transplants: the cases of a split whose mucosa is clear, or can be cleared with their mask.

    A finding (or `normal`) is drawn uniformly first, then a case with it: so the background tells nothing of the
    transplanted finding, and rare findings lend their backgrounds as often as common ones.

    Args:
        cases: of one split.
        choice: any of them, the normal ones, or the normal ones of other data sets than the lesion's.
    """

    def __init__(self, cases: Sequence[Case], choice: Choice = "any") -> None:
        self._pools: dict[tuple[str, str], list[Case]] = defaultdict(list)
        self._organs = sorted({case.organ for case in cases})
        self._other_source = choice == "other_source"
        for case in cases:
            if choice == "any" or case.is_normal:
                for finding in case.findings:
                    self._pools[case.organ, finding].append(case)

    def draw(self, case: Case, rng: np.random.Generator, count: int = CANDIDATES) -> tuple[Case, ...]:
        """Up to `count` different partners of another group whose organ can have all findings of the case."""
        organs = [organ for organ in self._organs if compatible(case, organ)]
        pools: dict[str, list[Case]] = defaultdict(list)
        for organ, finding in sorted(self._pools):
            if organ in organs:
                pools[finding] += [one for one in self._pools[organ, finding] if self._may_lend(one, case)]
        drawn: dict[str, Case] = {}
        findings = sorted(finding for finding, pool in pools.items() if pool)
        for _ in range(8 * count if findings else 0):
            pool = pools[findings[rng.integers(len(findings))]]
            partner = pool[rng.integers(len(pool))]
            if partner.id != case.id and not (case.group and partner.group == case.group):
                drawn.setdefault(partner.id, partner)
            if len(drawn) == count:
                break
        return tuple(drawn.values())

    def _may_lend(self, partner: Case, case: Case) -> bool:
        return not self._other_source or partner.dataset != case.dataset


def compatible(case: Case, organ: str) -> bool:
    """Whether all findings of the case occur in the organ: it is the case's own, or the taxonomy says so."""
    return organ == case.organ or all(organ in FINDINGS[finding].organs for finding in case.findings)


def background_split(case_set: CaseSet, settings: CounterfactualSettings, split: str) -> str:
    """The split that lends the backgrounds of a split's transplants.

    Raises:
        ValueError: there is no such split, or what is trained on would hold images of a split that judges.
    """
    name = settings.background_split
    if name is None or "transplant" not in settings.interventions:
        return split
    key = f"counterfactual.background_split: found {name!r}"
    if name not in case_set.splits:
        raise ValueError(f"{key}, wanted null or a split of {case_set.root}: {', '.join(case_set.splits)}")
    if split in TAUGHT and name != split:
        raise ValueError(
            f"{key}, but counterfactual.splits has {split!r}: its transplants are trained on and would hold images of "
            f"{name!r}, wanted null, or counterfactual.splits without {split!r}"
        )
    return name


def lesions_of_backgrounds(settings: CounterfactualSettings) -> list[str]:
    """Splits beside `splits` whose lesions must be found, since they are cleared from a background."""
    name = settings.background_split
    return [name] if name is not None and name not in settings.splits and settings.backgrounds == "any" else []
