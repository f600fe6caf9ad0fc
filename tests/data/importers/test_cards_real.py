"""Cards on real files: the photographs of `../shared/realdata`, and the complete tables of the data sets."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from cogalign.cognition.taxonomy import lookup
from cogalign.data.cards.card import Table
from cogalign.data.cards.find import read_card
from cogalign.data.importers.base import Photograph, Record
from cogalign.data.importers.importer import import_card
from cogalign.data.importers.root import find_root
from cogalign.data.importers.rules import read_layout
from cogalign.data.importers.tables import Row, read_rows
from tests.data.importers.test_cards import imported


def rows(path: Path, delimiter: str = ",") -> list[Row]:
    """The rows of a complete table."""
    return read_rows(path, Table("full", path.name, {"-": "-"}, delimiter=delimiter), set())


def touch(paths: Iterable[Path]) -> None:
    """Empty files: the rules read names alone."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(name: str, src: Path) -> list[Record]:
    """What the rules of a card say of a folder."""
    card = read_card(name)
    return list(read_layout(find_root(src, card), card))


def classes(records: list[Record]) -> Counter[str]:
    """Photographs by class name."""
    return Counter(record.labels[0] for record in records if isinstance(record, Photograph))


def test_kvasir_seg_sample_is_read_whole_with_every_mask_and_box(realdata):
    records = read("kvasir-seg", realdata / "Kvasir-SEG")
    entries = json.loads((realdata / "Kvasir-SEG/kavsir_bboxes.json").read_text())
    photographs = [record for record in records if isinstance(record, Photograph)]
    assert len(records) == len(photographs) == len(entries) == 374
    assert all(record.mask and record.mask.files for record in photographs)
    for record in photographs:
        found = [(box.xmin, box.ymin, box.xmax, box.ymax) for box in record.boxes]
        assert found == [(box["xmin"], box["ymin"], box["xmax"], box["ymax"]) for box in entries[record.key]["bbox"]]


@pytest.mark.slow
def test_kvasir_seg_sample_is_imported_whole(realdata, tmp_path):
    found, rejected = imported("kvasir-seg", realdata / "Kvasir-SEG", tmp_path / "out", side=96)
    assert len(found.cases) == 374 and rejected == []
    assert {(case.findings, case.organ) for case in found.cases} == {(("polyp",), "colon")}
    assert all(found.mask(case).any() for case in found.cases)


def test_the_difference_to_the_whole_data_set_is_told(realdata, tmp_path):
    summary = import_card(read_card("kvasir-seg"), realdata / "Kvasir-SEG", tmp_path, limit=12, side=96, workers=1)
    assert summary.cases == summary.masks == 12 and summary.quarantined == 0
    told = " | ".join(summary.differences)
    assert "374" in told and "1000" in told.replace(",", "")


def test_hyperkvasir_sample_is_imported_whole_with_its_folds(realdata, tmp_path):
    found, rejected = imported("hyperkvasir", realdata / "hyper-kvasir", tmp_path / "out")
    counts = Counter((case.attributes["class"], case.findings[0], case.organ) for case in found.cases)
    assert counts == {("cecum", "normal", "colon"): 150, ("retroflex-rectum", "normal", "colon"): 150}
    assert {case.attributes["official_fold"] for case in found.cases} == {0, 1, 2, 3, 4} and rejected == []


def test_kvasir_v2_sample_is_imported_whole(realdata, tmp_path):
    found, rejected = imported("kvasir-v2", realdata / "kvasir-dataset-v2", tmp_path / "out", side=96)
    counts = Counter(case.attributes["class"] for case in found.cases)
    assert len(found.cases) == 38 and rejected == []
    assert counts == {name: 11 if name in ("esophagitis", "polyps", "ulcerative-colitis") else 1 for name in counts}
    assert set(counts) == set(read_card("kvasir-v2").expected.classes)


def test_gastrovision_sample_is_imported_whole_with_its_split(realdata, tmp_path):
    found, rejected = imported("gastrovision", realdata / "gastrovision", tmp_path / "out", side=96)
    counts = Counter(case.attributes["class"] for case in found.cases)
    assert len(found.cases) == 195 and rejected == []
    assert counts["Erythema"] == 15 and set(counts.values()) == {15, 60}
    without = {case.attributes["class"] for case in found.cases if "official_split" not in case.attributes}
    assert without == {"Erythema"}


