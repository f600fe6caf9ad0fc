import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from cogalign.data.case import Box, Case
from cogalign.data.caseset import METADATA, CaseSetWriter, read_case_set, write_metadata
from cogalign.data.check import Problem, check_case_set, format_table
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.images import fingerprint

IMAGE = np.full((20, 24, 3), 90, np.uint8)
MASK = np.zeros((20, 24), bool)
MASK[2:6, 3:9] = True


def lesion(number: int) -> Case:
    return Case(f"c{number}", f"images/c{number}.png", ("polyp",), "train", "colon",
                mask_file_name=f"masks/c{number}.png", boxes=(Box("polyp", 3, 2, 9, 6),))  # fmt: skip


@pytest.fixture
def root(tmp_path):
    with CaseSetWriter(tmp_path / "set") as writer:
        for number in range(3):
            writer.add(lesion(number), IMAGE, MASK)
    return tmp_path / "set"


def rewrite(root, *cases):
    rows = [json.dumps(case.to_row() if isinstance(case, Case) else case) for case in cases]
    (root / METADATA).write_text("\n".join(rows) + "\n")


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


def test_a_sound_case_set_has_no_problem(root):
    assert check_case_set(root) == []


@pytest.mark.parametrize(
    ("change", "field", "found", "wanted"),
    [
        ({"findings": ("polpy",)}, "findings", "polpy", "'polyp'"),
        ({"findings": ("polyp", "normal")}, "findings", "normal", "alone"),
        ({"organ": "colonn"}, "organ", "colonn", "nearest: 'colon'"),
        ({"file_name": "images/none.png"}, "file_name", "no such image", "whole image"),
        ({"file_name": "../c1.png"}, "file_name", "../c1.png", "inside"),
        ({"file_name": "/etc/passwd"}, "file_name", "/etc/passwd", "inside"),
        ({"mask_file_name": "link/outside.png"}, "mask_file_name", "symbolic link", "inside"),
        ({"mask_file_name": "masks/small.png"}, "mask_file_name", "8 x 9", "24 x 20"),
        ({"mask_file_name": "masks/empty.png"}, "mask_file_name", "empty", "polyp is focal"),
        ({"file_name": "images/cut.png"}, "file_name", "not a readable image", "whole image"),
        ({"file_name": "images/test-1.png"}, "file_name", "test-1", "testx-1"),
        ({"boxes": (Box("polyp", 3, 2, 25, 6),)}, "boxes", "25", "24 x 20"),
        ({"boxes": (Box("polyp", -1, 2, 5, 6),)}, "boxes", "-1", "24 x 20"),
        ({"boxes": (Box("polyp", 9, 2, 9, 6),)}, "boxes", "9", "xmin < xmax"),
        ({"boxes": (Box("poly", 3, 2, 9, 6),)}, "boxes", "poly", "'polyp'"),
        ({"id": "c0"}, "id", "line 1", "once"),
        ({"file_name": "images//c0.png"}, "file_name", "line 1", "once"),
        ({"counterfactual_of": "c77"}, "counterfactual_of", "c77", "source_file_name"),
        ({"group": "c0", "split": "test"}, "group", "'train'", "one split"),
    ],
)
def test_each_problem_is_found_with_its_line(root, change, field, found, wanted):
    (root / "link").symlink_to(root.parent)
    Image.fromarray(np.full((9, 8), 255, np.uint8)).save(root / "masks/small.png")
    Image.fromarray(MASK).save(root.parent / "outside.png")
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(root / "masks/empty.png")
    Image.fromarray(IMAGE).save(root / "images/test-1.png")
    (root / "images/cut.png").write_bytes((root / "images/c0.png").read_bytes()[:60])
    rewrite(root, lesion(0), replace(lesion(1), **change), lesion(2))
    problem = only(check_case_set(root))
    assert (problem.line, problem.field) == (2, field)
    assert problem.case_id == change.get("id", "c1")
    assert found in problem.found and wanted in problem.wanted


def test_rows_that_do_not_parse_are_listed_and_the_others_checked(root):
    lines = ["{", json.dumps([1]), json.dumps({"id": "x"}), json.dumps(replace(lesion(0), organ="liver").to_row())]
    (root / METADATA).write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    problems = check_case_set(root)
    assert [(p.line, p.field) for p in problems] == [(1, "row"), (2, "row"), (3, "file_name"), (4, "organ"), (5, "row")]
    assert problems[2].case_id == "x" and problems[2].wanted == "a non-empty text"


def test_a_missing_folder_or_metadata_or_an_empty_one_is_one_problem(tmp_path):
    assert "no folder" in only(check_case_set(tmp_path / "none")).found
    assert only(check_case_set(tmp_path)).field == METADATA
    (tmp_path / METADATA).write_text("\n")
    assert only(check_case_set(tmp_path)).found == "no case"


