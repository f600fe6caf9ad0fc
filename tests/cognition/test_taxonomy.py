import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.anatomy import LANDMARKS, ORGANS, landmark_of, organ_in
from cogalign.cognition.taxonomy import FINDINGS, SINGLE_LABELS, lookup, name_of, nearest, single_label

# Every class name of the five data sets, as folders, tables and splits write them, and what it stands for.
CLASSES = {
    "hyperkvasir": {
        "normal": "cecum ileum retroflex-rectum pylorus retroflex-stomach z-line bbps-2-3 normal-cecum normal-pylorus normal-z-line",
        "polyp": "polyps polyp",
        "hemorrhoids": "hemorrhoids hemorroids",
        "ulcerative_colitis": "ulcerative-colitis-grade-0-1 ulcerative-colitis-grade-1 ulcerative-colitis-grade-1-2 "
        "ulcerative-colitis-grade-2 ulcerative-colitis-grade-2-3 ulcerative-colitis-grade-3 ulcerative-colitis",
        "reduced_view": "bbps-0-1 impacted-stool",
        "dyed_lifted_polyp": "dyed-lifted-polyps",
        "resection_site": "dyed-resection-margins",
        "barretts": "barretts barretts-short-segment short-segment-barretts",
        "esophagitis": "esophagitis-a esophagitis-b-d oesophagitis-a oesophagitis-b-d esophagitis",
    },
    "gastrovision": {
        "normal": "Normal mucosa and vascular pattern in the large bowel|Normal stomach|Small bowel_terminal ileum|Pylorus|"
        "Gastroesophageal_junction_normal z-line|Duodenal bulb|Ileocecal valve|Normal esophagus|Cecum|Retroflex rectum",
        "instrument": "Accessory tools",
        "polyp": "Colon polyps|Gastric polyps",
        "resection_site": "Dyed-resection-margins|Resected polyps|Resection margins",
        "dyed_lifted_polyp": "Dyed-lifted-polyps|",
        "bleeding": "Blood in lumen",
        "tumor": "Colorectal cancer",
        "esophagitis": "Esophagitis|",
        "barretts": "Barrett's esophagus",
        "inflammation": "Mucosal inflammation large bowel",
        "diverticulum": "Colon diverticula",
        "angiectasia": "Angiectasia|",
        "erythema": "Erythema|",
        "varices": "Esophageal varices",
        "ulcer": "Ulcer|",
    },
    "kvasir-capsule": {
        "normal": "Normal clean mucosa|Ileocecal valve|Pylorus|Ampulla of Vater|Normal|Ileo-cecal valve",
        "reduced_view": "Reduced Mucosal View|",
        "angiectasia": "Angiectasia|",
        "ulcer": "Ulcer|",
        "foreign_body": "Foreign Body|Foreign body|Foreign Bodies",
        "lymphangiectasia": "Lymphangiectasia|",
        "erosion": "Erosion|",
        "bleeding": "Blood-fresh|Blood-hematin|Blood",
        "erythema": "Erythema|Erythematous",
        "polyp": "Polyp|",
    },
    "see-ai": {
        "normal": "normal|",
        "angiectasia": "angiodysplasia|",
        "erosion": "erosion|",
        "stenosis": "stenosis|",
        "lymphangiectasia": "lymphangiectasis|",
        "lymph_follicle": "lymph follicle",
        "submucosal_tumor": "SMT|",
        "polyp": "polyp-like|",
        "bleeding": "bleeding|",
        "diverticulum": "diverticulum|",
        "erythema": "redness|",
        "foreign_body": "foreign body",
        "venous_lesion": "venous|",
    },
    "crohnipi": {
        "normal": "N|",
        "erythema": "E|",
        "edema": "O|",
        "stenosis": "S|",
        "aphthoid_ulcer": "AU|",
        "ulcer": "U3-10|U>10",
    },
}


def _names(dataset: str, names: str) -> list[str]:
    return names.split() if dataset == "hyperkvasir" else [name for name in names.split("|") if name]


EVERY_CLASS = [
    pytest.param(name, finding, id=f"{dataset}:{name}")
    for dataset, findings in CLASSES.items()
    for finding, names in findings.items()
    for name in _names(dataset, names)
]


@pytest.mark.parametrize(("name", "finding"), EVERY_CLASS)
def test_every_class_of_the_five_data_sets_is_a_finding(name: str, finding: str) -> None:
    found = lookup(name)
    assert found is not None
    assert found.id == finding
    assert single_label(finding) in SINGLE_LABELS


