"""Ids and file names of any kind stay inside the folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set
from cogalign.data.check import check_case_set
from cogalign.data.review.apply import apply_review
from cogalign.data.review.commands import export_review, import_review
from tests.data.review.conftest import picture

IDS = ["../../up", "/etc/hostname", "..", "a b/../../c", "Dünndarm 病変 №1", "病", "腸", "C:\\x", "x\ny", "test 01"]
OUTLINE = [[12, 12, 20, 12, 20, 22, 12, 22]]


@pytest.fixture
def strange(tmp_path: Path) -> CaseSet:
    """Cases of strange ids, whose image names hold spaces and other scripts, with a box and no mask."""
    root = tmp_path / "deep/er/cases"
    with CaseSetWriter(root) as writer:
        for number, name in enumerate(IDS):
            file_name = f"images/Bild {number} – 画像.png"
            case = Case(name, file_name, ("polyp",), "train", boxes=(Box("polyp", 10, 10, 30, 25),), answer="A polyp.")
            writer.add(case, picture(number))
    return read_case_set(root)


def outlined_coco(strange: CaseSet, file: Path, by_name: bool) -> None:
    export_review(strange.root, file, "coco")
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = OUTLINE
    for image in content["images"] if by_name else ():
        del image["cogalign_id"]
    file.write_text(json.dumps(content))


def outlined_tasks(strange: CaseSet, file: Path) -> None:
    export_review(strange.root, file.parent / "ls", "label-studio")
    tasks = json.loads((file.parent / "ls/tasks.json").read_text())
    points = [[100 * x / 56, 100 * y / 40] for x, y in zip(OUTLINE[0][::2], OUTLINE[0][1::2], strict=True)]
    for task in tasks:
        (region,) = task.pop("predictions")[0]["result"]
        value = {"points": points, "polygonlabels": ["polyp"]}
        task["annotations"] = [{"result": [{**region, "type": "polygonlabels", "value": value}]}]
    file.write_text(json.dumps(tasks))


@pytest.mark.parametrize(
    "write",
    [
        lambda cases, file: outlined_coco(cases, file, by_name=False),
        lambda cases, file: outlined_coco(cases, file, by_name=True),
        outlined_tasks,
    ],
    ids=["coco by id", "coco by file name", "label studio"],
)
def test_masks_of_strange_ids_and_file_names_stay_in_the_new_folder(
    strange: CaseSet, tmp_path: Path, write: Callable[[CaseSet, Path], None]
) -> None:
    exchange, out = tmp_path / "exchange", tmp_path / "deep/er/new"
    exchange.mkdir()
    write(strange, exchange / "back.json")
    verdicts = [{"id": name, "verdict": "reject"} for name in IDS[:2]]
    content = {"format": "cogalign-verdicts", "version": 1, "by": "A", "verdicts": verdicts}
    (exchange / "v.json").write_text(json.dumps(content))
    before = set(tmp_path.rglob("*"))
    counts = import_review([exchange / "back.json", exchange / "v.json"], strange.root, out)
    assert (counts["kept"], counts["refined"], counts["rejected"]) == (8, 8, 2)
    made = set(tmp_path.rglob("*")) - before
    assert made and all(path == out or out in path.parents for path in made)
    new = read_case_set(out)
    masks = {case.mask_file_name for case in new.cases}
    assert len(masks) == 8 and all(name is not None and name.isascii() for name in masks)
    for case in new.cases:
        mask = new.mask(case)
        assert mask is not None and mask.sum() == 80 and mask[12:22, 12:20].all()
    assert check_case_set(out) == []


OUTSIDE: list[Any] = ["../secret.png", "images/../../secret.png", "/etc/hostname", "..\\secret.png", "C:\\secret.png",
                      "link/secret.png"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["file_name", "mask_file_name", "source_file_name"])
@pytest.mark.parametrize("file", ["metadata.jsonl", "rejected.jsonl"])
def test_a_case_set_cannot_bring_files_from_outside(
    pairs: CaseSet, tmp_path: Path, name: str, field: str, file: str
) -> None:
    (tmp_path / "secret.png").write_bytes((pairs.root / "images/ring-control.png").read_bytes())
    (pairs.root / "link").symlink_to(tmp_path)
    rows = [json.loads(line) for line in (pairs.root / file).read_text().splitlines()]
    rows[0][field] = name
    (pairs.root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"stays inside it|leads out of"):
        apply_review(pairs.root, [], {}, tmp_path / "new")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_imported_file_cannot_name_images_outside(cases: CaseSet, tmp_path: Path, name: str) -> None:
    export_review(cases.root, tmp_path / "coco.json", "coco")
    (cases.root / "link").symlink_to(tmp_path)
    content = json.loads((tmp_path / "coco.json").read_text())
    del content["images"][0]["cogalign_id"]
    content["images"][0]["file_name"] = name
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"stays inside it|leads out of"):
        import_review([tmp_path / "coco.json"], cases.root, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_verdicts_on_strange_ids_change_no_file(cases: CaseSet, tmp_path: Path) -> None:
    entries = [{"id": name, "verdict": "reject", "of": "ring"} for name in IDS]
    content = {"format": "cogalign-verdicts", "version": 1, "verdicts": entries}
    (tmp_path / "v.json").write_text(json.dumps(content))
    counts = import_review([tmp_path / "v.json"], cases.root, tmp_path / "new")
    assert (counts["kept"], counts["elsewhere"]) == (4, len(IDS))
    files = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (cases.root, tmp_path / "new")]
    assert files[0] == files[1]
    assert {path.name for path in tmp_path.iterdir()} == {"cases", "v.json", "new"}
