"""Every card on a miniature tree of its layout: images with masks and boxes."""

import numpy as np
import pytest

from cogalign.data.cards.find import read_card
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.images import load_rgb
from cogalign.data.importers.importer import import_card
from tests.data.importers.test_cards import imported, run, told
from tests.data.importers.trees import LESION, drawn, photograph, pixels, write_mask
from tests.data.importers.trees_lesions import BUILDERS, OTHER, cvc_clinicdb_png, etis_larib, pranet, see_ai


def boxes_of(case: Case) -> list[tuple[str, int, int, int, int]]:
    return [(box.finding, box.xmin, box.ymin, box.xmax, box.ymax) for box in case.boxes]


def has_mask(found: CaseSet, case: Case, *boxes: tuple[int, int, int, int]) -> bool:
    """Whether the case's mask is exactly these boxes."""
    wanted = np.logical_or.reduce([drawn(box) for box in boxes])
    mask = found.mask(case)
    return mask is not None and bool((mask == wanted).all())


def test_kvasir_seg_reads_fringed_masks_boxes_and_the_official_lists(tmp_path):
    cases, found, rejected = run("kvasir-seg", tmp_path)
    assert sorted(cases) == ["cju0", "cju1", "cju2", "cju3"]
    assert all(has_mask(found, case, LESION) for name, case in cases.items() if name != "cju1")
    assert has_mask(found, cases["cju1"], LESION, OTHER)
    assert boxes_of(cases["cju1"]) == [("polyp", *LESION), ("polyp", *OTHER)]
    assert [cases[f"cju{n}"].attributes.get("official_split") for n in range(4)] == [
        "train",
        "train",
        "validation",
        None,
    ]
    assert {case.organ for case in cases.values()} == {"colon"}
    assert told(rejected, "images/cju4.jpg", "empty") and len(rejected) == 1


def test_hyperkvasir_segmented_reads_the_segmented_images_alone(tmp_path):
    cases, found, rejected = run("hyperkvasir-segmented", tmp_path)
    assert list(cases) == ["c"] and cases["c"].dataset == "HyperKvasir segmented"
    assert has_mask(found, cases["c"], LESION) and boxes_of(cases["c"]) == [("polyp", *LESION)]
    assert rejected == []


def test_see_ai_reads_types_from_the_boxes_and_no_box_is_normal(tmp_path):
    cases, _, rejected = run("see-ai", tmp_path)
    assert {name: case.findings for name, case in cases.items()} == {
        "image00001": ("erosion", "erythema"), "image00002": ("venous_lesion",), "image00003": ("normal",)
    }  # fmt: skip
    assert boxes_of(cases["image00001"]) == [("erosion", *LESION), ("erythema", *OTHER)]
    assert boxes_of(cases["image00002"]) == [("venous_lesion", *LESION)]
    assert {case.organ for case in cases.values()} == {"small_bowel"}
    # one empty text file: images without a box have one, so an image without any has lost its boxes
    assert told(rejected, "image00004.jpg", "no box file, though images without a box have an empty one")
    assert len(rejected) == 1


def test_see_ai_without_any_empty_file_tells_how_many_images_count_as_normal_for_want_of_one(tmp_path):
    src = see_ai(tmp_path / "src")
    next(src.rglob("image00003.txt")).unlink()
    found, rejected = imported("see-ai", src, tmp_path / "out")
    assert [case.findings for case in found.cases][2:] == [("normal",), ("normal",)]
    assert told(rejected, "SEE_AI_project_all_txt", "2 images have no box file and count as images without a box")
    assert len(rejected) == 1


@pytest.mark.parametrize("card", ["kvasir-seg", "cvc-clinicdb"])
@pytest.mark.parametrize("folder", ["CVC-ColonDB", "CVC-300", "ETIS-LaribPolypDB"])
def test_a_test_set_of_the_pranet_pack_is_taken_for_no_other(card, folder, tmp_path):
    for stem in ("1", "2"):
        photograph(tmp_path / f"TestDataset/{folder}/images/{stem}.png", int(stem))
        write_mask(tmp_path / f"TestDataset/{folder}/masks/{stem}.png", drawn())
    for src in (tmp_path / "TestDataset", tmp_path / "TestDataset" / folder):
        with pytest.raises(FileNotFoundError, match=f"not the layout '{card}'"):
            import_card(read_card(card), src, tmp_path / "out", workers=1)