def test_the_data_sets_have_as_many_classes_as_their_cards_say() -> None:
    counts = {dataset: sum(len(_names(dataset, n)) for n in findings.values()) for dataset, findings in CLASSES.items()}
    # HyperKvasir: 23 folders, 8 names of its splits, 2 of Kvasir v2; Kvasir-Capsule: 14 classes, 6 other spellings.
    assert counts == {"hyperkvasir": 33, "gastrovision": 27, "kvasir-capsule": 20, "see-ai": 13, "crohnipi": 7}


def test_there_are_23_single_labels_and_each_one_is_a_class_of_some_data_set() -> None:
    covered = {single_label(finding) for findings in CLASSES.values() for finding in findings}
    assert len(SINGLE_LABELS) == 23
    assert covered == set(SINGLE_LABELS)


def test_a_parent_is_a_single_label_and_only_normal_is_normal() -> None:
    for finding in FINDINGS.values():
        assert finding.parent is None or finding.parent in SINGLE_LABELS
        assert finding.normal == (finding.id == "normal")
        assert finding.organs and set(finding.organs) <= set(ORGANS)
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", finding.id)


def test_names_survive_the_separators_of_the_diagnosis_line() -> None:
    for finding in FINDINGS.values():
        assert not re.search(r"[,;/.&+()\[\]]|\b(and|with|plus)\b", finding.name)


def test_diffuse_findings_are_not_focal() -> None:
    diffuse = {finding.id for finding in FINDINGS.values() if not finding.focal}
    assert diffuse == {"normal", "esophagitis", "barretts", "ulcerative_colitis", "stenosis", "inflammation", "edema", "reduced_view"}  # fmt: skip


@pytest.mark.parametrize("finding", FINDINGS.values(), ids=list(FINDINGS))
def test_id_name_and_synonyms_lead_back_to_the_finding(finding) -> None:
    for name in (finding.id, finding.name, *finding.synonyms, finding.name.upper(), finding.name.replace(" ", "_")):
        assert lookup(name) is finding


@pytest.mark.parametrize(
    ("text", "finding"),
    [("Tumours", "tumor"), ("Oedema", "edema"), ("haemorrhoids", "hemorrhoids"), ("  EROSIONS ", "erosion"),
     ("Caecum", "normal"), ("Z line", "normal"), ("Barrett\u2019s oesophagus", "barretts")],
)  # fmt: skip
def test_spelling_makes_no_difference(text: str, finding: str) -> None:
    assert lookup(text).id == finding


@pytest.mark.parametrize("text", ["", "  ", "ss", "no polyp", "polypoid", "meckel", "\u80c3", "x"])
def test_what_is_no_name_is_not_found(text: str) -> None:
    assert lookup(text) is None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_nearest_is_always_an_id_and_lookup_never_raises(text: str) -> None:
    assert nearest(text) in FINDINGS
    assert lookup(text) is None or lookup(text).id in FINDINGS


def test_nearest_finds_the_misspelt_name() -> None:
    assert nearest("polpy") == "polyp"
    assert nearest("angiectasy") == "angiectasia"


@pytest.mark.parametrize("function", [name_of, single_label])
def test_an_unknown_id_is_an_error_that_names_the_nearest(function) -> None:
    with pytest.raises(ValueError, match=r"'erosin'.*nearest: 'erosion'"):
        function("erosin")


def test_finer_findings_count_under_their_single_label() -> None:
    assert single_label("hemorrhoids") == "varices"
    assert single_label("polyp") == "polyp"


def test_landmarks_are_normal_and_know_their_organ() -> None:
    for landmark in LANDMARKS.values():
        assert lookup(landmark.name).normal
        assert landmark.organ in ORGANS
    assert landmark_of("normal-z-line").organ == "esophagus"
    assert landmark_of("Ileo-cecal valve").id == "ileocecal_valve"
    assert landmark_of("polyps") is None


@pytest.mark.parametrize(
    ("text", "organ"),
    [("Stomach, white light.", "stomach"), ("Terminal ileum, capsule.", "small_bowel"), ("The caecum of the colon", "colon"),
     ("Oesophagus near the Z-line", "esophagus"), ("Colonic mucosa next to the ileum", "colon"), ("colonel", None), ("", None)],
)  # fmt: skip
def test_the_organ_is_read_from_a_location(text: str, organ: str | None) -> None:
    assert organ_in(text) == organ


@pytest.mark.parametrize(("organ", "name"), ORGANS.items())
def test_display_names_of_organs_are_read_back(organ: str, name: str) -> None:
    assert organ_in(f"{name}, white light.") == organ
