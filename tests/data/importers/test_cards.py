"""Every card on a miniature tree of its layout: images that have a class."""

import json
from pathlib import Path

import pytest

from cogalign.cognition.taxonomy import FINDINGS
from cogalign.data.cards.find import card_ids, list_cards, read_card
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.check import check_case_set
from cogalign.data.importers.importer import import_card
from cogalign.data.sources import read_sources
from tests.data.importers.trees import OTHER_VIDEO, VIDEO
from tests.data.importers.trees_lesions import BUILDERS

REAL_SAMPLES = {"gastrovision", "hyperkvasir", "hyperkvasir-segmented", "kvasir-seg", "kvasir-v2"}
"""Cards that `test_cards_real.py` runs on real files."""


def imported(name: str, src: Path, out: Path, side: int | None = None) -> tuple[CaseSet, list[tuple[str, str]]]:
    """The case set of a folder, which must be sound, and path and reason of what could not be used."""
    import_card(read_card(name), src, out, side=side, workers=1)
    assert check_case_set(out) == []
    lines = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    rejected = [json.loads(line) for line in lines]
    assert {line["dataset"] for line in rejected} <= {read_card(name).title}
    return read_case_set(out), [(line["path"], line["reason"]) for line in rejected]


def run(name: str, tmp_path: Path) -> tuple[dict[str, Case], CaseSet, list[tuple[str, str]]]:
    """Cases by id (without the card's name), the case set, and what was rejected, of the card's miniature tree."""
    src = tmp_path / "src"
    src.mkdir()
    found, rejected = imported(name, BUILDERS[name](src), tmp_path / "out")
    return {case.id.removeprefix(f"{name}-"): case for case in found.cases}, found, rejected


def told(rejected: list[tuple[str, str]], path: str, reason: str) -> bool:
    """Whether a line of the quarantine names this file with a reason that holds this text."""
    return any(where.endswith(path) and reason in text for where, text in rejected)


def test_every_card_has_a_miniature_tree():
    assert sorted(BUILDERS) == card_ids()
    assert set(card_ids()) >= REAL_SAMPLES


@pytest.mark.parametrize("name", card_ids())
def test_a_card_gives_a_sound_case_set_of_its_miniature_tree(name, tmp_path):
    cases, found, _ = run(name, tmp_path)
    card = read_card(name)
    assert cases and {case.dataset for case in found.cases} == {card.title}
    assert {case.attributes["imaging"] for case in found.cases} == {card.imaging}
    assert all(case.attributes["file"] for case in found.cases)
    source = read_sources(found.root)[0]
    assert (source.card, source.title, source.licence, source.cases) == (name, card.title, card.licence, len(cases))


@pytest.mark.parametrize("card", list_cards(), ids=lambda card: card.id)
def test_a_card_maps_every_class_that_it_counts_to_the_taxonomy(card):
    known = {name for part in card.layout.parts for name in part.label_map} | set(card.label_map)
    assert set(card.expected.classes) <= known
    values = [value for value in card.label_map.values() if value is not None]
    ids = [one for value in values for one in ([value] if isinstance(value, str) else value)]
    assert [one for one in ids if one not in FINDINGS] == []


def test_hyperkvasir_takes_the_segmented_copy_of_a_polyp_and_tells_where_table_and_folder_differ(tmp_path):
    cases, _, rejected = run("hyperkvasir", tmp_path)
    assert {name: (case.findings, case.organ) for name, case in cases.items()} == {
        "ileum-a": (("normal",), "small_bowel"),
        "pylorus-b": (("normal",), "stomach"),
        "polyps-c": (("polyp",), "colon"),
        "hemorrhoids-d": (("hemorrhoids",), "colon"),
        "esophagitis-b-d-e": (("esophagitis",), "esophagus"),
        "dyed-lifted-polyps-f": (("dyed_lifted_polyp",), "colon"),
        "bbps-0-1-g": (("reduced_view",), "colon"),
    }
    assert {name for name, case in cases.items() if case.mask_file_name} == {"polyps-c"}
    assert len(cases["polyps-c"].boxes) == 1
    folds = {name: case.attributes.get("official_fold") for name, case in cases.items()}
    assert (
        folds["polyps-c"] == 0 and folds["pylorus-b"] == 3 and folds["hemorrhoids-d"] == 4 and folds["ileum-a"] is None
    )
    assert cases["bbps-0-1-g"].attributes["classification"] == "quality-of-mucosal-views"
    assert told(rejected, "polyps/h.jpg", "'cecum'")
    assert told(rejected, "image-labels.csv", "1 rows have no image, the first: zz")
    assert len(rejected) == 2


def test_kvasir_v2_reads_suffixes_in_capitals_and_passes_over_feature_files(tmp_path):
    cases, _, rejected = run("kvasir-v2", tmp_path)
    assert {case.attributes["class"]: (case.findings[0], case.organ) for case in cases.values()} == {
        "dyed-lifted-polyps": ("dyed_lifted_polyp", "colon"),
        "dyed-resection-margins": ("resection_site", "colon"),
        "esophagitis": ("esophagitis", "esophagus"),
        "normal-cecum": ("normal", "colon"),
        "normal-pylorus": ("normal", "stomach"),
        "normal-z-line": ("normal", "esophagus"),
        "polyps": ("polyp", "colon"),
        "ulcerative-colitis": ("ulcerative_colitis", "colon"),
    }
    assert rejected == []


