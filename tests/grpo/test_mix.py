"""Prompt sampler: shares, coverage, pairs, ranks, purity."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.grpo.mix import PromptSampler
from cogalign.recipe import PARTS, MixSettings

LESIONS, NORMALS = 30, 10
LAB_MIX = MixSettings(factual=6, removal=4, control=2, transplant=4)


def case(name: str, source: str | None = None, intervention: str | None = None) -> Case:
    return Case(
        id=name,
        file_name=f"images/{name}.png",
        findings=("polyp",),
        split="train",
        counterfactual_of=source,
        intervention=intervention,
    )


FACTUAL = [case(f"lesion-{i}") for i in range(LESIONS)] + [case(f"normal-{i}") for i in range(NORMALS)]
DERIVED = {
    part: [case(f"{part}-{i}", f"lesion-{i}", part) for i in range(LESIONS)]
    for part in ("removal", "control", "transplant", "background")
}


def part_of(item: Case) -> str:
    return item.intervention or "factual"


def drawn(sampler: PromptSampler, steps: int) -> list[Case]:
    return [item for index in range(steps) for item in sampler.step(index)]


shares = st.floats(min_value=0, max_value=8).map(lambda x: round(x, 2))
mixes = st.builds(lambda f, r, c, t: MixSettings(f + 0.05, r, c, t), shares, shares, shares, shares)


@given(mix=mixes, size=st.integers(1, 24), pairs=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_step_is_full_and_shares_hold_over_time(mix: MixSettings, size: int, pairs: bool) -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, mix, size, seed=1, keep_pairs=pairs)
    steps = 25
    given_so_far: Counter[str] = Counter()
    total = sum(getattr(mix, part) for part in PARTS)
    for index in range(steps):
        items = sampler.step(index)
        assert len(items) == size
        counts = Counter(map(part_of, items))
        assert {part: counts[part] for part in PARTS} == sampler.counts(index)
        given_so_far += counts
        for part in PARTS:
            ideal = getattr(mix, part) / total * size * (index + 1)
            assert abs(given_so_far[part] - ideal) < 2.001  # two factual parts, each within one


def test_whole_shares_are_met_in_every_step() -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=0, keep_pairs=False)
    for index in range(20):
        assert sampler.counts(index) == {"factual": 6, "removal": 4, "control": 2, "transplant": 4}


def test_a_share_below_one_case_a_step_comes_every_few_steps() -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, MixSettings(factual=0.9, removal=0.1), 2, seed=0, keep_pairs=False)
    removals = [sampler.counts(index)["removal"] for index in range(50)]
    assert sum(removals) == 10
    assert all(sum(removals[start : start + 5]) == 1 for start in range(0, 50, 5))


@pytest.mark.parametrize("pairs", [True, False])
def test_a_step_depends_on_seed_and_index_only(pairs: bool) -> None:
    first = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=5, keep_pairs=pairs)
    steps = [first.step(index) for index in range(40)]
    resumed = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=5, keep_pairs=pairs)
    assert [resumed.step(index) for index in (39, 3, 17)] == [steps[39], steps[3], steps[17]]
    other = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=6, keep_pairs=pairs)
    assert other.step(0) != steps[0]


@pytest.mark.parametrize("pairs", [True, False])
def test_counterfactuals_do_not_repeat_within_an_epoch(pairs: bool) -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=2, keep_pairs=pairs)
    items = [item for item in drawn(sampler, 60)]
    for part, per_step in (("removal", 4), ("control", 2), ("transplant", 4)):
        names = [item.id for item in items if part_of(item) == part]
        assert len(names) == 60 * per_step
        for step in range(60):
            # The order inside a step follows the pairs, so an epoch is judged by its whole steps.
            seen = Counter(item.id for item in items[: 16 * (step + 1)] if part_of(item) == part)
            assert max(seen.values()) - min(seen.get(item.id, 0) for item in DERIVED[part]) <= 1


def test_factual_cases_without_pairs_do_not_repeat_within_an_epoch() -> None:
    sampler = PromptSampler(FACTUAL, {}, MixSettings(factual=1), 8, seed=2)
    names = [item.id for item in drawn(sampler, 15)]
    for start in range(0, 120, len(FACTUAL)):
        assert len(set(names[start : start + len(FACTUAL)])) == len(FACTUAL)
    assert names[:40] != names[40:80]


def test_factual_places_go_to_the_sources_of_the_steps_counterfactuals() -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=3, keep_pairs=True)
    for index in range(30):
        items = sampler.step(index)
        sources = {item.counterfactual_of for item in items if item.counterfactual_of}
        lesions = [item.id for item in items if part_of(item) == "factual" and item.id.startswith("lesion")]
        assert len(lesions) in (4, 5)
        assert len(set(lesions)) == len(lesions)
        assert set(lesions) <= sources


def test_all_counterfactuals_have_their_factual_case_where_shares_allow_it() -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, MixSettings(factual=12, removal=4), 16, seed=3, keep_pairs=True)
    for index in range(30):
        items = sampler.step(index)
        factual = [item.id for item in items if part_of(item) == "factual"]
        assert len(set(factual)) == len(factual)
        for position, item in enumerate(items):
            if item.counterfactual_of:
                assert items[position - 1].id == item.counterfactual_of


def test_cases_without_counterfactual_keep_their_share_when_pairs_are_kept() -> None:
    sampler = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=4, keep_pairs=True)
    factual = Counter(item.id for item in drawn(sampler, 100) if part_of(item) == "factual")
    normals = sum(count for name, count in factual.items() if name.startswith("normal"))
    assert normals == round(600 * NORMALS / (NORMALS + LESIONS))
    assert set(factual) == {item.id for item in FACTUAL}


def test_a_pool_smaller_than_its_places_is_repeated() -> None:
    sampler = PromptSampler(FACTUAL[:2], {"removal": DERIVED["removal"][:2]}, MixSettings(4, 4), 8, seed=0)
    counts = Counter(item.id for item in sampler.step(0))
    assert counts == {"lesion-0": 2, "lesion-1": 2, "removal-0": 2, "removal-1": 2}


def test_counterfactuals_of_unknown_cases_are_drawn_without_a_pair() -> None:
    orphans = {"removal": [case("removal-x", "elsewhere", "removal")]}
    sampler = PromptSampler(FACTUAL, orphans, MixSettings(3, 1), 4, seed=0)
    assert Counter(map(part_of, sampler.step(0))) == {"factual": 3, "removal": 1}


@pytest.mark.parametrize("pairs", [True, False])
def test_ranks_share_a_step_in_contiguous_parts(pairs: bool) -> None:
    whole = PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, seed=7, keep_pairs=pairs)
    ranks = [PromptSampler(FACTUAL, DERIVED, LAB_MIX, 16, 7, pairs, rank, 4) for rank in range(4)]
    for index in range(5):
        parts = [sampler.step(index) for sampler in ranks]
        assert [len(part) for part in parts] == [4, 4, 4, 4]
        assert [item for part in parts for item in part] == whole.step(index)


def test_prompts_that_ranks_cannot_share_name_the_nearest_values() -> None:
    with pytest.raises(ValueError, match=r"grpo\.prompts_per_step: found 10, .* 8 and 12"):
        PromptSampler(FACTUAL, {}, MixSettings(), 10, seed=0, world_size=4)
    with pytest.raises(ValueError, match=r"nearest valid values are 4; the nearest numbers of devices .* are 3$"):
        PromptSampler(FACTUAL, {}, MixSettings(), 3, seed=0, world_size=4)


def test_a_rank_outside_of_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank: found 2 of 2"):
        PromptSampler(FACTUAL, {}, MixSettings(), 4, seed=0, rank=2, world_size=2)


def test_a_share_without_counterfactuals_names_the_settings() -> None:
    with pytest.raises(ValueError, match=r"grpo\.mix\.transplant: .* removal \(30\).*counterfactual\.interventions"):
        PromptSampler(FACTUAL, {"removal": DERIVED["removal"]}, LAB_MIX_WITHOUT_CONTROL, 16, seed=0)


LAB_MIX_WITHOUT_CONTROL = MixSettings(factual=6, removal=4, transplant=4)


def test_a_factual_share_without_cases_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grpo\.mix\.factual"):
        PromptSampler([], DERIVED, LAB_MIX, 16, seed=0)


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step: found -1"):
        PromptSampler(FACTUAL, {}, MixSettings(), 4, seed=0).step(-1)
