import csv
import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogalign.cognition.taxonomy import lookup
from cogalign.data.case import Case
from cogalign.data.caseset import METADATA, CaseSetWriter, read_case_set
from cogalign.data.check import check_case_set
from cogalign.data.images import load_rgb
from cogalign.data.splits import assign_splits, split_case_set

FINDINGS = ["polyp", "ulcer", "erosion", "normal", "bleeding"]


def case(number: int, *findings: str, group: str = "", **known) -> Case:
    return Case(f"c{number}", f"images/c{number}.png", findings, "train", group=group, **known)


def counted(cases, key) -> Counter:
    return Counter((key(one), one.split) for one in cases)


rows = st.lists(
    st.tuples(
        st.lists(st.sampled_from(FINDINGS), min_size=1, max_size=3, unique=True), st.integers(0, 25), st.integers(0, 1)
    ),
    max_size=80,
)
case_lists = rows.map(
    lambda found: [
        case(number, *names, group=f"g{group}" if group < 20 else "", dataset=f"set {dataset}")
        for number, (names, group, dataset) in enumerate(found)
    ]
)


@settings(max_examples=60, deadline=None)
@given(case_lists, st.floats(0, 0.6), st.floats(0, 0.3), st.integers(0, 5))
def test_every_case_has_a_split_and_a_group_never_crosses(cases, test_share, validation_share, seed):
    found = assign_splits(cases, test_share, seed, validation_share)
    assert [replace(one, split="train") for one in found] == cases
    homes = defaultdict(set)
    for one in found:
        homes[one.group or one.id].add(one.split)
    assert all(len(names) == 1 and names <= {"train", "validation", "test"} for names in homes.values())
    for share, name in ((test_share, "test"), (validation_share, "validation")):
        assert share > 0 or not any(one.split == name for one in found)


@settings(max_examples=60, deadline=None)
@given(case_lists, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_cases_makes_no_difference(cases, seed, shuffler):
    other = list(cases)
    shuffler.shuffle(other)
    expected = {one.id: one.split for one in assign_splits(cases, 0.2, seed)}
    assert {one.id: one.split for one in assign_splits(other, 0.2, seed)} == expected


@settings(max_examples=60, deadline=None)
@given(case_lists, st.floats(0.01, 0.6), st.integers(0, 5))
def test_every_finding_is_in_train(cases, share, seed):
    found = assign_splits(cases, share, seed)
    learnt = {name for one in found if one.split == "train" for name in one.findings}
    assert learnt == {name for one in cases for name in one.findings}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(FINDINGS), min_size=10, max_size=300), st.floats(0.05, 0.5), st.integers(0, 5))
def test_shares_count_cases_to_within_one_a_finding(names, share, seed):
    found = assign_splits([case(number, name) for number, name in enumerate(names)], share, seed)
    for name, total in Counter(names).items():
        number = sum(one.split == "test" and one.findings == (name,) for one in found)
        assert abs(number - share * total) <= 1.001
        assert number >= 1 or total == 1


def test_groups_of_many_cases_count_by_their_cases():
    cases = [case(n, "polyp", group=f"video {n // 100}") for n in range(1000)] + [
        case(n, "polyp") for n in range(1000, 3000)
    ]
    for seed in range(5):
        counts = Counter(one.split for one in assign_splits(cases, 0.2, seed, 0.1))
        assert abs(counts["test"] - 600) <= 1 and abs(counts["validation"] - 300) <= 1


def test_combinations_and_sources_have_their_share_and_rare_ones_are_on_both_sides():
    cases = [case(n, "polyp", "erosion", dataset="A") for n in range(50)]
    cases += [case(n, "polyp", dataset="AB"[n % 2]) for n in range(50, 450)]
    cases += [case(n, "erosion", dataset="B") for n in range(450, 750)]
    cases += [case(n, "ulcer", "bleeding", dataset="B") for n in range(750, 752)]
    found = assign_splits(cases, 0.2, 1)
    both = counted(found, lambda one: (one.findings, one.dataset))
    for key, total in ((("polyp", "erosion"), "A"), 50), ((("polyp",), "A"), 200), ((("polyp",), "B"), 200):
        assert abs(both[key, "test"] - 0.2 * total) <= 1
        assert abs(both[key, "validation"] - 0.08 * total) <= 1.5
    assert {one.split for one in found[750:]} == {"train", "test"}


