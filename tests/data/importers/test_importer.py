from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cogalign.cognition.report import parse
from cogalign.cognition.taxonomy import lookup
from cogalign.data.check import check_case_set
from cogalign.data.fingerprints import fingerprints_of
from cogalign.data.images import image_size
from cogalign.data.sources import read_sources
from tests.data.importers.small_sets import box_entry, lesion_mask, photograph, quarantine, run, write_kvasir_seg


@pytest.fixture
def kvasir_seg(tmp_path: Path) -> Path:
    return write_kvasir_seg(tmp_path / "Kvasir-SEG")


def test_kvasir_seg_gives_masks_boxes_and_a_report(kvasir_seg: Path, tmp_path: Path) -> None:
    found, rejected = run("kvasir-seg", kvasir_seg, tmp_path / "out")
    assert rejected == [] and len(found.cases) == 4
    case = found.by_id["kvasir-seg-cju2"]
    assert (case.findings, case.organ, case.dataset) == (("polyp",), "colon", "Kvasir-SEG")
    assert "research" in case.licence
    assert parse(case.answer).diagnosis == ("polyp",)
    assert set(case.keywords) == {"location", "morphology", "microvasculature"}
    expected = np.zeros((48, 60), bool)
    expected[12:28, 10:30] = True
    assert (found.mask(case) ^ expected).mean() < 0.01
    box = case.boxes[0]
    assert (box.finding, box.xmin, box.ymin, box.xmax, box.ymax) == ("polyp", 10, 12, 30, 28)
    assert check_case_set(found.root) == []


def test_squares_scale_image_mask_and_boxes_alike(kvasir_seg: Path, tmp_path: Path) -> None:
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "out", side=24)
    for case in found.cases:
        mask, box = found.mask(case), case.boxes[0]
        assert found.image(case).size == (24, 24) and mask.shape == (24, 24)
        rows, columns = np.where(mask)
        assert (box.xmin, box.ymin, box.xmax, box.ymax) == (4, 6, 12, 14)
        assert abs(columns.min() - 4) <= 1 and abs(rows.max() - 13) <= 1
    assert check_case_set(found.root) == []


def test_overlays_are_found_before_an_image_is_made_small(kvasir_seg: Path, tmp_path: Path) -> None:
    image = np.zeros((480, 600, 3), np.uint8)
    cv2.circle(image, (360, 240), 200, (150, 90, 80), -1)
    cv2.putText(image, "12/04/2019", (8, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (230, 230, 230), 2)
    Image.fromarray(image).save(kvasir_seg / "images/cju0.jpg", quality=95)
    lesion_mask(kvasir_seg / "masks/cju0.jpg", size=(600, 480))
    (kvasir_seg / "kavsir_bboxes.json").unlink()
    whole, _ = run("kvasir-seg", kvasir_seg, tmp_path / "whole")
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "small", side=60)
    assert "overlays" not in whole.by_id["kvasir-seg-cju0"].attributes
    (text,) = found.by_id["kvasir-seg-cju0"].attributes["overlays"]["text"]
    xmin, ymin, xmax, ymax = text
    assert 0 <= xmin <= 2 and 1 <= ymin <= 4 and 10 <= xmax <= 20 and 4 <= ymax <= 7
    assert found.by_id["kvasir-seg-cju1"].attributes["overlays"] == {"text": [], "guide_box": []}


