import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set, write_metadata
from cogalign.data.check import check_case_set
from cogalign.data.fingerprints import FINGERPRINTS, fingerprints_of
from cogalign.data.merge import CONFLICTS, DUPLICATES, QUARANTINE, merge_case_sets
from cogalign.data.sources import Licence, Source, read_sources, write_sources

FREE, CLOSED = Licence("CC BY 4.0", "yes", "yes"), Licence("research only", "ask", "no")


def picture(seed: int, scale: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((9, 12, 3)).astype(np.float32)
    smooth = cv2.resize(noise, (96, 72), interpolation=cv2.INTER_CUBIC)
    image = (smooth.clip(0, 1) * 255).astype(np.uint8)
    return image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def make(root: Path, title: str, *cases: tuple[int, dict], licence: Licence | None = FREE) -> Path:
    """A case set with one case for each (seed of the picture, fields of the case)."""
    with CaseSetWriter(root) as writer:
        for number, (seed, given) in enumerate(cases):
            given = {"id": f"c{number}", "findings": ("polyp",), "split": "train", "dataset": title, **given}
            image = picture(seed, given.pop("scale", 1.0))
            mask = np.ones(image.shape[:2], bool) if given.get("mask_file_name") else None
            source = picture(seed) if given.get("source_file_name") else None
            writer.add(Case(file_name=given.pop("file", f"images/{number}.png"), **given), image, mask, source)
    if licence is not None:
        write_sources(root, [Source(title.lower(), title, licence, "Someone 2020", "", len(cases))])
    return root


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_names_change_only_where_they_clash_and_files_are_shared(tmp_path):
    one = make(tmp_path / "one", "A", (1, {}), (2, {"mask_file_name": "masks/m.png"}))
    two = make(tmp_path / "two", "B", (3, {}), (4, {"id": "own", "file": "images/own.png"}))
    summary = merge_case_sets([one, two], tmp_path / "out")
    merged = read_case_set(tmp_path / "out")
    names = {case.id: case.file_name for case in merged.cases}
    assert names == {"c0": "images/0.png", "c1": "images/1.png", "two-c0": "images/two-0.png", "own": "images/own.png"}
    assert (summary.cases, summary.sets, summary.data_sets, summary.groups) == (4, 2, 2, 4)
    assert (summary.linked, summary.copied, summary.repeated) == (5, 0, 0)
    assert os.path.samefile(tmp_path / "out/images/two-0.png", two / "images/0.png")
    assert np.array_equal(np.asarray(merged.image(merged.by_id["two-c0"])), picture(3))
    assert merged.mask(merged.by_id["c1"]).all()
    assert check_case_set(merged.root) == []
    assert [(source.title, source.cases) for source in read_sources(merged.root)] == [("A", 2), ("B", 2)]
    assert not (merged.root / DUPLICATES).exists() and not (merged.root / CONFLICTS).exists()


def test_a_shared_photograph_joins_two_videos_and_the_copy_says_of_what(tmp_path):
    one = make(tmp_path / "one", "A", (1, {"group": "v1"}), (2, {"group": "v1"}), (3, {}))
    two = make(tmp_path / "two", "B", (1, {"group": "v2", "id": "x", "scale": 0.5}), (5, {"group": "v2", "id": "y"}))
    summary = merge_case_sets([one, two], tmp_path / "out")
    cases = read_case_set(tmp_path / "out").by_id
    assert {name: case.group for name, case in cases.items()} == {
        "c0": "v1", "c1": "v1", "c2": "", "x": "v1", "y": "v1"}  # fmt: skip
    assert cases["x"].attributes["duplicate_of"] == "c0" and "duplicate_of" not in cases["c0"].attributes
    (line,) = lines(tmp_path / "out" / DUPLICATES)
    assert (line["id"], line["duplicate_of"], line["exact"], line["dropped"]) == ("x", "c0", False, False)
    assert (summary.repeated, summary.dropped, summary.groups) == (1, 0, 2)


def test_of_each_photograph_the_one_that_says_most_is_kept(tmp_path):
    box = {"boxes": (Box("polyp", 1, 1, 9, 9),)}
    mask = {"mask_file_name": "masks/m.png", "scale": 0.5}
    one = make(tmp_path / "one", "A", (1, {}), (2, box), (3, {"scale": 0.5}), (4, {}))
    two = make(tmp_path / "two", "B", (1, {"id": "m1", **mask}), (2, {"id": "m2"}), (3, {"id": "m3"}))
    summary = merge_case_sets([one, two], tmp_path / "out", drop_duplicates=True)
    merged = read_case_set(tmp_path / "out")
    assert set(merged.by_id) == {"m1", "c1", "m3", "c3"}
    assert (summary.repeated, summary.dropped) == (3, 3)
    assert {(line["id"], line["duplicate_of"]) for line in lines(tmp_path / "out" / DUPLICATES)} == {
        ("c0", "m1"), ("m2", "c1"), ("c2", "m3")}  # fmt: skip
    assert not (merged.root / "images/0.png").exists()
    assert "3 cases, 3 dropped" in summary.text()


def test_conflicting_findings_and_groups_across_splits_are_told(tmp_path):
    one = make(tmp_path / "one", "A", (1, {}), (2, {}))
    two = make(tmp_path / "two", "B", (1, {"id": "x", "findings": ("ulcer",), "split": "test"}))
    summary = merge_case_sets([one, two], tmp_path / "out")
    assert summary.conflicts == 1 and summary.crossing == {"c0": {"train": 1, "test": 1}}
    (conflict,) = lines(tmp_path / "out" / CONFLICTS)
    assert [(case["id"], case["findings"]) for case in conflict["cases"]] == [("c0", ["polyp"]), ("x", ["ulcer"])]
    assert "c0 (train 1, test 1)" in summary.text() and "different findings: 1 photograph:" in summary.text()
    assert read_case_set(tmp_path / "out").by_id["x"].split == "test"


def test_counterfactuals_are_no_duplicates_of_their_originals_and_follow_new_names(tmp_path):
    one = make(tmp_path / "one", "A", (1, {}))
    two = make(
        tmp_path / "two",
        "B",
        (7, {}),
        (7, {"id": "cf", "counterfactual_of": "c0", "source_file_name": "sources/s.png"}),
    )
    summary = merge_case_sets([one, two], tmp_path / "out", drop_duplicates=True)
    cases = read_case_set(tmp_path / "out").by_id
    assert cases["cf"].counterfactual_of == "two-c0" and "two-c0" in cases
    assert cases["cf"].group == cases["two-c0"].group != ""
    assert (summary.repeated, summary.conflicts) == (0, 0)


@pytest.mark.parametrize("licence", [CLOSED, Licence("?", "unknown", "unknown"), None])
@pytest.mark.parametrize("use", ["commercial", "redistribution"])
def test_sets_that_forbid_the_use_are_named_and_nothing_is_written(tmp_path, licence, use):
    free = make(tmp_path / "free", "A", (1, {}))
    closed = make(tmp_path / "closed", "B", (2, {}), (3, {}), licence=licence)
    with pytest.raises(ValueError, match=rf"closed: B, 2 cases: .*\nleave these sets out: {closed}$"):
        merge_case_sets([free, closed], tmp_path / "out", require=use)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "free"]
    assert merge_case_sets([free], tmp_path / "out", require=use).cases == 1


