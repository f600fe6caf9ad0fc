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
    assert [
        replace(one, split="train", group="", attributes=one.attributes | {"given_group": None}) for one in after
    ] == [replace(one, attributes=one.attributes | {"given_group": None}) for one in before]
    assert {one.id for one in after if "given_group" in one.attributes} == {f"{a}{n}" for a in "cd" for n in range(4)}
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
    assert (
        "4 cases joined another group" in lines
        and "largest group: 'c0' with 2 cases" in lines
        and "no leak between the splits train, validation, test" in lines
    )


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


def noise(seed: int, size: int = 6) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)


def drop(root, *ids: str) -> None:
    lines = (root / METADATA).read_text().splitlines(keepends=True)
    (root / METADATA).write_text("".join(line for line in lines if json.loads(line)["id"] not in ids))


def test_a_black_frame_in_every_video_joins_no_videos(tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        for number in range(60):
            black = number % 6 == 0
            image = Image.new("RGB", (64, 48), (2, 2, 2)) if black else noise(number)
            writer.add(case(number, "polyp", group=f"video-{number // 6}"), image)
    summary = split_case_set(tmp_path)
    after = read_case_set(tmp_path).cases
    assert summary.groups == 10 and summary.given_joined == 0 and not summary.failed
    assert Counter(one.group for one in after) == {f"video-{n}": 6 for n in range(10)}
    assert set(summary.splits) == {"train", "validation", "test"}
    assert summary.leaks.counts["plain image"] > 0 == summary.leaks.counts["same pixels"]


def chained(root):
    """Ten videos, of which every one shows a frame of the next."""
    with CaseSetWriter(root) as writer:
        for video in range(10):
            for frame in range(4):
                seed = 100 * (video + 1) if frame == 3 else 100 * video + frame
                writer.add(case(10 * video + frame, "polyp", group=f"video-{video}"), noise(seed))
        writer.add(case(200, "polyp", group="video-9"), noise(100 * 10))
    return root


def test_a_split_without_test_cases_fails_and_says_what_was_joined(tmp_path):
    summary = split_case_set(chained(tmp_path))
    assert summary.empty == ["test"] and summary.failed and not summary.leaks.failed
    assert summary.given_joined == 10 and summary.largest == ("video-0", 41, 10)
    text = "\n".join(summary.lines())
    assert "largest group: 'video-0' with 41 cases (100.0%), which joins 10 given groups" in text
    assert "10 given groups (patients, videos) were joined to others" in text and "EMPTY: test: 1 groups" in text
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["failed"] is True and content["empty"] == ["test"]
    assert content["largest_group"] == {"name": "video-0", "cases": 41, "given_groups": 10}


def test_videos_come_apart_again_once_the_frames_that_joined_them_are_gone(tmp_path):
    split_case_set(chained(tmp_path))
    joined = read_case_set(tmp_path).by_id
    assert joined["c93"].group == "video-0" and joined["c93"].attributes["given_group"] == "video-9"
    drop(tmp_path, *(f"c{10 * video + 3}" for video in range(10)))
    summary = split_case_set(tmp_path)
    assert summary.groups == 10 and summary.given_joined == 0 and not summary.failed
    after = read_case_set(tmp_path).by_id
    assert after["c90"].group == "video-9" and not any("given_group" in one.attributes for one in after.values())


def test_wanted_splits_too_small_for_a_single_case_may_be_empty(tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        for number in range(6):
            writer.add(case(number, "polyp"), noise(number))
    summary = split_case_set(tmp_path, test_share=0.1, validation_share=0.001)
    assert set(summary.splits) == {"train", "test"} and not summary.failed


def counterfactuals(root, *, sources: bool, backgrounds: bool = False):
    """Twenty cases without groups and two counterfactuals of each, of other pictures."""
    with CaseSetWriter(root) as writer:
        for number in range(20):
            if sources:
                writer.add(case(number, "polyp"), noise(number))
            for kind in ("removal", "transplant"):
                known = {"counterfactual_of": f"c{number}", "intervention": kind}
                if backgrounds and kind == "transplant":
                    known["background_of"] = f"c{(number * 7 + 3) % 20}"
                name = f"c{number}-{kind}"
                one = replace(case(number, "polyp"), id=name, file_name=f"images/{name}.png", **known)
                writer.add(one, noise(1000 + 10 * number + (kind == "removal")))
    return root


def shown_in(cases) -> dict[str, set[str]]:
    """The splits in which each photograph is shown, as itself or in a counterfactual."""
    homes = defaultdict(set)
    for one in cases:
        if one.split != "left_out":
            for origin in {one.counterfactual_of or one.id, one.background_of or one.counterfactual_of or one.id}:
                homes[origin].add(one.split)
    return homes


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("method", ["stratified", "official"])
def test_counterfactuals_of_one_case_never_cross_be_it_here_or_not(tmp_path, sources, method):
    summary = split_case_set(counterfactuals(tmp_path, sources=sources), method, rest="stratify")
    cases = read_case_set(tmp_path).cases
    assert all(len(home) == 1 for home in shown_in(cases).values()) and not summary.failed
    assert summary.groups == 20 and set(summary.splits) == {"train", "validation", "test"}


@pytest.mark.parametrize("sources", [True, False])
def test_a_transplant_onto_an_image_of_another_split_is_left_out_and_told(tmp_path, sources):
    summary = split_case_set(counterfactuals(tmp_path, sources=sources, backgrounds=True), test_share=0.3)
    cases = read_case_set(tmp_path).cases
    out = [one for one in cases if one.split == "left_out"]
    assert out and all(one.background_of for one in out) and len(out) < 20
    assert all(len(home) == 1 for home in shown_in(cases).values()) and not summary.failed
    assert any(note.startswith(f"{len(out)} transplants are left out") for note in summary.notes)


def test_an_error_before_the_end_keeps_metadata_and_reports_of_one_split(root, monkeypatch):
    from cogalign.data import leaks

    split_case_set(root, seed=1)
    before = {name: (root / name).read_bytes() for name in (METADATA, "split.json", "leaks.md")}

    def fails(*_: object, **__: object) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no memory"):
        patch.setattr(leaks, "find_leaks", fails)
        split_case_set(root, seed=2)
    assert {name: (root / name).read_bytes() for name in before} == before
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no memory"):
        patch.setattr(leaks, "write_leak_report", fails)
        split_case_set(root, seed=2)
    assert not any((root / name).exists() for name in ("split.json", "split.svg", "leaks.md", "leaks.json"))
    assert (root / METADATA).read_bytes() != before[METADATA]


def test_real_photographs_repeated_in_another_size_share_a_split(realdata, tmp_path):
    with CaseSetWriter(tmp_path) as writer:
        for number, path in enumerate(sorted((realdata / "Kvasir-SEG/images").iterdir())[:20]):
            image = load_rgb(path)
            writer.add(case(number, "polyp"), image.resize((200, 160)))
            writer.add(case(100 + number, "polyp"), image.resize((90, 80)))
    assert split_case_set(tmp_path, test_share=0.3).joined == 20
    homes = {one.id: one.split for one in read_case_set(tmp_path).cases}
    assert all(homes[f"c{n}"] == homes[f"c{100 + n}"] for n in range(20)) and len(set(homes.values())) == 3
