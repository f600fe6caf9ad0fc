from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.data.official import official_splits


def case(
    number: int, official: str | None = None, fold: int | None = None, group: str = "", dataset: str = "A"
) -> Case:
    attributes = {"class": "polyps"}
    known = (
        attributes
        | ({"official_split": official} if official else {})
        | ({} if fold is None else {"official_fold": fold})
    )
    return Case(
        f"c{number}", f"images/c{number}.png", ("polyp",), "train", group=group, dataset=dataset, attributes=known
    )


def splits(cases) -> list[str]:
    return [one.split for one in cases]


def test_official_splits_are_taken_and_own_names_kept():
    found, notes = official_splits([case(0, "test"), case(1, "train"), case(2, "validation"), case(3, "Unseen")])
    assert splits(found) == ["test", "train", "validation", "Unseen"] and notes == []


def test_a_fold_is_test_and_the_others_train():
    cases = [case(n, fold=n % 5) for n in range(10)] + [case(10, "validation", dataset="B")]
    found, notes = official_splits(cases, fold=2)
    assert [n for n in range(10) if found[n].split == "test"] == [2, 7] and found[10].split == "validation"
    assert Counter(splits(found)) == {"test": 2, "train": 8, "validation": 1} and notes == []


def test_a_fold_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="fold: found 7, but A has the folds 0, 1"):
        official_splits([case(0, fold=0), case(1, fold=1)], fold=7)
    with pytest.raises(ValueError, match="found 0, but no case has"):
        official_splits([case(0, "train")], fold=0)
    with pytest.raises(ValueError, match="rest: found 'some'"):
        official_splits([case(0)], rest="some")  # type: ignore[arg-type]


@pytest.mark.parametrize(("rest", "where"), [("train", {"train"}), ("leave_out", {"left_out"}), ("stratify", {"train", "test", "validation"})])  # fmt: skip
def test_cases_without_an_official_split_are_told_and_go_where_it_is_said(rest, where):
    cases = [
        case(0, "train"),
        case(1, "test"),
        *(case(n) for n in range(2, 40)),
        *(case(n, dataset="B") for n in range(40, 50)),
    ]
    found, notes = official_splits(cases, rest=rest)
    assert splits(found)[:2] == ["train", "test"] and set(splits(found)[2:]) == where
    assert "A: 38 of 40 have no official split" in notes[0] and "polyps 38" in notes[0]
    assert "B: 10 of 10" in notes[1] and "the whole set" in notes[1]


def test_folds_without_a_chosen_one_are_told():
    _, notes = official_splits([case(n, fold=n % 2) for n in range(4)], rest="stratify")
    assert "name the fold" in notes[-1]


@pytest.mark.parametrize("rest", ["train", "stratify"])
def test_the_rest_never_leaks_into_an_official_test(rest):
    cases = [case(0, "test", group="p"), case(1, group="p"), case(2, "train", group="q"), case(3, group="q")]
    found, notes = official_splits(cases, rest=rest)
    assert splits(found) == ["test", "left_out", "train", "train"]
    assert any("1 cases without an official split are left out" in note for note in notes)


def test_crossing_groups_are_told_and_repaired_only_on_request():
    cases = [case(n, "train", group="p") for n in range(3)] + [case(3, "test", group="p")]
    cases += [case(4, "train", group="q"), case(5, "test", group="q"), case(6, "test", group="r"), case(7, group="p")]
    found, notes = official_splits(cases)
    assert splits(found) == ["train", "train", "train", "test", "train", "test", "test", "left_out"]
    assert "2 groups cross the official splits: left as they are" in notes[1]
    found, notes = official_splits(cases, repair=True)
    assert splits(found) == ["train"] * 4 + ["train", "train", "test", "train"]
    assert "2 cases moved to the larger side" in notes[1]


rows = st.lists(
    st.tuples(st.sampled_from(["train", "test", "validation", "Own", None]), st.integers(0, 6)), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from(["train", "leave_out", "stratify"]))
def test_after_repair_no_group_crosses_and_without_it_official_cases_stay(pairs, rest):
    cases = [case(n, official, group=f"g{group}") for n, (official, group) in enumerate(pairs)]
    found, _ = official_splits(cases, rest=rest)
    assert all(one.split == official for one, (official, _) in zip(found, pairs, strict=True) if official)
    repaired, _ = official_splits(cases, rest=rest, repair=True)
    homes: dict[str, set[str]] = {}
    for one in repaired:
        if one.split != "left_out":
            homes.setdefault(one.group, set()).add(one.split)
    assert all(len(home) == 1 for home in homes.values())