def test_the_folder_of_clinicdb_is_known_by_its_name(tmp_path):
    photograph(tmp_path / "TestDataset/CVC-ClinicDB/images/26.png", 1)
    write_mask(tmp_path / "TestDataset/CVC-ClinicDB/masks/26.png", drawn())
    photograph(tmp_path / "TestDataset/CVC-ColonDB/images/1.png", 2)
    write_mask(tmp_path / "TestDataset/CVC-ColonDB/masks/1.png", drawn())
    found, rejected = imported("cvc-clinicdb", tmp_path, tmp_path / "out")
    assert [(case.id, case.group) for case in found.cases] == [("cvc-clinicdb-26", "cvc-clinicdb:sequence-2")]
    assert rejected == []


@pytest.mark.parametrize("layout", ["original", "png"])
def test_cvc_clinicdb_has_colours_and_the_sequence_of_each_frame(layout, tmp_path):
    if layout == "original":
        cases, found, rejected = run("cvc-clinicdb", tmp_path)
    else:
        found, rejected = imported("cvc-clinicdb", cvc_clinicdb_png(tmp_path / "src"), tmp_path / "out")
        cases = {case.id.removeprefix("cvc-clinicdb-"): case for case in found.cases}
    assert {name: case.group for name, case in cases.items()} == {
        name: f"cvc-clinicdb:sequence-{number}" for name, number in (("1", 1), ("25", 1), ("26", 2), ("612", 29))
    }
    for name, case in cases.items():
        image = np.asarray(load_rgb(found.path(case.file_name)))
        assert (image == pixels(int(name))).all()
        assert has_mask(found, case, LESION)
    assert rejected == []


def test_the_pranet_pack_gives_clinicdb_with_its_split_and_no_frame_of_kvasir(tmp_path):
    found, rejected = imported("cvc-clinicdb", pranet(tmp_path / "src"), tmp_path / "out")
    splits = {case.id: (case.attributes["official_split"], case.group) for case in found.cases}
    assert splits == {
        "cvc-clinicdb-1": ("train", "cvc-clinicdb:sequence-1"),
        "cvc-clinicdb-25": ("test", "cvc-clinicdb:sequence-1"),
        "cvc-clinicdb-26": ("train", "cvc-clinicdb:sequence-2"),
    }
    assert all(has_mask(found, case, LESION) for case in found.cases)
    assert rejected == []


@pytest.mark.parametrize(("name", "stems"), [("cvc-colondb", ["1", "380"]), ("etis-larib", ["7"])])
def test_the_pranet_pack_gives_its_test_sets(name, stems, tmp_path):
    found, rejected = imported(name, pranet(tmp_path / "src"), tmp_path / "out")
    assert sorted(case.id for case in found.cases) == [f"{name}-{stem}" for stem in stems]
    assert all(has_mask(found, case, LESION) and case.attributes["official_split"] == "test" for case in found.cases)
    assert rejected == []


def test_etis_pairs_an_image_with_its_mask_of_another_name(tmp_path):
    found, rejected = imported("etis-larib", etis_larib(tmp_path / "src"), tmp_path / "out")
    assert sorted(case.id for case in found.cases) == ["etis-larib-7", "etis-larib-8"]
    assert all(has_mask(found, case, LESION) for case in found.cases) and rejected == []


def test_polypgen_bears_its_names_that_differ_by_centre(tmp_path):
    cases, found, rejected = run("polypgen", tmp_path)
    assert {name: case.findings[0] for name, case in cases.items()} == {
        "100h0001": "polyp",
        "c2-01": "polyp",
        "c3-endocv2021-00488": "polyp",
        "c3-endocv2021-00489": "polyp",
        "c6-empty": "normal",
        "c6-100h0050": "polyp",
        "seq2-frame1": "polyp",
        "seq2-frame2": "polyp",
        "seq2-neg-frame1": "normal",
    }
    one = [("polyp", *LESION)]
    boxed = {name: boxes_of(case) for name, case in cases.items() if case.boxes}
    assert boxed == {"100h0001": one, "c2-01": one, "c6-100h0050": one, "seq2-frame1": [*one, ("polyp", *OTHER)]}
    masked = {name for name, case in cases.items() if case.mask_file_name}
    assert masked - {"c6-empty"} == {name for name, case in cases.items() if case.findings == ("polyp",)}
    assert all(has_mask(found, cases[name], LESION) for name in masked - {"c6-empty"})
    assert cases["seq2-frame1"].group == "polypgen:sequence-2" != cases["seq2-neg-frame1"].group
    assert cases["c2-01"].attributes["center"] == "C2" and {case.organ for case in cases.values()} == {"colon"}
    assert rejected == []


