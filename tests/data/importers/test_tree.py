from __future__ import annotations

import os
from pathlib import Path

import pytest

from cogalign.data.cards.find import card_ids, read_card
from cogalign.data.importers import root, tables
from cogalign.data.importers.importer import import_card
from cogalign.data.importers.readers import kvasir_vqa
from cogalign.data.importers.tables import read_text
from cogalign.data.importers.tree import Tree
from tests.data.importers.small_sets import photograph, quarantine, run, write_kvasir_seg

BAD = os.fsdecode(b"caf\xe9")


@pytest.fixture
def kvasir_seg(tmp_path: Path) -> Path:
    return write_kvasir_seg(tmp_path / "Kvasir-SEG")


def reasons(out: Path) -> dict[str, str]:
    return {line["path"]: line["reason"] for line in quarantine(out)}


def test_a_pipe_a_broken_link_and_a_name_that_is_not_utf8_are_quarantined(kvasir_seg: Path, tmp_path: Path) -> None:
    os.mkfifo(kvasir_seg / "images/cju8.jpg")
    (kvasir_seg / "images/cju9.jpg").symlink_to("nowhere.jpg")
    for folder in ("images", "masks"):
        (kvasir_seg / folder / f"{BAD}.jpg").write_bytes((kvasir_seg / folder / "cju0.jpg").read_bytes())
    os.mkfifo(kvasir_seg / "masks/cju3.png")
    (kvasir_seg / "masks/cju3.jpg").unlink()
    found, _ = run("kvasir-seg", kvasir_seg, tmp_path / "out")
    assert sorted(found.by_id) == ["kvasir-seg-cju0", "kvasir-seg-cju1", "kvasir-seg-cju2"]
    told = reasons(tmp_path / "out")
    assert "neither a file nor a link to one" in told["images/cju8.jpg"]
    assert "neither a file nor a link to one" in told["images/cju9.jpg"]
    assert "masks/cju3.png: neither a file" in told["images/cju3.jpg"]
    assert told["images/caf\\xe9.jpg"] == "its name is not UTF-8; rename it"


def test_a_table_that_is_a_link_out_of_the_data_set_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gastrovision"
    photograph(folder / "Gastrovision/Erythema/a.jpg", 1)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/secret.csv").write_text("Filename,Class\na.jpg,Erythema\n")
    (folder / "GastroVision_metadata.csv").symlink_to(tmp_path / "else/secret.csv")
    with pytest.raises(ValueError, match=r"GastroVision_metadata.csv: .*leads out of.*COGALIGN_DATA_ROOTS") as raised:
        run("gastrovision", folder, tmp_path / "out")
    assert "Filename" not in str(raised.value)
    monkeypatch.setenv("COGALIGN_DATA_ROOTS", str(tmp_path / "else"))
    assert len(run("gastrovision", folder, tmp_path / "out")[0].cases) == 1


def test_the_readers_refuse_links_out_of_the_data_set_and_pipes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b"):
        photograph(folder / f"images/{name}.jpg", ord(name))
    photograph(tmp_path / "else.jpg", 3)
    (folder / "images/c.jpg").symlink_to(tmp_path / "else.jpg")
    os.mkfifo(folder / "images/d.jpg")
    rows = "".join(f"Polyps,One?,1,{name}\n" for name in "abcd")
    (tmp_path / "metadata.csv").write_text("source,question,answer,img_id\n" + rows)
    (folder / "metadata.csv").symlink_to(tmp_path / "metadata.csv")
    card = read_card("kvasir-vqa")
    with pytest.raises(ValueError, match=r"metadata.csv: .*leads out of"):
        list(kvasir_vqa.read(folder, card))
    (folder / "metadata.csv").unlink()
    (tmp_path / "metadata.csv").rename(folder / "metadata.csv")
    import_card(card, folder, tmp_path / "out", workers=1)
    told = reasons(tmp_path / "out")
    assert "leads out of" in told["images/c.jpg"] and "neither a file" in told["images/d.jpg"]


def test_a_text_above_the_limit_and_a_pipe_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    os.mkfifo(tmp_path / "b.csv")
    with pytest.raises(ValueError, match="not a file"):
        read_text(tmp_path / "b.csv")
    monkeypatch.setattr(tables, "MAX_TEXT", 7)
    with pytest.raises(ValueError, match=r"a\.csv: 8 bytes, which is above the limit of 7"):
        read_text(tmp_path / "a.csv")


def test_a_case_set_in_the_folder_is_no_part_of_the_data_set(kvasir_seg: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lies in the folder of the data set"):
        run("kvasir-seg", kvasir_seg, kvasir_seg / "out")
    assert not (kvasir_seg / "out").exists()
    run("kvasir-seg", tmp_path, tmp_path / "out")
    assert import_card(read_card("kvasir-seg"), tmp_path, tmp_path / "out", workers=1).unchanged
    (tmp_path / "out").rename(kvasir_seg / "out")
    assert not [path for path in Tree(kvasir_seg).files if path.startswith("out/")]


def test_a_wrong_folder_is_not_listed_for_every_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src/x/y").mkdir(parents=True)
    listed: list[str] = []
    scan = os.scandir

    def noted(path: str | Path) -> object:
        listed.append(os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", noted)
    folders = root.Folders()
    assert [folders.of(tmp_path / "src/x") for _ in range(3)] == [[tmp_path / "src/x/y"]] * 3
    assert listed == [str(tmp_path / "src/x")]
    assert root.nearest_cards(tmp_path / "src", read_card("kvasir-seg"), folders) == []
    assert listed.count(str(tmp_path / "src/x")) < len(card_ids()) / 2  # some cards' markers have `**`