def test_real_label_tables_are_split_to_within_a_case_of_each_class(realdata):
    with (realdata / "full-tables/hyper-kvasir/labeled-images/image-labels.csv").open(encoding="utf-8") as file:
        table = [(row["Video file"], row["Finding"], "HyperKvasir") for row in csv.DictReader(file)]
    with (realdata / "full-tables/gastrovision/GastroVision_metadata.csv").open(encoding="utf-8") as file:
        table += [(f"{row['Class']}/{row['Filename']}", row["Class"], "GastroVision") for row in csv.DictReader(file)]
    cases = []
    for key, label, name in table:
        finding = lookup(label)
        assert finding is not None
        cases.append(Case(key, key, (finding.id,), "train", dataset=name, attributes={"class": label}))
    assert len(cases) == 18662
    found = assign_splits(cases, 0.2, 3)
    for key in (lambda one: one.findings, lambda one: (one.findings, one.dataset), lambda one: one.attributes["class"]):
        counts = counted(found, key)
        for name, total in Counter(key(one) for one in cases).items():
            assert abs(counts[name, "test"] - 0.2 * total) <= 2, name
    assert abs(sum(one.split == "test" for one in found) - 0.2 * 18662) <= 3


def test_seeds_draw_differently_and_bad_shares_are_refused():
    cases = [case(n, "polyp") for n in range(50)]
    assert assign_splits(cases, 0.2, 1) != assign_splits(cases, 0.2, 2)
    with pytest.raises(ValueError, match="test_share: found 1"):
        assign_splits(cases, 1, 1)
    with pytest.raises(ValueError, match=r"validation_share: found 0.5, wanted a share in \[0, 0.5\)"):
        assign_splits(cases, 0.5, 1, 0.5)
    assert assign_splits([], 0.2, 1) == []


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    with CaseSetWriter(tmp_path / "set") as writer:
        for number in range(40):
            small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)
            one = case(number, FINDINGS[number % 2], dataset="own", attributes={"file": f"{number}.jpg"})
            writer.add(one, image)
            if number < 4:
                copy = replace(one, id=f"d{number}", file_name=f"images/d{number}.png")
                writer.add(copy, image.resize((128, 96)))
    return tmp_path / "set"


def test_a_case_set_is_split_in_place_and_nothing_else_changes(root):
    before = read_case_set(root).cases
    summary = split_case_set(root, test_share=0.25, validation_share=0.1, seed=2)
    after = read_case_set(root).cases
    assert [replace(one, split="train", group="") for one in after] == before
    assert Counter(one.split for one in after) == summary.splits
    assert summary.joined == 4 and summary.groups == 40 and not summary.failed
    by_id = {one.id: one for one in after}
    assert all(by_id[f"c{n}"].split == by_id[f"d{n}"].split and by_id[f"d{n}"].group == f"c{n}" for n in range(4))
    assert check_case_set(root) == []
    content = json.loads((root / "split.json").read_text())
    assert content["splits"] == summary.splits and content["settings"]["seed"] == 2 and content["failed"] is False
    assert content["findings"]["polyp"] == dict(Counter(one.split for one in after if one.findings == ("polyp",)))
    assert (root / "leaks.md").read_text().count("There is no leak") == 1
    assert "polyp, test: " in (root / "split.svg").read_text()
    lines = "\n".join(summary.lines())
    assert "4 cases joined a group" in lines and "no leak between the splits train, validation, test" in lines


def test_splitting_twice_and_from_rows_in_another_order_gives_the_same(root):
    split_case_set(root, seed=5)
    first = {one.id: (one.split, one.group) for one in read_case_set(root).cases}
    (root / METADATA).write_text("".join(reversed((root / METADATA).read_text().splitlines(keepends=True))))
    split_case_set(root, seed=5)
    assert {one.id: (one.split, one.group) for one in read_case_set(root).cases} == first


def test_an_error_leaves_the_metadata_as_they_were(root):
    before = (root / METADATA).read_bytes()
    with pytest.raises(ValueError, match="method: found 'random'"):
        split_case_set(root, "random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fold: found 3, but no case has"):
        split_case_set(root, "official", fold=3)
    with pytest.raises(ValueError, match="found no case of its data sets"):
        split_case_set(root, "paper")
    assert (root / METADATA).read_bytes() == before


def test_real_photographs_repeated_in_another_size_share_a_split(realdata, tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        for number, path in enumerate(sorted((realdata / "Kvasir-SEG/images").iterdir())[:20]):
            image = load_rgb(path)
            writer.add(case(number, "polyp"), image.resize((200, 160)))
            writer.add(case(100 + number, "polyp"), image.resize((90, 80)))
    assert split_case_set(tmp_path, test_share=0.3).joined == 20
    homes = {one.id: one.split for one in read_case_set(tmp_path).cases}
    assert all(homes[f"c{n}"] == homes[f"c{100 + n}"] for n in range(20)) and len(set(homes.values())) == 3