def test_bkai_tells_the_kinds_by_colour_although_masks_are_jpegs(tmp_path):
    cases, found, _ = run("bkai-neopolyp", tmp_path)
    assert {name: case.attributes["class"] for name, case in cases.items()} == {
        "a1": "neoplastic", "b2": "non-neoplastic", "c3": ["neoplastic", "non-neoplastic"]
    }  # fmt: skip
    for name, lesions in (("a1", [LESION]), ("b2", [OTHER]), ("c3", [LESION, OTHER])):
        wanted = np.logical_or.reduce([drawn(box) for box in lesions])
        assert (found.mask(cases[name]) ^ wanted).mean() < 0.02
        assert (cases[name].findings, cases[name].organ) == (("polyp",), "colon")


def test_edd2020_unites_the_masks_of_what_has_a_finding(tmp_path):
    cases, found, _ = run("edd2020", tmp_path)
    assert {name: set(case.findings) for name, case in cases.items()} == {
        "edd2020-a1": {"barretts"}, "edd2020-a2": {"polyp"}, "edd2020-a4": {"barretts", "tumor"}
    }  # fmt: skip
    assert set(cases["edd2020-a1"].attributes["class"]) == {"BE", "suspicious"}
    assert has_mask(found, cases["edd2020-a1"], LESION) and has_mask(found, cases["edd2020-a4"], LESION, OTHER)
    assert boxes_of(cases["edd2020-a1"]) == [("barretts", *LESION)]
    assert cases["edd2020-a1"].organ == "esophagus" and cases["edd2020-a2"].organ == "unknown"


def test_sun_seg_groups_by_case_and_reads_boxes_that_are_nearly_coco(tmp_path):
    cases, found, rejected = run("sun-seg", tmp_path)
    assert {name: (case.group, case.attributes["official_split"], case.attributes["subset"], case.attributes["pathology"])
            for name, case in cases.items()} == {
        "case1-1-fa": ("sun-seg:case-1", "train", "TrainDataset", "low_grade_adenoma"),
        "case1-3-fb": ("sun-seg:case-1", "test", "TestEasyDataset/Seen", "low_grade_adenoma"),
        "case2-1-fc": ("sun-seg:case-2", "test", "TestEasyDataset/Unseen", "invasive_carcinoma"),
        "case3-1-fd": ("sun-seg:case-3", "test", "TestHardDataset/Unseen", "low_grade_adenoma"),
    }  # fmt: skip
    for case in cases.values():
        assert case.findings == ("polyp",) and boxes_of(case) == [("polyp", *LESION)]
        assert has_mask(found, case, LESION)
    assert rejected == []


@pytest.mark.parametrize("name", ["polypgen", "see-ai"])
def test_classes_that_a_card_knows_without_a_count_are_no_difference(name, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    summary = import_card(read_card(name), BUILDERS[name](src), tmp_path / "out", workers=1)
    told_differences = " | ".join(summary.differences)
    assert f"expected {read_card(name).expected.images}" in told_differences
    assert "not among" not in told_differences and "no image of the class" not in told_differences


def test_an_official_split_that_divides_a_case_is_kept_aside_and_told(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    summary = import_card(read_card("sun-seg"), BUILDERS["sun-seg"](src), tmp_path / "out", workers=1)
    found = read_case_set(tmp_path / "out")
    assert summary.divided == 1 and {case.split for case in found.cases} == {"train"}
    assert {case.attributes["official_split"] for case in found.cases} == {"train", "test"}
    assert any("divides 1 group" in line for line in summary.lines())


def test_an_official_split_that_divides_no_patient_is_the_split(tmp_path):
    cases, _, _ = run("limuc", tmp_path)
    assert {name: case.split for name, case in cases.items() if name in ("12-1", "12-2", "40-1")} == {
        "12-1": "train", "12-2": "train", "40-1": "test"
    }  # fmt: skip