def test_gastrovision_joins_by_class_and_name(tmp_path):
    cases, _, rejected = run("gastrovision", tmp_path)
    splits = {name: case.attributes.get("official_split") for name, case in cases.items()}
    assert splits["colon-polyps-100h0004"] == "train" and splits["pylorus-100h0004"] == "test"
    assert splits["erythema-100h0004"] is None
    assert splits["gastroesophageal-junction-normal-z-line-z"] == "validation"
    organs = {case.attributes["class"]: case.organ for case in cases.values()}
    assert organs["Gastric polyps"] == "stomach" and organs["Barrett's esophagus"] == "esophagus"
    assert organs["Accessory tools"] == "unknown" and organs["Erythema"] == "unknown"
    assert told(rejected, "No such class/n.jpg", "No such class")
    assert told(rejected, "GastroVision_metadata.csv", "1 rows have no image, the first: Pylorus/lost.jpg")
    assert len(rejected) == 2 and len(cases) == 7


def test_kvasir_capsule_unites_a_frame_of_two_classes_and_reads_corner_boxes(tmp_path):
    cases, _, rejected = run("kvasir-capsule", tmp_path)
    both = cases[f"{VIDEO}-893"]
    assert set(both.findings) == {"erosion", "ulcer"} and set(both.attributes["class"]) == {"Erosion", "Ulcer"}
    boxes = {(box.finding, box.xmin, box.ymin, box.xmax, box.ymax) for box in both.boxes}
    assert boxes == {("erosion", 10, 12, 30, 28), ("ulcer", 40, 20, 50, 30)}
    foreign = cases[f"{VIDEO}-7"]
    assert foreign.findings == ("foreign_body",) and len(foreign.boxes) == 1
    assert foreign.group == both.group == f"kvasir-capsule:video-{VIDEO}"
    normal, pylorus = cases[f"{OTHER_VIDEO}-1"], cases[f"{OTHER_VIDEO}-2"]
    assert normal.boxes == () and (normal.findings, normal.organ) == (("normal",), "unknown")
    assert (pylorus.findings, pylorus.organ) == (("normal",), "stomach")
    assert (foreign.attributes["official_fold"], normal.attributes["official_fold"]) == (0, 1)
    assert rejected == [] and len(cases) == 4


def test_limuc_takes_the_patient_from_the_name_and_keeps_the_grade(tmp_path):
    cases, _, rejected = run("limuc", tmp_path)
    assert {name: (case.findings[0], case.attributes["mayo"], case.attributes["official_split"], case.group)
            for name, case in cases.items()} == {
        "12-1": ("normal", "0", "train", "limuc:patient-12"),
        "12-2": ("ulcerative_colitis", "2", "train", "limuc:patient-12"),
        "3-1": ("ulcerative_colitis", "1", "train", "limuc:patient-3"),
        "40-1": ("ulcerative_colitis", "3", "test", "limuc:patient-40"),
        "40-2": ("normal", "0", "test", "limuc:patient-40"),
    }  # fmt: skip
    assert {case.organ for case in cases.values()} == {"colon"} and rejected == []


@pytest.mark.parametrize(
    ("name", "folder"), [("gastrovision", "Gastrovision"), ("kvasir-capsule", "labelled_images"), ("limuc", "test_set")]
)
def test_a_folder_that_an_archive_repeats_changes_nothing(name, folder, tmp_path):
    plain = imported(name, BUILDERS[name](tmp_path / "plain"), tmp_path / "one")[0]
    src = BUILDERS[name](tmp_path / "src" / "unpacked")
    (src / folder).rename(src / "moved")
    (src / folder).mkdir()
    (src / "moved").rename(src / folder / folder)
    nested = imported(name, tmp_path / "src", tmp_path / "two")[0]
    assert nested.cases == plain.cases


def test_crohnipi_reads_a_latin_1_table_and_quarantines_an_unknown_label(tmp_path):
    cases, _, rejected = run("crohnipi", tmp_path)
    findings = ["normal", "erythema", "edema", "aphthoid_ulcer", "ulcer", "ulcer", "stenosis"]
    assert [cases[f"{number:05}"].findings[0] for number in range(1, 8)] == findings
    assert cases["00005"].attributes["official_fold"] == 5 and cases["00005"].attributes["class"] == "U3-10"
    assert {case.organ for case in cases.values()} == {"small_bowel"}
    assert told(rejected, "imgs/00008.jpg", "Autre") and told(rejected, "imgs/00099.jpg", "no row")
    assert len(rejected) == 2


def test_kvasir_vqa_keeps_every_question_of_an_image(tmp_path):
    cases, _, rejected = run("kvasir-vqa", tmp_path)
    assert {name: case.findings[0] for name, case in cases.items()} == {
        "p1": "polyp",
        "n1": "normal",
        "i1": "instrument",
    }
    assert cases["p1"].attributes["questions"] == [
        {"question": "What color is the abnormality?", "answer": "pink; red", "answers": ["pink", "red"]},
        {"question": "How many polyps are in the image?", "answer": "1", "answers": ["1"]},
    ]
    assert told(rejected, "metadata.csv", "1 questions have no image, the first: lost")
    assert told(rejected, "metadata.csv", "1 images have no source or no question, the first: unasked")
    assert len(rejected) == 2


def test_kvasir_vqa_x1_decodes_the_original_questions_and_keeps_the_split_of_each(tmp_path):
    cases, _, rejected = run("kvasir-vqa-x1", tmp_path)
    assert {name: case.findings[0] for name, case in cases.items()} == {"p1": "polyp", "n1": "normal"}
    test, train = cases["p1"].attributes["questions"]
    assert (test["split"], test["complexity"], train["split"]) == ("test", 3, "train")
    assert test["question_class"] == ["polyp_count", "abnormality_color"]
    assert test["original"] == [{"q": "How many polyps are in the image?", "a": "1"}]
    assert "official_split" not in cases["p1"].attributes
    assert told(rejected, "test-00000-of-00001.parquet", "1 questions whose `original` is not JSON, the first: of i1")
    assert told(rejected, "metadata.csv", "2 images have no source or no question, the first: i1")
