from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cogalign.data import images
from cogalign.data.cards.find import read_card
from cogalign.data.images import load_rgb
from cogalign.data.importers.importer import import_card
from tests.data.importers.small_sets import lesion_mask, photograph, run, write_kvasir_seg


@pytest.fixture
def kvasir_seg(tmp_path: Path) -> Path:
    return write_kvasir_seg(tmp_path / "Kvasir-SEG")


def reason_of(rows: list[dict[str, str]], path: str) -> str:
    return next(row["reason"] for row in rows if row["path"] == path)


def test_a_wrong_folder_is_told_with_what_it_holds_and_the_card_that_fits(kvasir_seg: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kvasir-dataset-v2"
    for name in ("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus",
                 "normal-z-line", "polyps", "ulcerative-colitis"):  # fmt: skip
        photograph(folder / name / "a.jpg", 1)
    with pytest.raises(
        FileNotFoundError,
        match=r"not the layout 'kvasir-seg': wanted 'images'.*found dyed.*fits the card .*'kvasir-v2'",
    ):
        run("kvasir-seg", folder, tmp_path / "out")
    with pytest.raises(
        FileNotFoundError, match=r"not the layout 'kvasir-v2'.*found images/.*fits the card .*'kvasir-seg'"
    ):
        run("kvasir-v2", kvasir_seg, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run("kvasir-v2", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_fits_no_card(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for card in ("kvasir-seg", "hyperkvasir", "kvasir-v2", "gastrovision"):
        with pytest.raises(FileNotFoundError, match=f"not the layout '{card}'.*found nothing"):
            run(card, tmp_path / "there", tmp_path / "out")


def test_an_unknown_card_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"found 'kvasir-sge', nearest: 'kvasir-seg'; wanted one of"):
        read_card("kvasir-sge")


def test_the_root_may_be_a_folder_in_the_folder_but_not_two(kvasir_seg: Path, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    kvasir_seg.rename(tmp_path / "a/b/Kvasir-SEG")
    found, rejected = run("kvasir-seg", tmp_path / "a", tmp_path / "out")
    assert len(found.cases) == 4 and rejected == []
    write_kvasir_seg(tmp_path / "a/b/again")
    with pytest.raises(ValueError, match=r"2 folders have the layout 'kvasir-seg'.*b/Kvasir-SEG"):
        run("kvasir-seg", tmp_path / "a", tmp_path / "out2")


def test_packed_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/kvasir-seg.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"kvasir-seg.zip is packed: unpack it first"):
        run("kvasir-seg", tmp_path / "src", tmp_path / "out")


def test_a_half_unpacked_data_set_is_refused(tmp_path: Path) -> None:
    card = tmp_path / "packed.yaml"
    card.write_text(CARD.format(id="packed", extra='  archives: ["labelled/*.tar.gz"]\n', images='"labelled/{class}/{stem}.{suffix}"',
                                label='"{class}"'))  # fmt: skip
    for name in ("Polyp", "Ulcer"):
        (tmp_path / "src/labelled").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"src/labelled/{name}.tar.gz").write_bytes(b"")
    for unpacked in ([], ["Polyp"]):
        for name in unpacked:
            photograph(tmp_path / f"src/labelled/{name}/a.jpg", 1)
        with pytest.raises(
            FileNotFoundError, match=r"half unpacked: . of 2 archives are not, the first: labelled/.*tar.gz"
        ):
            import_card(read_card(card), tmp_path / "src", tmp_path / "out", workers=1)
    photograph(tmp_path / "src/labelled/Ulcer/a.jpg", 2)
    assert import_card(read_card(card), tmp_path / "src", tmp_path / "out", workers=1).cases == 2


def test_a_table_that_is_not_utf8_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "gastrovision"
    photograph(folder / "Gastrovision/Erythema/a.jpg", 1)
    (folder / "GastroVision_metadata.csv").write_bytes("Filename,Class\na.jpg,Erythème\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"GastroVision_metadata.csv: not utf-8: line 2 has the byte 0xe8.*encoding"):
        run("gastrovision", folder, tmp_path / "out")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    folder = tmp_path / "gastrovision"
    photograph(folder / "Gastrovision/Erythema/a.jpg", 1)
    (folder / "GastroVision_metadata.csv").write_text("\ufeffFilename,Class\na.jpg,Erythema\n", encoding="utf-8")
    found, rejected = run("gastrovision", folder, tmp_path / "out")
    assert len(found.cases) == 1 and rejected == []


def test_a_table_without_a_wanted_column_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    folder = tmp_path / "gastrovision"
    photograph(folder / "Gastrovision/Erythema/a.jpg", 1)
    (folder / "GastroVision_metadata.csv").write_text("Filenames,Class\na.jpg,Erythema\n")
    with pytest.raises(ValueError, match=r"wanted a column 'Filename'.*nearest: 'Filenames'"):
        run("gastrovision", folder, tmp_path / "out")


def test_zero_bytes_bombs_and_links_are_quarantined(
    kvasir_seg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 48)
    (kvasir_seg / "images/cju0.jpg").write_bytes(b"")
    photograph(kvasir_seg / "images/cju1.jpg", 1, size=(61, 48))
    lesion_mask(kvasir_seg / "masks/cju1.jpg", size=(61, 48))
    (tmp_path / "outside").mkdir()
    (kvasir_seg / "masks/cju2.jpg").rename(tmp_path / "outside/cju2.jpg")
    (kvasir_seg / "masks/cju2.jpg").symlink_to(tmp_path / "outside/cju2.jpg")
    (kvasir_seg / "kavsir_bboxes.json").unlink()
    found, rejected = run("kvasir-seg", kvasir_seg, tmp_path / "out")
    assert sorted(found.by_id) == ["kvasir-seg-cju3"] and len(rejected) == 3
    assert "the file is empty" in reason_of(rejected, "images/cju0.jpg")
    assert "61 x 48 pixels, which is above the limit of 2,880" in reason_of(rejected, "images/cju1.jpg")
    assert "leads out of" in reason_of(rejected, "images/cju2.jpg")


def test_a_linked_folder_is_followed_inside_the_root_and_refused_outside(kvasir_seg: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (kvasir_seg / "masks").rename(kvasir_seg / "lesions")
    (kvasir_seg / "masks").symlink_to("lesions")
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "inside")
    assert len(found.cases) == 4 and found.cases[0].mask_file_name is not None
    (kvasir_seg / "masks").unlink()
    (kvasir_seg / "lesions").rename(tmp_path / "elsewhere/masks")
    (kvasir_seg / "masks").symlink_to(tmp_path / "elsewhere/masks")
    with pytest.raises(ValueError, match="leads out of"):
        run("kvasir-seg", kvasir_seg, tmp_path / "outside")


CARD = """
id: {id}
title: Made up
summary: a test
homepage: https://example.org
obtain: made by the test
citation: none
licence: {{name: none, redistribution: "yes", commercial: "yes"}}
imaging: endoscopy
layout:
  root_markers: ["*"]
{extra}  parts:
    - images: {images}
      label: {label}
"""


def test_a_class_of_the_card_that_is_null_is_left_out_and_counted(tmp_path: Path) -> None:
    card = tmp_path / "counted.yaml"
    text = CARD.format(id="counted", extra="", images='"{class}/{stem}.{suffix}"', label='"{class}"')
    card.write_text(text + "      label_map: {Polyp: polyp, Unclear Case: null}\n")
    for seed, name in enumerate(("Polyp/a", "unclear-case/b", "unclear-case/c", "Polip/d")):
        photograph(tmp_path / f"src/{name}.jpg", seed)
    summary = import_card(read_card(card), tmp_path / "src", tmp_path / "out", workers=1)
    assert (summary.cases, summary.left_out, summary.quarantined) == (1, {"unclear-case": 2}, 1)
    assert "left out, as the card says: unclear-case 2" in summary.lines()
    line = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert "class 'Polip' is not in the taxonomy, nearest: 'polyp', of the card nearest: 'Polyp'" in line["reason"]


def test_one_key_of_two_images_is_told(tmp_path: Path) -> None:
    card = tmp_path / "twice.yaml"
    card.write_text(
        CARD.format(id="twice", extra="", images='"{folder_name}/{stem}.{suffix}"', label="polyp")
        + '      key: "{stem}"\n'
    )
    for seed, name in enumerate(("one/a", "two/a", "two/b")):
        photograph(tmp_path / f"src/{name}.jpg", seed)
    summary = import_card(read_card(card), tmp_path / "src", tmp_path / "out", workers=1)
    line = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert summary.cases == 2 and line["path"] == "two/a.jpg"
    assert line["reason"] == "its key 'a' is that of one/a.jpg too"


def test_a_tiff_that_pillow_cannot_open_becomes_a_png_of_its_colours(tmp_path: Path) -> None:
    card = tmp_path / "cvc.yaml"
    text = CARD.format(id="cvc", extra="", images='"Original/{stem}.tif"', label="polyp")
    card.write_text(text + '      mask: {files: "Ground Truth/{stem}.tif"}\n')
    colours = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for name in ("Original", "Ground Truth"):
        (tmp_path / "src" / name).mkdir(parents=True)
    tifffile.imwrite(tmp_path / "src/Original/1.tif", colours, photometric="minisblack", planarconfig="contig")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "src/Original/1.tif")
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 10:30] = 255
    tifffile.imwrite(tmp_path / "src/Ground Truth/1.tif", mask)
    found = import_card(read_card(card), tmp_path / "src", tmp_path / "out", workers=1)
    assert found.cases == 1
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "out/images/cvc-original-1.png")), colours)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/cvc-original-1.png")), mask)