def test_kvasir_seg_under_its_other_names_is_hyperkvasir_segmented(realdata, tmp_path):
    names = json.loads((realdata / "full-tables/kvasir-seg/kvasirseg_to_hyperkvasir_uuid.json").read_text())
    sources = sorted((realdata / "Kvasir-SEG/images").iterdir())[:20]
    folder = tmp_path / "hyper-kvasir-segmented-images/segmented-images"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for path in sources:
            shutil.copy(realdata / "Kvasir-SEG" / kind / path.name, folder / kind / f"{names[path.stem]}.jpg")
    full = json.loads((realdata / "full-tables/hyper-kvasir/segmented-images/bounding-boxes.json").read_text())
    (folder / "bounding-boxes.json").write_text(json.dumps(full))
    found, rejected = imported("hyperkvasir-segmented", tmp_path / "hyper-kvasir-segmented-images", tmp_path / "out")
    assert {Path(case.attributes["file"]).stem for case in found.cases} == {names[path.stem] for path in sources}
    for case in found.cases:
        entry = full[Path(case.attributes["file"]).stem]
        boxes = [(box.xmin, box.ymin, box.xmax, box.ymax) for box in case.boxes]
        assert boxes == [(box["xmin"], box["ymin"], box["xmax"], box["ymax"]) for box in entry["bbox"]]
        mask = found.mask(case)
        inside = sum(mask[y1:y2, x1:x2].sum() for x1, y1, x2, y2 in boxes[:1])
        assert mask.any() and (len(boxes) > 1 or inside / mask.sum() > 0.99)
    assert [reason for _, reason in rejected if "980 rows have no image" not in reason] == [] and len(rejected) == 1


def test_the_full_tables_of_hyperkvasir_give_the_counts_of_the_card(realdata, tmp_path):
    tables = realdata / "full-tables/hyper-kvasir"
    shutil.copytree(tables, tmp_path / "hk", ignore=shutil.ignore_patterns("segmented-images", "2_fold*"))
    labelled = tmp_path / "hk/labeled-images"
    touch(
        labelled / f"{row['Organ'].split()[0].lower()}-gi-tract" / row["Classification"] / row["Finding"]
        / f"{row['Video file']}.jpg"
        for row in rows(tables / "labeled-images/image-labels.csv")
    )  # fmt: skip
    records = read("hyperkvasir", tmp_path / "hk")
    expected = read_card("hyperkvasir").expected
    assert [record for record in records if not isinstance(record, Photograph)] == []
    assert classes(records) == expected.classes and len(records) == expected.images == sum(expected.classes.values())
    folds = Counter(record.attributes["official_fold"] for record in records if isinstance(record, Photograph))
    assert sorted(folds.values()) == [2122, 2122, 2122, 2122, 2174]
    spelt = {row["class-name"] for row in rows(tables / "official_splits/5_fold_split.csv", ";")}
    assert [name for name in spelt if lookup(name) is None] == []


def test_the_full_tables_of_gastrovision_give_the_counts_and_splits_of_the_card(realdata, tmp_path):
    tables = realdata / "full-tables/gastrovision"
    shutil.copytree(tables, tmp_path / "gv")
    found = rows(tables / "GastroVision_metadata.csv")
    touch(tmp_path / "gv/Gastrovision" / row["Class"] / row["Filename"] for row in found)
    records = read("gastrovision", tmp_path / "gv")
    expected = read_card("gastrovision").expected
    assert [record for record in records if not isinstance(record, Photograph)] == []
    assert classes(records) == expected.classes and len(records) == expected.images == 8000
    splits = Counter(record.split for record in records if isinstance(record, Photograph))
    assert splits == {"train": 4757, "validation": 1587, "test": 1586, None: 70}


def test_the_box_table_of_the_segmented_images_gives_the_counts_of_the_card(realdata, tmp_path):
    table = realdata / "full-tables/hyper-kvasir/segmented-images/bounding-boxes.json"
    names = json.loads(table.read_text())
    touch(tmp_path / f"segmented-images/{kind}/{name}.jpg" for kind in ("images", "masks") for name in names)
    shutil.copy(table, tmp_path / "segmented-images")
    records = read("hyperkvasir-segmented", tmp_path)
    expected = read_card("hyperkvasir-segmented").expected
    photographs = [record for record in records if isinstance(record, Photograph)]
    assert len(photographs) == len(records) == expected.images == expected.masks
    assert sum(len(record.boxes) for record in photographs) == expected.boxes == read_card("kvasir-seg").expected.boxes


def test_the_official_split_of_kvasir_capsule_joins_its_frames(realdata, tmp_path):
    table = realdata / "full-tables/kvasir-capsule/official_splits/split_0.csv"
    found = rows(table)
    some = found[::16]
    touch(tmp_path / "labelled_images" / row["label"] / row["filename"] for row in some)
    shutil.copytree(table.parent, tmp_path / "official_splits")
    records = read("kvasir-capsule", tmp_path)
    photographs = [record for record in records if isinstance(record, Photograph)]
    assert len(found) == 23061 and len(photographs) == len({row["filename"] for row in some})
    assert {record.attributes["official_fold"] for record in photographs} == {0}
    assert all(record.group == f"video-{record.key.split('_')[0]}" for record in photographs)
    assert [row["label"] for row in found if lookup(row["label"]) is None] == []
