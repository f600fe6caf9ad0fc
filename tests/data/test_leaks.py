import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter, read_case_set
from cogalign.data.duplicates import neighbours
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.groups import photographs
from cogalign.data.images import fingerprint, load_rgb
from cogalign.data.leaks import ALIKE_BITS, ALIKE_DIFFERENCE, FAILING, WARNING, find_leaks, write_leak_report


def case(name: str, split: str, **known) -> Case:
    return Case(name, f"images/{name}.png", ("polyp",), split, dataset="own", **known)


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)


def write(root, *pairs):
    with CaseSetWriter(root) as writer:
        for one, image in pairs:
            source = picture(99) if one.source_file_name else None
            writer.add(one, image, source=source)
    return read_case_set(root)


CLEAN = [(case(f"a{n}", "train"), picture(n)) for n in range(3)] + [
    (case(f"b{n}", "test"), picture(9 + n)) for n in range(3)
]


def kinds(report) -> dict[str, int]:
    return {kind: number for kind, number in report.counts.items() if number}


def test_a_clean_case_set_has_no_leak_and_no_picture(tmp_path):
    case_set = write(tmp_path, *CLEAN)
    (tmp_path / "leaks.jpg").write_bytes(b"of an earlier report")
    report = find_leaks(case_set)
    assert not report.failed and report.leaks == [] and report.splits == {"train": 3, "test": 3}
    write_leak_report(report, tmp_path)
    assert json.loads((tmp_path / "leaks.json").read_text())["failed"] is False
    assert "There is no leak" in (tmp_path / "leaks.md").read_text() and not (tmp_path / "leaks.jpg").exists()


@pytest.mark.parametrize(
    ("kind", "one", "other", "image"),
    [
        ("same pixels", {}, {}, picture(50)),
        ("same photograph", {}, {}, picture(50).resize((80, 60))),
        ("group", {"group": "p1"}, {"group": "p1"}, picture(60)),
        ("made from", {}, {"counterfactual_of": "one", "intervention": "removal"}, picture(60)),
        ("made from", {}, {"background_of": "one"}, picture(60)),
        ("same name", {"attributes": {"file": "7.jpg"}}, {"attributes": {"file": "7.jpg"}}, picture(60)),
    ],
)
def test_each_kind_of_leak_is_found_and_names_both_cases(tmp_path, kind, one, other, image):
    case_set = write(
        tmp_path, *CLEAN, (case("one", "train", **one), picture(50)), (case("other", "test", **other), image)
    )
    report = find_leaks(case_set)
    assert kinds(report) == {kind: 1}
    assert report.failed == (kind in FAILING) != (kind in WARNING)
    assert {report.leaks[0].first.id, report.leaks[0].second.id} == {"one", "other"}
    text = "\n".join(report.lines())
    assert kind in text and "images/one.png" in text and "images/other.png" in text


def test_another_shot_of_nearly_the_same_looks_alike_and_warns(tmp_path):
    other = Image.blend(picture(50), picture(150), 0.25)
    case_set = write(tmp_path, *CLEAN, (case("one", "train"), picture(50)), (case("other", "validation"), other))
    report = find_leaks(case_set)
    assert kinds(report) == {"looks alike": 1} and not report.failed
    leak = report.leaks[0]
    assert leak.bits is not None and leak.difference is not None and leak.difference > 6


def framed(image: Image.Image) -> Image.Image:
    frame = Image.new("RGB", (image.width + 60, image.height + 30))
    frame.paste(image, (50, 10))
    return frame


def test_whatever_a_split_would_join_fails_when_it_crosses(tmp_path):
    """In a black frame neither hash nor thumbnail agree: only the search that `split` uses finds it."""
    case_set = write(
        tmp_path, *CLEAN, (case("one", "train"), picture(50)), (case("other", "test"), framed(picture(50)))
    )
    one, other = fingerprints_of(case_set)[-2:]
    assert neighbours([one, other], ALIKE_BITS, ALIKE_DIFFERENCE) == []
    report = find_leaks(case_set)
    assert kinds(report) == {"same photograph": 1} and report.failed
    assert {report.leaks[0].first.id, report.leaks[0].second.id} == {"one", "other"}
    assert report.leaks[0].bits is not None and report.leaks[0].bits > ALIKE_BITS


def test_a_chain_over_a_third_copy_is_told_once_for_each_pair_of_splits(tmp_path):
    copies = [picture(50), framed(picture(50)), framed(framed(picture(50)))]
    cases = [case("one", "train"), case("two", "validation"), case("three", "test")]
    report = find_leaks(write(tmp_path, *CLEAN, *zip(cases, copies, strict=True)))
    assert kinds(report) == {"same photograph": 3}
    left = [replace(cases[0], id="left", file_name="images/left.png", split="left_out"), *cases[1:]]
    report = find_leaks(write(tmp_path / "left", *CLEAN, *zip(left, copies, strict=True)))
    assert kinds(report) == {"same photograph": 1}


