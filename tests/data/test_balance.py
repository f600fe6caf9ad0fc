from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogalign.data.balance import balanced
from cogalign.data.case import Case


def case(number: int, finding: str, dataset: str = "a", **fields) -> Case:
    return Case(
        f"c{number}", f"images/c{number}.png", (finding,) if finding else (), "train", dataset=dataset, **fields
    )


def cases_of(**counts: int) -> list[Case]:
    kinds = [finding for finding, count in counts.items() for _ in range(count)]
    return [case(number, finding) for number, finding in enumerate(kinds)]


def taken(cases: list[Case]) -> Counter:
    return Counter(one.findings[0] if one.findings else "" for one in cases)


def test_one_take_changes_nothing():
    cases = cases_of(polyp=3, normal=9)
    assert balanced(cases, 1) == cases


def test_the_findings_of_a_data_set_are_evened_out_as_far_as_allowed():
    cases = cases_of(polyp=4, ulcer=1, normal=10)
    assert taken(balanced(cases, 3)) == {"polyp": 10, "ulcer": 3, "normal": 10}
    assert taken(balanced(cases, 2)) == {"polyp": 8, "ulcer": 2, "normal": 10}


def test_a_round_that_is_not_whole_is_spread_over_the_cases():
    found = Counter(one.id for one in balanced(cases_of(polyp=4, normal=6), 5))
    assert [found[f"c{number}"] for number in range(4)] == [1, 2, 1, 2]


def test_data_sets_are_not_evened_out_against_each_other():
    alone = [case(number, "polyp", "only polyps") for number in range(2)]
    assert balanced(alone + cases_of(polyp=5, normal=5)[2:], 9)[:2] == alone
    assert Counter(one.dataset for one in balanced(alone + cases_of(normal=9), 9)) == {"only polyps": 2, "a": 9}


def test_question_cases_are_taken_once():
    asked = [case(number, "", question="What?", answer="This.") for number in range(90, 97)]
    found = balanced(cases_of(polyp=1, normal=3) + asked, 9)
    assert taken(found) == {"polyp": 3, "normal": 3, "": 7}


def test_two_findings_in_one_image_are_a_kind_of_their_own():
    both = Case("b", "images/b.png", ("ulcer", "polyp"), "train", dataset="a")
    other = Case("d", "images/d.png", ("polyp", "ulcer"), "train", dataset="a")
    assert Counter(one.id for one in balanced([both, other, *cases_of(normal=4)], 4))["b"] == 2


def test_fewer_than_one_take_is_refused():
    with pytest.raises(ValueError, match="most: found 0"):
        balanced([], 0)


@given(st.lists(st.tuples(st.sampled_from(["polyp", "ulcer", "normal"]), st.sampled_from("ab"))), st.integers(1, 5))
def test_every_case_stays_and_none_is_taken_too_often(kinds, most):
    cases = [case(number, finding, dataset) for number, (finding, dataset) in enumerate(kinds)]
    found = balanced(cases, most)
    assert found[: len(cases)] == cases
    assert all(1 <= number <= most for number in Counter(one.id for one in found).values())
    for dataset in "ab":
        before, after = (taken([one for one in some if one.dataset == dataset]) for some in (cases, found))
        for finding, number in before.items():
            assert after[finding] == min(max(before.values()), most * number)
