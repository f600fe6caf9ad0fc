from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from cogalign.cognition.taxonomy import SINGLE_LABELS, single_label
from cogalign.data.case import Case
from cogalign.data.protocol import paper_split, read_protocol

PAPER = read_protocol()
SIZES = {"CrohnIPI": 1200, "GastroVision": 1900, "HyperKvasir": 2700, "Kvasir-Capsule": 5000, "SEE-AI": 14700}
TEST = {"CrohnIPI": 206, "GastroVision": 351, "HyperKvasir": 518, "Kvasir-Capsule": 939, "SEE-AI": 2765}


def five_sets(scale: float = 1.0, groups: bool = False) -> list[Case]:
    """Five sets in which every single label occurs, and 60 combinations in SEE-AI."""
    pairs = list(combinations([name for name in SINGLE_LABELS if name != "normal"], 2))[:60]
    rng = np.random.default_rng(0)
    cases = []
    for title, size in SIZES.items():
        for number in range(round(size * scale)):
            findings = (SINGLE_LABELS[int(rng.integers(23, size=2).min())],)
            if title == "SEE-AI" and number % 9 == 0:
                findings = tuple(sorted(pairs[min(number // 9 % 71, 59) if number < 9 * 500 else number // 9 % 20]))
            group = f"{title}-{number // 20}" if groups else ""
            cases.append(Case(f"{title}-{number}", "x.png", findings, "train", group=group, dataset=title))
    return cases


def test_the_protocol_is_the_papers():
    assert {source.names[0]: source.test for source in PAPER.sources} == TEST
    assert (PAPER.test, PAPER.train, PAPER.labels, PAPER.combinations) == (4779, 19736, len(SINGLE_LABELS), 49)
    assert PAPER.test_share == pytest.approx(0.195, abs=5e-4) and sum(source.several for source in PAPER.sources) == 235
    text = " ".join(PAPER.open)
    for word in ("Which images", "23 labels", "49 combinations", "Patients", "Validation", "web search"):
        assert word in text


def test_by_image_the_numbers_are_exactly_those_of_the_paper():
    cases = five_sets()
    found, notes = paper_split(cases, PAPER, seed=3, grouped=False)
    counts = Counter(one.split for one in found)
    assert (counts["test"], counts["train"]) == (4779, 19736) and counts["left_out"] == len(cases) - 24515
    assert Counter(one.dataset for one in found if one.split == "test") == TEST
    assert sum(len(one.findings) > 1 for one in found if one.split == "test") == 235
    used = [one for one in found if one.split != "left_out"]
    assert len({one.findings for one in used if len(one.findings) > 1}) == 49
    assert {one.findings[0] for one in used if len(one.findings) == 1} == set(SINGLE_LABELS)
    for label, total in Counter(one.findings for one in used if len(one.findings) == 1).items():
        tests = sum(one.split == "test" and one.findings == label for one in used)
        assert abs(tests - PAPER.test_share * total) <= 5  # one a data set
    assert any("11 rarer combinations" in note for note in notes) and any("by image" in note for note in notes)
    assert any("no validation split" in note for note in notes)


def test_the_seed_draws_the_same_cases_in_any_order():
    cases = five_sets(0.05)
    for grouped in (False, True):
        first = {one.id: one.split for one in paper_split(cases, PAPER, 3, grouped)[0]}
        assert {one.id: one.split for one in paper_split(cases[::-1], PAPER, 3, grouped)[0]} == first
        assert {one.id: one.split for one in paper_split(cases, PAPER, 4, grouped)[0]} != first


def test_by_group_no_group_crosses_and_the_sizes_are_nearly_the_papers():
    found, notes = paper_split(five_sets(groups=True), PAPER, seed=3)
    homes: dict[str, set[str]] = {}
    for one in found:
        if one.split != "left_out":
            homes.setdefault(one.group, set()).add(one.split)
    assert all(len(home) == 1 for home in homes.values())
    counts = Counter((one.dataset, one.split) for one in found)
    for title, wanted in TEST.items():
        assert 0.85 * wanted <= counts[title, "test"] <= wanted
        assert counts[title, "train"] <= round(wanted / PAPER.test_share) - wanted + 1
    assert any("split by group" in note for note in notes)


def test_missing_and_small_sources_are_told_and_taken_in_proportion():
    cases = [one for one in five_sets(0.1) if one.dataset != "CrohnIPI"]
    found, notes = paper_split(cases, PAPER, 3, grouped=False)
    text = "\n".join(notes)
    assert "CrohnIPI, cases with one label: missing, the paper has about 1057" in text
    assert "HyperKvasir, cases with one label: found 270, the paper has about 2657; in proportion 53 go to test" in text
    counts = Counter((one.dataset, one.split) for one in found)
    assert counts["HyperKvasir", "test"] == 53 and counts["HyperKvasir", "train"] == 217


def test_what_the_protocol_does_not_name_is_left_out_and_told():
    cases = five_sets(0.02)
    odd = [Case("o1", "x.png", ("polyp",), "train", dataset="PolypGen"),
           Case("o2", "x.png", (), "train", dataset="HyperKvasir", question="q", answer="a"),
           Case("o3", "x.png", ("erosion", "polyp"), "train", dataset="GastroVision")]  # fmt: skip
    found, notes = paper_split([*odd, *cases], PAPER, 3)
    assert [one.split for one in found[:3]] == ["left_out"] * 3
    assert any("2 cases are left out" in note for note in notes)
    assert any("1 cases have several labels in a set of single labels" in note for note in notes)
    with pytest.raises(ValueError, match="found no case of its data sets"):
        paper_split(odd[:1], PAPER, 3)


def test_finer_findings_count_under_their_single_label_and_stay_what_they_are():
    cases = [
        Case(f"h{n}", "x.png", ("hemorrhoids",) if n < 3 else ("varices",), "train", dataset="HyperKvasir")
        for n in range(40)
    ]
    found, notes = paper_split(cases, PAPER, 3, grouped=False)
    assert [one.findings for one in found] == [one.findings for one in cases]
    assert single_label("hemorrhoids") == "varices"
    assert any("single labels: found 1 of 23" in note for note in notes)


@pytest.mark.parametrize("grouped", [False, True])
def test_validation_comes_from_train_when_it_is_asked_for(grouped):
    cases = five_sets(0.1, groups=True)
    plain = {one.id: one.split for one in paper_split(cases, PAPER, 3, grouped)[0]}
    found, notes = paper_split(cases, PAPER, 3, grouped, validation_share=0.1)
    taken = [one for one in found if one.split == "validation"]
    train = sum(split == "train" for split in plain.values())
    assert abs(len(taken) - 0.1 * train) <= 60 and all(plain[one.id] == "train" for one in taken)
    assert all(one.split == plain[one.id] for one in found if one.split != "validation")
    assert any("validation: 10% of train; the paper has none" in note for note in notes)
    with pytest.raises(ValueError, match="validation_share: found 1"):
        paper_split(cases, PAPER, 3, grouped, validation_share=1)