def test_an_existing_folder_is_never_overwritten(tmp_path):
    one = make(tmp_path / "one", "A", (1, {}))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        merge_case_sets([one], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_set_or_the_same_set_twice_is_refused(tmp_path):
    one = make(tmp_path / "one", "A", (1, {}))
    (tmp_path / "same").symlink_to(one)
    for sets in ([], [one, tmp_path / "same"]):
        with pytest.raises(ValueError, match="wanted one or more different case sets"):
            merge_case_sets(sets, tmp_path / "out")


def test_nothing_half_written_stays_when_a_file_is_missing(tmp_path):
    one = make(tmp_path / "one", "A", (1, {}), (2, {"mask_file_name": "masks/m.png"}))
    (one / "masks/m.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.png: no such file, though a case of"):
        merge_case_sets([one], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_symbolic_links_out_of_a_set_stay_links(tmp_path, monkeypatch):
    one = make(tmp_path / "one", "A", (1, {}), (2, {}))
    (tmp_path / "elsewhere").mkdir()
    (one / "images/0.png").rename(tmp_path / "elsewhere/photo.png")
    (one / "images/0.png").symlink_to("../../elsewhere/photo.png")
    monkeypatch.setattr(CaseSet, "path", lambda self, name: self.root / name)  # stands for COGALIGN_DATA_ROOTS
    merge_case_sets([one], tmp_path / "out")
    link = tmp_path / "out/images/0.png"
    assert link.is_symlink() and os.readlink(link) == str(tmp_path / "elsewhere/photo.png")
    assert not (tmp_path / "out/images/1.png").is_symlink()


def test_fingerprints_overlays_and_quarantine_come_along(tmp_path):
    one, two = make(tmp_path / "one", "A", (1, {})), make(tmp_path / "two", "B", (2, {}))
    (one / QUARANTINE).write_text('{"path": "a"}')  # no end of line
    (two / QUARANTINE).write_text('{"path": "b"}\n')
    known = read_case_set(two).cases[0]
    seen = {"text": [[1, 2, 3, 4]], "guide_box": []}
    write_metadata(two, [Case(**{**known.__dict__, "attributes": {"overlays": seen}}).to_row()])
    merge_case_sets([one, two], tmp_path / "out")
    merged = read_case_set(tmp_path / "out")
    assert [line["path"] for line in lines(tmp_path / "out" / QUARANTINE)] == ["a", "b"]
    assert merged.by_id["two-c0"].attributes["overlays"] == seen  # not looked for again
    assert merged.by_id["c0"].attributes["overlays"] == {"text": [], "guide_box": []}
    written = (merged.root / FINGERPRINTS).stat().st_mtime_ns
    assert len(fingerprints_of(merged)) == 2 and (merged.root / FINGERPRINTS).stat().st_mtime_ns == written
    assert {path.name for path in (merged.root / "overview").iterdir()} == {
        "summary.md", "classes.svg", "cooccurrence.svg", "licences.md", "overlays.md"}  # fmt: skip


def test_paid_answers_and_reviews_come_along_with_the_new_ids(tmp_path):
    one, two = make(tmp_path / "one", "A", (1, {})), make(tmp_path / "two", "B", (2, {}), (3, {"id": "own"}))
    (one / "annotations.jsonl").write_text('{"case": "c0", "key": "k1"}\n{"case": "c0", "ke')
    (two / "annotations.jsonl").write_text('{"case": "c0", "key": "k2"}\n{"case": "own", "key": "k3"}\n')
    (two / "review.jsonl").write_text('{"case": "own", "field": "findings"}\n')
    merge_case_sets([one, two], tmp_path / "out")
    found = [(line["case"], line["key"]) for line in lines(tmp_path / "out/annotations.jsonl")]
    assert found == [("c0", "k1"), ("two-c0", "k2"), ("own", "k3")]
    assert lines(tmp_path / "out/review.jsonl") == [{"case": "own", "field": "findings"}]
    merge_case_sets([one], tmp_path / "alone")
    assert not (tmp_path / "alone/review.jsonl").exists()


@pytest.mark.parametrize("name", ["quarantine.jsonl", "annotations.jsonl", "review.jsonl", "sources.json"])
def test_a_side_file_that_links_out_of_its_set_is_refused_and_nothing_is_written(tmp_path, name):
    one = make(tmp_path / "one", "A", (1, {}), licence=None)
    (tmp_path / "secret.txt").write_text('{"sources": []}')
    (one / name).symlink_to("../secret.txt")
    with pytest.raises(ValueError, match=rf"{name}: a symbolic link leads out"):
        merge_case_sets([one], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "secret.txt"]


def test_the_licence_of_a_transplants_background_counts_too(tmp_path):
    given = {"counterfactual_of": "x", "source_file_name": "sources/s.png", "background_of": "b"}
    pairs = make(tmp_path / "pairs", "A", (1, given | {"attributes": {"background_dataset": "B"}}))
    write_sources(pairs, [*read_sources(pairs), Source("b", "B", CLOSED, "", "", 0)])
    with pytest.raises(ValueError, match="pairs: B, 1 cases: no"):
        merge_case_sets([pairs], tmp_path / "out", require="commercial")
    merge_case_sets([pairs], tmp_path / "out")
    assert [(source.title, source.cases) for source in read_sources(tmp_path / "out")] == [("A", 1), ("B", 1)]
    assert "0 of 1 cases may be used commercially" in (tmp_path / "out/overview/licences.md").read_text()


def test_black_frames_of_two_sets_join_no_groups_and_are_no_duplicates(tmp_path):
    black = {"group": "v1"}
    one = make(tmp_path / "one", "A", (1, black), (2, black))
    two = make(tmp_path / "two", "B", (3, {"id": "x", "group": "v2"}), (4, {"id": "y", "group": "v2", "findings": ("ulcer",)}))  # fmt: skip
    for folder, name in ((one, "0"), (two, "0")):
        cv2.imwrite(str(folder / f"images/{name}.png"), np.full((72, 96, 3), 2, np.uint8))
    summary = merge_case_sets([one, two], tmp_path / "out", drop_duplicates=True)
    assert (summary.cases, summary.groups, summary.repeated, summary.conflicts) == (4, 2, 0, 0)


def test_merging_a_merged_set_again_changes_no_row(tmp_path):
    one = make(tmp_path / "one", "A", (1, {"group": "v1"}), (2, {"group": "v1"}), (3, {}))
    two = make(tmp_path / "two", "B", (1, {"group": "v2"}), (3, {}))
    merge_case_sets([one, two], tmp_path / "out")
    merge_case_sets([tmp_path / "out"], tmp_path / "again")
    assert (tmp_path / "again/metadata.jsonl").read_bytes() == (tmp_path / "out/metadata.jsonl").read_bytes()


def test_questions_on_a_photograph_are_no_copies_of_one_another_nor_of_its_case(tmp_path):
    questions = make(
        tmp_path / "questions", "Q", (1, {"findings": (), "question": "what?", "answer": "a polyp", "group": "g"})
    )
    row = read_case_set(questions).cases[0].to_row()
    other = {**row, "id": "c1", "question": "where?", "answer": "left"}
    write_metadata(questions, [row, other])
    polyps = make(tmp_path / "polyps", "P", (1, {"scale": 0.5}), (2, {}))
    summary = merge_case_sets([questions, polyps], tmp_path / "out", drop_duplicates=True)
    merged = read_case_set(tmp_path / "out")
    assert (summary.cases, summary.repeated, summary.dropped, summary.conflicts) == (4, 0, 0, 0)
    assert sorted(case.question for case in merged.cases) == ["", "", "what?", "where?"]
    assert not any("duplicate_of" in case.attributes for case in merged.cases)
    same = [case.group for case in merged.cases if case.question or case.id.endswith("c0")]
    assert len(same) == 3 and len(set(same)) == 1
    again = make(tmp_path / "again", "R", (1, {"findings": (), "question": "what?", "answer": "a polyp"}))
    assert merge_case_sets([questions, again], tmp_path / "both", drop_duplicates=True).dropped == 1