def test_a_counterfactual_with_its_source_image_may_stand_alone(root):
    rewrite(root, replace(lesion(0), counterfactual_of="elsewhere", source_file_name="images/c1.png"))
    assert check_case_set(root) == []


def test_a_case_that_only_asks_and_answers_needs_no_finding(root):
    asks = replace(lesion(1), findings=(), question="How many polyps?", answer="One.")
    rewrite(root, lesion(0), asks, replace(asks, id="c2", file_name="images/c2.png", answer=""))
    problem = only(check_case_set(root))
    assert (problem.line, problem.field) == (3, "findings") and "question and answer" in problem.wanted


def test_cases_that_are_left_out_may_be_of_a_group_in_a_split(root):
    rewrite(root, replace(lesion(0), group="p"), replace(lesion(1), group="p", split="left_out"),
            replace(lesion(2), group="p", split="test"))  # fmt: skip
    problem = only(check_case_set(root))
    assert (problem.line, problem.field) == (3, "group")


def many(root, number: int) -> list[Case]:
    """Cases with images of their own, enough for processes; each tenth has a broken image."""
    cases = []
    for n in range(number):
        image = np.random.default_rng(n).integers(0, 255, (20, 24, 3), np.uint8)
        name = f"images/m{n}.png"
        Image.fromarray(image).save(root / name)
        if n % 10 == 7:
            (root / name).write_bytes((root / name).read_bytes()[:90])
        cases.append(Case(f"m{n}", name, ("normal",), "train", organ="colonn" if n % 9 == 0 else "colon"))
    return cases


def test_processes_find_the_same_problems_in_the_order_of_the_lines(root):
    rewrite(root, *many(root, 80))
    found = check_case_set(root, workers=2)
    assert found == check_case_set(root, workers=1)
    assert [problem.line for problem in found] == sorted(
        n + 1 for n in range(80) for _ in range((n % 10 == 7) + (n % 9 == 0))
    )


def test_splits_after_a_check_decode_nothing(root, monkeypatch):
    cases = [one for number, one in enumerate(many(root, 12)) if number != 7]
    rewrite(root, *cases)
    check_case_set(root)
    case_set = read_case_set(root)
    fresh = [fingerprint(np.asarray(case_set.image(case))) for case in cases]
    monkeypatch.setattr("cogalign.data.fingerprints.load_rgb", lambda path: pytest.fail(f"{path} is decoded again"))
    for known, new in zip(fingerprints_of(case_set), fresh, strict=True):
        assert (known.digest, known.bits, known.size) == (new.digest, new.bits, new.size)
        assert np.array_equal(known.thumbnail, np.rint(new.thumbnail))


def test_a_folder_that_cannot_be_written_to_is_checked_all_the_same(root):
    (root / "fingerprints.npz").mkdir()
    assert check_case_set(root) == []


def test_the_table_shows_markup_as_it_is_and_counts_what_it_leaves_out():
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(format_table([Problem(n, "[red]c[/red]", "organ", "x\ny", "z") for n in range(5)], limit=3))
    text = console.export_text()
    assert "5 problems" in text and "[red]c[/red]" in text and "and 2 more" in text and "x y" in text


plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(list(lesion(0).to_row())), plain_json, max_size=6), st.binary(max_size=40))
def test_bad_content_never_raises(tmp_path_factory, changes, junk):
    root = tmp_path_factory.mktemp("set")
    (root / METADATA).write_bytes(json.dumps({**lesion(0).to_row(), **changes}).encode() + b"\n" + junk)
    (root / "images").mkdir()
    (root / "images/c0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + junk)
    problems = check_case_set(root)
    assert problems
    Console(file=open("/dev/null", "w", encoding="utf-8")).print(format_table(problems))  # noqa: SIM115


def test_questions_on_one_image_may_share_its_file(tmp_path):
    cases = [Case(name, "images/a.png", (), "train", group="a", question=f"{name}?", answer="yes") for name in "pq"]
    with CaseSetWriter(tmp_path) as writer:
        writer.add(cases[0], IMAGE)
    write_metadata(tmp_path, [case.to_row() for case in cases])
    assert check_case_set(tmp_path) == []
    write_metadata(tmp_path, [cases[0].to_row(), replace(cases[1], group="b").to_row()])
    assert [problem.field for problem in check_case_set(tmp_path)] == ["file_name"]
    write_metadata(tmp_path, [cases[0].to_row(), replace(cases[1], findings=("normal",), question="").to_row()])
    assert [problem.field for problem in check_case_set(tmp_path)] == ["file_name"]
