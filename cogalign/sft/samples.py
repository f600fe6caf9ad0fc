"""The samples of stage 1: training cases, evened out by finding, and counterfactuals in the shares of `sft.mix`."""

from __future__ import annotations

from collections import Counter

import numpy as np

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.datamodule import CaseDataset, MixedCases
from cogalign.data.mixed import Mixture, part_sequence
from cogalign.recipe import PARTS, Recipe
from cogalign.training.context import StageContext

SPLIT = "train"


def open_pairs(context: StageContext) -> CaseSet | None:
    """The counterfactuals, if the mix asks for any.

    Raises:
        FileNotFoundError: there are none yet.
    """
    if not context.recipe.sft.mix.interventions:
        return None
    folder = context.counterfactual_dir
    if not (folder / "metadata.jsonl").is_file():
        raise FileNotFoundError(
            f"{folder}: sft.mix asks for counterfactuals, and there are none; run the stage counterfactual first, or "
            "give counterfactual.pairs"
        )
    return read_case_set(folder)


def training_samples(recipe: Recipe, case_set: CaseSet, pairs: CaseSet | None) -> tuple[CaseDataset, Mixture | None]:
    """What is trained on, and the shares of its parts if there are several.

    Args:
        recipe: its `sft.balance` repeats cases as they are, `sft.mix` names the shares.
        case_set: the cases as they are.
        pairs: the counterfactuals; None where the mix has none.

    Raises:
        ValueError: a part has a share and no case.
    """
    settings = recipe.sft
    cases = case_set.split(SPLIT)
    if settings.balance > 1:
        from cogalign.data.balance import balanced

        cases = balanced(cases, settings.balance)
    factual = CaseDataset(case_set, cases)
    if pairs is None:
        return factual, None
    shares = settings.mix.shares
    made = [case for case in pairs.cases if case.split == SPLIT]
    found = Counter(case.intervention for case in made)
    for part in shares:
        if part != "factual" and not found[part]:
            there = ", ".join(f"{name} ({found[name]})" for name in PARTS if found[name]) or "none"
            raise ValueError(
                f"sft.mix.{part}: found a share of {shares[part]:g} but no {part} counterfactuals of the split {SPLIT} in "
                f"{pairs.root} (there are: {there}); put {part!r} into counterfactual.interventions and {SPLIT!r} into "
                f"counterfactual.splits, or set sft.mix.{part} to 0"
            )
    parts = [
        factual if part == "factual" else CaseDataset(pairs, [case for case in made if case.intervention == part])
        for part in shares
    ]
    return MixedCases(parts), Mixture(tuple(len(part) for part in parts), tuple(shares.values()))


def counts_of(recipe: Recipe, samples: int) -> dict[str, int]:
    """How many of the first samples are of each part of the mix."""
    shares = recipe.sft.mix.shares
    counts = np.bincount(part_sequence(tuple(shares.values()), samples)[0], minlength=len(shares))
    return dict(zip(shares, counts.tolist(), strict=True))