def test_what_cannot_be_used_is_quarantined_with_its_reason(kvasir_seg: Path, tmp_path: Path) -> None:
    for number in range(4, 10):
        photograph(kvasir_seg / f"images/cju{number}.jpg", number)
        lesion_mask(kvasir_seg / f"masks/cju{number}.jpg")
    content = (kvasir_seg / "images/cju4.jpg").read_bytes()
    (kvasir_seg / "images/cju4.jpg").write_bytes(content[: len(content) // 2])
    (kvasir_seg / "masks/cju5.jpg").unlink()
    lesion_mask(kvasir_seg / "masks/cju6.jpg", size=(61, 48))
    Image.new("RGB", (60, 48)).save(kvasir_seg / "masks/cju7.jpg")
    (tmp_path / "secret.jpg").write_bytes(content)
    (kvasir_seg / "images/cju8.jpg").unlink()
    (kvasir_seg / "images/cju8.jpg").symlink_to(tmp_path / "secret.jpg")
    boxes = {"cju0": box_entry((61, 48)), "cju9": {"bbox": 3}, "cju77": box_entry()}
    (kvasir_seg / "kavsir_bboxes.json").write_text(json.dumps(boxes))
    found, rejected = run("kvasir-seg", kvasir_seg, tmp_path / "out")
    assert sorted(found.by_id) == ["kvasir-seg-cju1", "kvasir-seg-cju2", "kvasir-seg-cju3"]
    reasons = {line["path"].removeprefix("Kvasir-SEG/"): line["reason"] for line in rejected}
    assert "the box file says 61 x 48" in reasons["images/cju0.jpg"]
    assert "not a readable image" in reasons["images/cju4.jpg"]
    assert "no mask" in reasons["images/cju5.jpg"]
    assert "61 x 48" in reasons["images/cju6.jpg"]
    assert "empty" in reasons["images/cju7.jpg"]
    assert "leads out" in reasons["images/cju8.jpg"]
    assert "does not parse" in reasons["images/cju9.jpg"]
    assert reasons["kavsir_bboxes.json"] == "1 rows have no image, the first: cju77"
    assert all(str(tmp_path / "root" / "Kvasir-SEG") not in line["reason"] for line in rejected)


def test_limit_takes_the_first_of_each_finding_by_name(kvasir_seg: Path, tmp_path: Path) -> None:
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "out", limit=2)
    assert sorted(found.by_id) == ["kvasir-seg-cju0", "kvasir-seg-cju1"]


@pytest.fixture
def hyperkvasir(tmp_path: Path) -> Path:
    folder = tmp_path / "hyper-kvasir"
    rows = [("lower", "anatomical-landmarks", "cecum", "a"), ("upper", "anatomical-landmarks", "pylorus", "b"),
            ("lower", "pathological-findings", "polyps", "c"), ("lower", "pathological-findings", "hemorrhoids", "d"),
            ("upper", "pathological-findings", "esophagitis-b-d", "e"), ("lower", "therapeutic-interventions", "dyed-lifted-polyps", "f")]  # fmt: skip
    lines = ["Video file,Organ,Finding,Classification"]
    for seed, (tract, kind, name, stem) in enumerate(rows):
        photograph(folder / f"labeled-images/{tract}-gi-tract/{kind}/{name}/{stem}.jpg", seed)
        lines.append(f"{stem},{tract.title()} GI,{name},{kind}")
    (folder / "labeled-images/image-labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "official_splits").mkdir()
    (folder / "official_splits/5_fold_split.csv").write_text("file-name;class-name;split-index\na.jpg;normal-cecum;3\n")
    return folder


def test_hyperkvasir_reads_classes_organs_and_folds(hyperkvasir: Path, tmp_path: Path) -> None:
    found, rejected = run("hyperkvasir", hyperkvasir, tmp_path / "out")
    assert rejected == []
    assert {(case.attributes["class"], case.findings[0], case.organ) for case in found.cases} == {
        ("cecum", "normal", "colon"),
        ("pylorus", "normal", "stomach"),
        ("polyps", "polyp", "colon"),
        ("hemorrhoids", "hemorrhoids", "colon"),
        ("esophagitis-b-d", "esophagitis", "esophagus"),
        ("dyed-lifted-polyps", "dyed_lifted_polyp", "colon"),
    }
    assert found.by_id["hyperkvasir-cecum-a"].attributes["official_fold"] == 3
    assert "cecum" in found.by_id["hyperkvasir-cecum-a"].answer


def test_hyperkvasir_segmented_images_give_the_polyps_their_masks(hyperkvasir: Path, tmp_path: Path) -> None:
    labelled = hyperkvasir / "labeled-images/lower-gi-tract/pathological-findings/polyps/c.jpg"
    segmented = hyperkvasir / "segmented-images"
    (segmented / "images").mkdir(parents=True)
    (segmented / "images/c.jpg").write_bytes(labelled.read_bytes())
    lesion_mask(segmented / "masks/c.jpg")
    (segmented / "bounding-boxes.json").write_text(json.dumps({"c": box_entry()}))
    found, _ = run("hyperkvasir", hyperkvasir, tmp_path / "out")
    polyps = [case for case in found.cases if case.findings == ("polyp",)]
    assert [case.id for case in polyps] == ["hyperkvasir-polyps-c"]
    assert found.mask(polyps[0]).any()


def test_table_and_folder_are_compared_and_the_difference_is_told(hyperkvasir: Path, tmp_path: Path) -> None:
    table = hyperkvasir / "labeled-images/image-labels.csv"
    text = table.read_text().replace("a,Lower GI,cecum", "a,Lower GI,ileum").replace("b,Upper", "zz,Upper")
    table.write_text(text)
    found, rejected = run("hyperkvasir", hyperkvasir, tmp_path / "out")
    assert "hyperkvasir-cecum-a" not in found.by_id and "hyperkvasir-pylorus-b" in found.by_id
    reasons = " | ".join(line["reason"] for line in rejected)
    assert "says 'ileum', the folder 'cecum'" in reasons
    assert "1 rows have no image, the first: zz" in reasons
    assert "1 images have no row here" in reasons


def test_gastrovision_keeps_one_file_name_in_two_classes_apart(tmp_path: Path) -> None:
    folder = tmp_path / "gastrovision"
    for seed, name in enumerate(("Colon polyps", "Erythema", "Erythemas of no class")):
        photograph(folder / "Gastrovision" / name / "100H0004.jpg", seed)
    (folder / "Split").mkdir()
    (folder / "Split/test.csv").write_text("Filename,Class\n100H0004.jpg,Colon polyps\n")
    found, rejected = run("gastrovision", folder, tmp_path / "out")
    assert sorted(found.by_id) == ["gastrovision-colon-polyps-100h0004", "gastrovision-erythema-100h0004"]
    polyp, erythema = (found.by_id[f"gastrovision-{name}-100h0004"] for name in ("colon-polyps", "erythema"))
    assert (polyp.split, polyp.attributes["official_split"]) == ("test", "test")
    assert erythema.split == "train" and "official_split" not in erythema.attributes
    assert "class 'Erythemas of no class' is not in the taxonomy, nearest: 'erythema'" in rejected[0]["reason"]


def test_kvasir_v2_reads_its_classes(tmp_path: Path) -> None:
    folder = tmp_path / "kvasir-dataset-v2"
    for seed, name in enumerate(("esophagitis", "normal-z-line", "polyps")):
        photograph(folder / name / f"{name}.jpg", seed, size=(160, 120))
    photograph(folder / "polyps/test-copy.JPG", 2, size=(120, 90))
    found, rejected = run("kvasir-v2", folder, tmp_path / "out")
    assert rejected == [] and len(found.cases) == 4
    case = found.by_id["kvasir-v2-normal-z-line-normal-z-line"]
    assert (case.findings, case.organ) == (("normal",), "esophagus")
    assert found.by_id["kvasir-v2-polyps-test-copy"].file_name == "images/kvasir-v2-polyps-testx-copy.jpg"
    assert check_case_set(found.root) == []


def test_a_data_set_without_a_usable_image_is_an_error_that_gives_the_first_reason(
    kvasir_seg: Path, tmp_path: Path
) -> None:
    for path in (kvasir_seg / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no case of Kvasir-SEG.*images/cju0.jpg.*the file is empty"):
        run("kvasir-seg", kvasir_seg, tmp_path / "out")
    assert len(quarantine(tmp_path / "out")) == 4
    assert not (tmp_path / "out/metadata.jsonl").exists()


def test_images_are_the_bytes_of_the_data_set_and_their_fingerprints_are_there(
    kvasir_seg: Path, tmp_path: Path
) -> None:
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "out")
    for case in found.cases:
        assert found.path(case.file_name).read_bytes() == (kvasir_seg / "images" / case.attributes["file"]).read_bytes()
    stored = (tmp_path / "out/fingerprints.npz").read_bytes()
    prints = fingerprints_of(found, workers=1)
    assert (tmp_path / "out/fingerprints.npz").read_bytes() == stored
    assert [one.size for one in prints] == [(60, 48)] * 4 and len({one.digest for one in prints}) == 4
    source = read_sources(tmp_path / "out")[0]
    assert (source.card, source.title, source.cases) == ("kvasir-seg", "Kvasir-SEG", 4)


def test_fingerprints_are_those_of_the_original_where_squares_are_written(kvasir_seg: Path, tmp_path: Path) -> None:
    small, _ = run("kvasir-seg", kvasir_seg, tmp_path / "small", side=24)
    whole, _ = run("kvasir-seg", kvasir_seg, tmp_path / "whole")
    digests = [[one.digest for one in fingerprints_of(found, workers=1)] for found in (small, whole)]
    assert digests[0] == digests[1]


def test_references_are_links_that_need_the_data_root_to_be_named(
    kvasir_seg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "out", images="reference")
    link = tmp_path / "out" / found.cases[0].file_name
    assert link.is_symlink() and link.resolve() == (kvasir_seg / "images/cju0.jpg").resolve()
    with pytest.raises(ValueError, match="set COGALIGN_DATA_ROOTS"):
        found.image(found.cases[0])
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(kvasir_seg))
    assert found.image(found.cases[0]).size == (60, 48)
    assert check_case_set(found.root) == []


def test_real_photographs_of_four_cards_become_sound_case_sets(realdata: Path, tmp_path: Path) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for card, folder, limit in (("kvasir-seg", "Kvasir-SEG", 12), ("hyperkvasir", "hyper-kvasir", 12),
                                ("kvasir-v2", "kvasir-dataset-v2", 3), ("gastrovision", "gastrovision", 8)):  # fmt: skip
        found, rejected = run(card, realdata / folder, tmp_path / card, side=64, limit=limit)
        assert rejected == [] and check_case_set(found.root) == []
        assert {image_size(found.path(case.file_name)) for case in found.cases} == {(64, 64)}
        counts.update((case.dataset, case.findings[0]) for case in found.cases)
    assert counts["Kvasir-SEG", "polyp"] == 12 and counts["HyperKvasir", "normal"] == 12
    assert counts["Kvasir v2", "esophagitis"] == 3 and counts["GastroVision", "erythema"] == 8


def test_every_class_of_the_real_tables_is_in_the_taxonomy(realdata: Path) -> None:
    tables = realdata / "full-tables"
    classes = set()
    for path, column in (("gastrovision/GastroVision_metadata.csv", "Class"), ("hyper-kvasir/labeled-images/image-labels.csv", "Finding")):  # fmt: skip
        with (tables / path).open(newline="") as stream:
            classes |= {row[column] for row in csv.DictReader(stream)}
    assert len(classes) == 50
    assert [name for name in classes if lookup(name) is None] == []
