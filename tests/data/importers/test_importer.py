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
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.check import check_case_set
from cogalign.data.images import image_size, load_rgb
from cogalign.data.importers.importer import QUARANTINE, import_data_sets
from cogalign.data.splits import group_of
from cogalign.recipe import DataSettings, ImportSettings


def photograph(path: Path, seed: int, size: tuple[int, int] = (60, 48)) -> None:
    """A JPEG that resembles no other: smooth noise."""
    noise = np.random.default_rng(seed).random((6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((smooth.clip(0, 1) * 255).astype(np.uint8)).save(path, quality=95)


def lesion_mask(path: Path, size: tuple[int, int] = (60, 48)) -> None:
    """A three-channel JPEG mask with grey fringes: x 10 to 29, y 12 to 27."""
    mask = np.zeros((size[1], size[0], 3), np.uint8)
    mask[12:28, 10:30] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path, quality=60)


def box_entry(size: tuple[int, int] = (60, 48)) -> dict:
    box = {"label": "polyp", "xmin": 10, "ymin": 12, "xmax": 30, "ymax": 28}
    return {"width": size[0], "height": size[1], "bbox": [box]}


def run(
    root: Path, layout: str, path: str, out: Path, limit: int | None = None, **settings
) -> tuple[CaseSet, list[dict]]:
    imports = [ImportSettings(layout, path, limit)]
    import_data_sets(DataSettings(imports=imports, root=str(root), **settings), out)
    lines = (out / QUARANTINE).read_text().splitlines()
    return read_case_set(out), [json.loads(line) for line in lines]


@pytest.fixture
def kvasir_seg(tmp_path):
    folder = tmp_path / "root" / "Kvasir-SEG"
    for number in range(4):
        photograph(folder / f"images/cju{number}.jpg", number)
        lesion_mask(folder / f"masks/cju{number}.jpg")
    (folder / "kavsir_bboxes.json").write_text(json.dumps({f"cju{n}": box_entry() for n in range(4)}))
    return folder


def test_kvasir_seg_gives_masks_boxes_and_a_report(kvasir_seg, tmp_path):
    found, rejected = run(tmp_path / "root", "kvasir-seg", "Kvasir-SEG", tmp_path / "out")
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


def test_squares_scale_image_mask_and_boxes_alike(kvasir_seg, tmp_path):
    found, _ = run(tmp_path / "root", "kvasir-seg", "Kvasir-SEG", tmp_path / "out", image_side=24)
    for case in found.cases:
        mask, box = found.mask(case), case.boxes[0]
        assert found.image(case).size == (24, 24) and mask.shape == (24, 24)
        rows, columns = np.where(mask)
        assert (box.xmin, box.ymin, box.xmax, box.ymax) == (4, 6, 12, 14)
        assert abs(columns.min() - 4) <= 1 and abs(rows.max() - 13) <= 1
    assert check_case_set(found.root) == []


def test_what_cannot_be_used_is_quarantined_with_its_reason(kvasir_seg, tmp_path):
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
    found, rejected = run(tmp_path / "root", "kvasir-seg", "Kvasir-SEG", tmp_path / "out")
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


def test_limit_takes_the_first_of_each_finding_by_name(kvasir_seg, tmp_path):
    found, _ = run(tmp_path / "root", "kvasir-seg", "Kvasir-SEG", tmp_path / "out", limit=2)
    assert sorted(found.by_id) == ["kvasir-seg-cju0", "kvasir-seg-cju1"]


@pytest.fixture
def hyperkvasir(tmp_path):
    folder = tmp_path / "root" / "hyper-kvasir"
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


def test_hyperkvasir_reads_classes_organs_and_folds(hyperkvasir, tmp_path):
    found, rejected = run(tmp_path / "root", "hyperkvasir", "hyper-kvasir", tmp_path / "out")
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


def test_hyperkvasir_segmented_images_give_the_polyps_their_masks(hyperkvasir, tmp_path):
    labelled = hyperkvasir / "labeled-images/lower-gi-tract/pathological-findings/polyps/c.jpg"
    segmented = hyperkvasir / "segmented-images"
    (segmented / "images").mkdir(parents=True)
    (segmented / "images/c.jpg").write_bytes(labelled.read_bytes())
    lesion_mask(segmented / "masks/c.jpg")
    (segmented / "bounding-boxes.json").write_text(json.dumps({"c": box_entry()}))
    found, _ = run(tmp_path / "root", "hyperkvasir", "hyper-kvasir", tmp_path / "out")
    polyps = [case for case in found.cases if case.findings == ("polyp",)]
    assert [case.id for case in polyps] == ["hyperkvasir-polyps-c"]
    assert found.mask(polyps[0]).any()


def test_table_and_folder_are_compared_and_the_difference_is_told(hyperkvasir, tmp_path):
    table = hyperkvasir / "labeled-images/image-labels.csv"
    text = table.read_text().replace("a,Lower GI,cecum", "a,Lower GI,ileum").replace("b,Upper", "zz,Upper")
    table.write_text(text)
    found, rejected = run(tmp_path / "root", "hyperkvasir", "hyper-kvasir", tmp_path / "out")
    assert "hyperkvasir-cecum-a" not in found.by_id and "hyperkvasir-pylorus-b" in found.by_id
    reasons = " | ".join(line["reason"] for line in rejected)
    assert "says 'ileum', the folder 'cecum'" in reasons
    assert "1 rows have no image, the first: zz" in reasons
    assert "1 images have no row here" in reasons


def test_gastrovision_keeps_one_file_name_in_two_classes_apart(tmp_path):
    folder = tmp_path / "root" / "gastrovision"
    for seed, name in enumerate(("Colon polyps", "Erythema", "No such class")):
        photograph(folder / "Gastrovision" / name / "100H0004.jpg", seed)
    (folder / "Split").mkdir()
    (folder / "Split/test.csv").write_text("Filename,Class\n100H0004.jpg,Colon polyps\n")
    found, rejected = run(tmp_path / "root", "gastrovision", "gastrovision", tmp_path / "out")
    assert sorted(found.by_id) == ["gastrovision-colon-polyps-100h0004", "gastrovision-erythema-100h0004"]
    assert found.by_id["gastrovision-colon-polyps-100h0004"].attributes["official_split"] == "test"
    assert "official_split" not in found.by_id["gastrovision-erythema-100h0004"].attributes
    assert "class 'No such class' is not in the taxonomy" in rejected[0]["reason"]


def test_kvasir_v2_reads_its_classes_and_groups_a_photograph_under_two_names(tmp_path):
    folder = tmp_path / "root" / "kvasir-dataset-v2"
    for seed, name in enumerate(("esophagitis", "normal-z-line", "polyps")):
        photograph(folder / name / f"{name}.jpg", seed, size=(160, 120))
    again = load_rgb(folder / "polyps/polyps.jpg").resize((120, 90))
    again.save(folder / "polyps/test-copy.jpg", quality=70)
    found, _ = run(tmp_path / "root", "kvasir-v2", "kvasir-dataset-v2", tmp_path / "out", test_share=0.5)
    copies = [case for case in found.cases if case.findings == ("polyp",)]
    assert len(copies) == 2 and len({group_of(case) for case in copies}) == 1 and len({c.split for c in copies}) == 1
    assert found.by_id["kvasir-v2-normal-z-line-normal-z-line"].organ == "esophagus"
    assert check_case_set(found.root) == []


@pytest.mark.parametrize("path", ["../outside", "/etc", "link"])
def test_a_path_that_leaves_the_root_is_an_error(tmp_path, path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=r"inside it|leads out"):
        run(tmp_path / "root", "kvasir-v2", path, tmp_path / "out")
    assert not (tmp_path / "out" / "metadata.jsonl").exists()


def test_unknown_layouts_and_wrong_folders_say_what_is_valid(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"'kvasir'.*wanted one of kvasir-seg"):
        run(tmp_path, "kvasir", "there", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(tmp_path, "kvasir-seg", "nowhere", tmp_path / "out")
    for layout in ("kvasir-seg", "hyperkvasir", "kvasir-v2", "gastrovision"):
        with pytest.raises(FileNotFoundError, match=f"not the layout '{layout}'"):
            run(tmp_path, layout, "there", tmp_path / "out")


def test_a_data_set_without_a_usable_image_is_an_error(tmp_path):
    (tmp_path / "kvasir/polyps").mkdir(parents=True)
    with pytest.raises(ValueError, match="no case"):
        run(tmp_path, "kvasir-v2", "kvasir", tmp_path / "out")


def test_real_photographs_of_all_layouts_become_one_sound_case_set(realdata, tmp_path):
    imports = [ImportSettings("kvasir-seg", "Kvasir-SEG", 12), ImportSettings("hyperkvasir", "hyper-kvasir", 12),
               ImportSettings("kvasir-v2", "kvasir-dataset-v2", 3), ImportSettings("gastrovision", "gastrovision", 8)]  # fmt: skip
    settings = DataSettings(imports=imports, root=str(realdata), image_side=64, test_share=0.3)
    found = read_case_set(import_data_sets(settings, tmp_path))
    assert (tmp_path / QUARANTINE).read_text() == ""
    assert check_case_set(tmp_path) == []
    counts = Counter((case.dataset, case.findings[0]) for case in found.cases)
    assert counts["Kvasir-SEG", "polyp"] == 12 and counts["HyperKvasir", "normal"] == 12
    assert counts["Kvasir v2", "esophagitis"] == 3 and counts["GastroVision", "erythema"] == 8
    assert {image_size(found.path(case.file_name)) for case in found.cases} == {(64, 64)}
    assert set(found.splits) == {"train", "validation", "test"}


def test_every_class_of_the_real_tables_is_in_the_taxonomy(realdata):
    tables = realdata / "full-tables"
    classes = set()
    for path, column in (("gastrovision/GastroVision_metadata.csv", "Class"), ("hyper-kvasir/labeled-images/image-labels.csv", "Finding")):  # fmt: skip
        with (tables / path).open(newline="") as stream:
            classes |= {row[column] for row in csv.DictReader(stream)}
    assert len(classes) == 50
    assert [name for name in classes if lookup(name) is None] == []