def test_plain_images_are_told_once_and_fail_nothing(tmp_path):
    black = Image.new("RGB", (160, 120), (3, 3, 3))
    pairs = [(case(f"p{n}", "train" if n % 2 else "test", group=f"v{n}"), black) for n in range(6)]
    report = find_leaks(write(tmp_path, *CLEAN, *pairs))
    assert kinds(report) == {"plain image": 1} and not report.failed


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"counterfactual_of": "gone"}, {"counterfactual_of": "gone"}),
        ({"counterfactual_of": "gone"}, {"counterfactual_of": "else", "background_of": "gone"}),
        ({"counterfactual_of": "x", "background_of": "gone"}, {"counterfactual_of": "y", "background_of": "gone"}),
    ],
)
def test_counterfactuals_of_a_case_that_is_not_here_may_not_cross_either(tmp_path, first, second):
    pairs = [(case("one", "train", **first), picture(50)), (case("other", "test", **second), picture(60))]
    report = find_leaks(write(tmp_path, *CLEAN, *pairs))
    assert kinds(report) == {"made from": 1} and report.leaks[0].what == "gone"


def test_real_copies_with_and_without_frame_or_crop_are_found(realdata, tmp_path):
    files = [sorted((realdata / folder).iterdir()) for folder in ("Kvasir-SEG/images", "kvasir-dataset-v2/polyps")]
    labels = photographs([fingerprint(np.asarray(load_rgb(path))) for path in (*files[0], *files[1])])
    again = [label for label, number in Counter(labels).items() if number > 1]
    assert again
    with CaseSetWriter(tmp_path) as writer:
        for index, label in enumerate(labels):
            if label in again:
                path = [*files[0], *files[1]][index]
                one = case(f"c{index}", "train" if index < len(files[0]) else "test", attributes={"label": label})
                writer.add(one, load_rgb(path))
    report = find_leaks(read_case_set(tmp_path))
    assert kinds(report) == {"same photograph": len(again)} and report.failed
    assert {leak.first.attributes["label"] for leak in report.leaks} == set(again)


def test_what_only_test_splits_share_and_what_is_left_out_is_no_leak(tmp_path):
    same = picture(50)
    case_set = write(tmp_path, *CLEAN, (case("one", "test_shifted", group="p"), same), (case("two", "test", group="p"), same),
                     (case("three", "left_out", group="p"), same))  # fmt: skip
    assert find_leaks(case_set).leaks == []
    taught = write(
        tmp_path / "taught", *CLEAN, (case("one", "Seen", group="p"), same), (case("two", "train", group="p"), same)
    )
    assert kinds(find_leaks(taught)) == {"same pixels": 1, "group": 1}


def test_the_report_is_written_with_a_picture_of_the_worst_pairs(tmp_path):
    pairs = [(case(f"{split[:2]}{n}", split), picture(50 + n)) for n in range(3) for split in ("train", "test")]
    pairs[0] = (replace(pairs[0][0], id="<b>*odd*</b>"), pairs[0][1])
    report = find_leaks(write(tmp_path, *pairs))
    write_leak_report(report, tmp_path)
    content = json.loads((tmp_path / "leaks.json").read_text())
    assert content["failed"] is True and content["counts"]["same pixels"] == 3
    assert {place["split"] for place in content["leaks"][0]["cases"]} == {"train", "test"}
    text = (tmp_path / "leaks.md").read_text()
    assert "**There are leaks.**" in text and "\\<b\\>\\*odd\\*\\</b\\>" in text
    with Image.open(tmp_path / "leaks.jpg") as sheet:
        assert sheet.width == 2 * 464 and sheet.height == 2 * 268
        cell = np.asarray(sheet)[44:268, :224].astype(int)
        assert cell.std() > 10  # a photograph, not blank


def test_a_real_photograph_at_another_size_and_quality_in_another_split_fails_and_names_both(realdata, tmp_path):
    files = (
        sorted((realdata / "Kvasir-SEG/images").iterdir())[:30:3]
        + sorted((realdata / "gastrovision").rglob("*.jpg"))[:30:3]
    )
    (tmp_path / "images").mkdir()
    rows = []
    for number, path in enumerate(files):
        image = load_rgb(path)
        image.save(tmp_path / f"images/{number}.jpg", quality=92)
        rows.append(
            case(f"c{number}", "train" if number % 2 else "test").to_row() | {"file_name": f"images/{number}.jpg"}
        )
    clean = tmp_path / "metadata.jsonl"
    clean.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_leaks(read_case_set(tmp_path)).leaks == []
    for number, (scale, quality) in enumerate([(0.5, 60), (1.4, 40), (0.3, 90)], start=1):
        image = load_rgb(files[number])
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size).save(tmp_path / f"images/copy{number}.jpg", quality=quality)
        split = "validation" if number % 2 else "train"
        rows.append(case(f"copy{number}", split).to_row() | {"file_name": f"images/copy{number}.jpg"})
    clean.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = find_leaks(read_case_set(tmp_path))
    assert report.failed and kinds(report) == {"same photograph": 3}
    pairs = [{leak.first.id, leak.second.id} for leak in report.leaks]
    assert all({f"c{number}", f"copy{number}"} in pairs for number in (1, 2, 3))
