from collections import defaultdict
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.data.groups import crossing_groups, given_group, joined_groups, photographs, with_joined_groups
from cogalign.data.images import fingerprint


def case(number: int, group: str = "", dataset: str = "D", split: str = "train") -> Case:
    return Case(f"c{number}", f"c{number}.png", ("polyp",), split, group=group, dataset=dataset)


def test_a_photograph_in_two_videos_makes_one_group_of_them():
    cases = [case(0, "v2"), case(1, "v1"), case(2, "v2"), case(3, "v1"), case(4, "v3"), case(5)]
    assert joined_groups(cases, [0, 0, 2, 3, 4, 5]) == ["v1", "v1", "v1", "v1", "v3", ""]


def test_repeated_photographs_without_a_group_get_the_smallest_id():
    assert joined_groups([case(3), case(1), case(2)], ["x", "x", "y"]) == ["c1", "c1", ""]


def test_the_same_name_in_other_data_sets_of_other_case_sets_is_another_group():
    cases = [case(0, "p1", "A"), case(1, "p1", "B"), case(2, "p1", "A")]
    assert joined_groups(cases, [0, 1, 2], [0, 1, 1]) == ["p1", "p1", "p1"]  # the second set joins both itself
    assert joined_groups(cases[:2], [0, 1], [0, 1]) == ["p1", "p1-2"]
    assert joined_groups(cases[:2], [0, 1]) == ["p1", "p1"]


def test_a_group_is_never_named_as_a_case_of_its_own():
    assert joined_groups([case(0, "c1"), case(1)], [0, 1]) == ["c1-2", ""]


def test_counterfactuals_of_one_case_are_one_group_with_it_and_without_it():
    made = [replace(case(n), counterfactual_of=source) for n, source in enumerate(("c9", "c9", "c8"), start=1)]
    assert joined_groups(made, range(3)) == ["c1", "c1", ""]
    assert joined_groups([*made, case(9, "v")], range(4)) == ["v", "v", "", "v"]
    onto = [replace(one, background_of="c8") for one in made[:2]]
    assert joined_groups([*onto, made[2]], range(3)) == ["c1", "c1", ""]  # a background joins nothing


def test_the_given_group_is_kept_and_comes_back_when_nothing_joins_any_more():
    cases = [case(0, "v1"), case(1, "v2"), case(2), case(3)]
    joined = with_joined_groups(cases, [0, 0, 2, 2])
    assert [one.group for one in joined] == ["v1", "v1", "c2", "c2"]
    assert [one.attributes.get("given_group") for one in joined] == [None, "v2", "", ""]
    assert [given_group(one) for one in joined] == ["v1", "v2", "", ""]
    assert with_joined_groups(joined, [0, 0, 2, 2]) == joined
    assert with_joined_groups(joined, range(4)) == cases


def test_given_groups_of_the_same_name_in_two_sets_stay_apart_ever_after():
    cases = [case(0, "p1", "A"), case(1, "p1", "B"), case(2, "p2", "B")]
    merged = with_joined_groups(cases, [0, 1, 0], [0, 1, 1])
    assert [one.group for one in merged] == ["p1", "p1-2", "p1"]
    assert [one.group for one in with_joined_groups(merged, range(3))] == ["p1", "p1-2", "p2"]


def test_plain_images_of_equal_pixels_are_no_repeated_photographs():
    black, tissue = np.full((48, 64, 3), 3, np.uint8), np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    prints = [fingerprint(image) for image in (black, tissue.repeat(8, 0).repeat(8, 1), black, tissue.repeat(8, 0).repeat(8, 1))]  # fmt: skip
    assert photographs(prints) == [0, 1, 2, 1]


rows = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c", "c3"]), st.sampled_from("XY"), st.integers(0, 8), st.integers(0, 1)),
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_nothing_that_belongs_together_is_ever_parted_and_twice_changes_nothing(rows):
    cases = [case(number, group, dataset) for number, (group, dataset, _, _) in enumerate(rows)]
    photographs = [row[2] for row in rows]
    sets = [row[3] for row in rows]
    groups = joined_groups(cases, photographs, sets)
    own = [group or one.id for group, one in zip(groups, cases, strict=True)]
    for one in range(len(rows)):
        for other in range(one):
            same_group = cases[one].group and cases[one].group == cases[other].group
            alike = sets[one] == sets[other] or cases[one].dataset == cases[other].dataset
            if photographs[one] == photographs[other] or (same_group and alike):
                assert own[one] == own[other]
    again = [Case(c.id, c.file_name, c.findings, c.split, group=g, dataset=c.dataset)
             for c, g in zip(cases, groups, strict=True)]  # fmt: skip
    assert joined_groups(again, photographs) == groups


@settings(max_examples=40, deadline=None)
@given(rows)
def test_no_more_is_joined_than_must_be(rows):
    """Each group hangs together: from any case all others are reached over shared photographs and given groups."""
    cases = [case(number, group, dataset) for number, (group, dataset, _, _) in enumerate(rows)]
    photographs = [row[2] for row in rows]
    members = defaultdict(list)
    for index, group in enumerate(joined_groups(cases, photographs)):
        members[group or cases[index].id].append(index)
    for inside in members.values():
        reached, waiting = {inside[0]}, [inside[0]]
        while waiting:
            one = waiting.pop()
            for other in inside:
                linked = photographs[one] == photographs[other] or (
                    cases[one].group and cases[one].group == cases[other].group
                )
                if linked and other not in reached:
                    reached.add(other)
                    waiting.append(other)
        assert reached == set(inside)


def test_groups_in_two_splits_are_told_with_their_counts():
    cases = [case(0, "g", split="train"), case(1, "g", split="test"), case(2, "g", split="test"), case(3)]
    assert crossing_groups(cases) == {"g": {"train": 1, "test": 2}}
