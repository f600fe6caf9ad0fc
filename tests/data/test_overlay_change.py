import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSetWriter, read_case_set, write_metadata
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.overlay_change import change_overlays, overlays_of, planned_changes
from cogalign.data.overlay_detection import find_overlays
from cogalign.data.overlays import cramers_v, flag_overlays
from cogalign.data.prepare import prepare
from cogalign.data.sources import datasets_of
from cogalign.recipe import DataSettings, ImportSettings
from tests.data.test_overlays import mucosa, with_box, with_text

GREEN = (20, 170, 140)


@pytest.fixture
def folder(tmp_path):
    """Ten images: polyps of one data set with letters and a box, normal ones of another without."""
    with CaseSetWriter(tmp_path / "set") as writer:
        for number in range(10):
            polyp = number < 5
            image = mucosa(number, 300, 250)
            if polyp:
                image = np.asarray(Image.fromarray(with_box(with_text(mucosa(number)), GREEN)).resize((300, 250)))
            case = Case(f"c{number}", f"images/{number}.png", ("polyp" if polyp else "normal",), "train",
                        dataset="seg" if polyp else "hyper", licence="one" if polyp else "two")  # fmt: skip
            writer.add(case, image)
    flag_overlays(read_case_set(tmp_path / "set"), workers=1)
    return tmp_path / "set"


def bearing(root) -> list[bool]:
    return [bool(overlays_of(case).guide_box) for case in sorted(read_case_set(root).cases, key=lambda one: one.id)]


def test_masked_images_bear_nothing_and_the_others_are_the_same_files(folder):
    before = {case.id: (folder / case.file_name).read_bytes() for case in read_case_set(folder).cases}
    prints = {
        case.id: p for case, p in zip(read_case_set(folder).cases, fingerprints_of(read_case_set(folder)), strict=True)
    }
    assert "painted over in 5 of 10 images" in change_overlays(folder, "mask", 3, workers=1)
    found = read_case_set(folder)
    for case, print_ in zip(found.cases, fingerprints_of(found), strict=True):
        assert find_overlays(np.asarray(found.image(case))).guide_box == ()
        assert overlays_of(case).text == overlays_of(case).guide_box == ()
        assert ((folder / case.file_name).read_bytes() == before[case.id]) == (case.findings == ("normal",))
        assert bool(case.attributes.get("overlays_before")) == (case.findings == ("polyp",))
        assert print_.digest == prints[case.id].digest  # of the photograph, so that it is known again


def test_drawn_overlays_are_as_many_and_tell_the_finding_no_more():
    cases = [
        Case(f"c{n}", f"images/{n}.png", ("polyp" if n < 300 else "normal",), "train",
             attributes={"overlays": {"text": [], "guide_box": [[0, 0, 9, 9]] if n < 270 else []}})
        for n in range(600)
    ]  # fmt: skip
    lent = {change.name: change.lender is not None for change in planned_changes(cases, "randomise", 3)}
    flags = [lent.get(case.file_name, False) for case in cases]
    assert sum(flags) == 270
    findings = [case.findings[0] for case in cases]
    assert (cramers_v(findings, [n < 270 for n in range(600)]) or 0) > 0.8
    assert (cramers_v(findings, flags) or 0) < 0.1
    assert planned_changes(cases, "randomise", 4) != planned_changes(cases, "randomise", 3)


def test_overlays_never_come_from_another_split():
    cases = [
        Case(f"c{n}", f"images/{n}.png", ("polyp",), "train" if n % 2 else "test",
             attributes={"overlays": {"text": [], "guide_box": [[0, 0, 9, 9]]}})
        for n in range(40)
    ]  # fmt: skip
    split = {case.file_name: case.split for case in cases}
    changes = planned_changes(cases, "randomise", 3)
    assert all(change.lender and split[change.lender] == split[change.name] for change in changes)
    assert Counter(change.lender for change in changes).most_common(1)[0][1] == 1


def test_randomised_images_show_what_their_attributes_say_and_name_who_lent_it(folder):
    change_overlays(folder, "randomise", 3, workers=1)
    found = read_case_set(folder)
    assert sum(bearing(folder)) == 5
    for case in found.cases:
        seen = bool(find_overlays(np.asarray(found.image(case))).guide_box)
        assert seen == bool(overlays_of(case).guide_box) == ("overlays_from" in case.attributes)
        if case.dataset == "hyper" and seen:
            assert datasets_of(case) == ("hyper", "seg") and case.licence == "two; one"


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "again")
    change_overlays(folder, "randomise", 3, workers=1)
    change_overlays(tmp_path / "again", "randomise", 3, workers=1)
    for case in read_case_set(folder).cases:
        assert (folder / case.file_name).read_bytes() == (tmp_path / "again" / case.file_name).read_bytes()
    assert (folder / "metadata.jsonl").read_bytes() == (tmp_path / "again/metadata.jsonl").read_bytes()


def test_a_photograph_behind_a_link_stays_and_a_jpeg_becomes_a_png(folder, tmp_path):
    rows = [case.to_row() for case in read_case_set(folder).cases]
    original = tmp_path / "photograph.jpg"
    Image.open(folder / "images/0.png").save(original, quality=95)
    content = original.read_bytes()
    os.link(original, folder / "images/0.jpg")
    (folder / "images/0.png").unlink()
    rows = [{**row, "file_name": "images/0.jpg"} if row["id"] == "c0" else row for row in rows]
    write_metadata(folder, rows)
    change_overlays(folder, "mask", 3, workers=1)
    assert original.read_bytes() == content
    assert read_case_set(folder).by_id["c0"].file_name == "images/0.png"
    assert not (folder / "images/0.jpg").exists()


def test_prepare_masks_what_it_imports_and_keeps_it_where_nothing_is_said(tmp_path):
    for label, boxed in (("polyps", True), ("esophagitis", False)):
        for number in range(4):
            image = mucosa(number + 10 * boxed)
            path = tmp_path / "root/kvasir" / label / f"{label}-{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(with_box(image, GREEN) if boxed else image).save(path, quality=95)
    wanted = DataSettings(imports=[ImportSettings("kvasir-v2", "kvasir")], root=str(tmp_path / "root"), image_side=96)
    assert sum(bearing(prepare(wanted, tmp_path / "run"))) == 4
    wanted.overlays = "mask"
    folder = prepare(wanted, tmp_path / "run")
    assert sum(bearing(folder)) == 0
    assert json.loads((folder / "prepared.json").read_text())["overlays"] == "mask"
    for case in read_case_set(folder).cases:
        corner = np.asarray(read_case_set(folder).image(case))[-20:-2, 14:24].astype(int)
        assert (corner[..., 1] > corner[..., 0] + 25).mean() < 0.02
