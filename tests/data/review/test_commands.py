import json
from pathlib import Path

import numpy as np
import pytest

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.review.commands import export_review, import_review


def verdict_file(path: Path, **decisions: str) -> Path:
    entries = [{"id": name.replace("_", "-"), "verdict": decision} for name, decision in decisions.items()]
    path.write_text(json.dumps({"format": "cogalign-verdicts", "version": 1, "by": "A", "verdicts": entries}))
    return path


def test_coco_and_verdicts_are_told_apart_and_applied_together(cases: CaseSet, tmp_path: Path) -> None:
    coco = tmp_path / "coco.json"
    assert str(coco) in export_review(cases.root, coco, "coco")
    content = json.loads(coco.read_text())
    (entry,) = [entry for entry in content["annotations"] if not entry["segmentation"]]
    entry["segmentation"] = [[12, 12, 20, 12, 20, 22, 12, 22]]
    coco.write_text(json.dumps(content))
    files = [coco, verdict_file(tmp_path / "v.json", ring="reject")]
    counts = import_review(files, cases.root, tmp_path / "new")
    assert counts == {"kept": 3, "refined": 1, "rejected": 1, "restored": 0, "elsewhere": 0}
    new = read_case_set(tmp_path / "new")
    mask = new.mask(new.by_id["boxed"])
    assert mask is not None and mask.sum() == 80 and mask[12:22, 12:20].all()


def test_a_label_studio_project_goes_there_and_back(cases: CaseSet, tmp_path: Path) -> None:
    text = export_review(cases.root, tmp_path / "ls", "label-studio", "inline")
    assert "tasks.json" in text and "local file" not in text
    tasks = json.loads((tmp_path / "ls/tasks.json").read_text())
    for task in tasks:
        result = task.pop("predictions", [{"result": []}])[0]["result"]
        if task["data"]["cogalign_id"] == "normal":
            result = [{"type": "choices", "value": {"choices": ["reject"]}}]
        task["annotations"] = [{"completed_by": 3, "result": result}]
    (tmp_path / "back.json").write_text(json.dumps(tasks))
    counts = import_review([tmp_path / "back.json"], cases.root, tmp_path / "new")
    assert counts == {"kept": 3, "refined": 2, "rejected": 1, "restored": 0, "elsewhere": 0}
    new = read_case_set(tmp_path / "new")
    for name in ("ring", "two"):
        assert np.array_equal(new.mask(new.by_id[name]), cases.mask(cases.by_id[name]))
        assert new.by_id[name].boxes == cases.by_id[name].boxes
        assert new.by_id[name].attributes["mask"]["by"] == "3"


def test_verdicts_on_pairs(pairs: CaseSet, tmp_path: Path) -> None:
    counts = import_review([verdict_file(tmp_path / "v.json", ring_control="reject")], pairs.root, tmp_path / "new")
    assert (counts["kept"], counts["rejected"]) == (1, 1)


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"images": []}', '[{"id": 1}, 2]'])
def test_a_file_of_another_kind_is_refused(cases: CaseSet, tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json: found .*, wanted a COCO file"):
        import_review([tmp_path / "other.json"], cases.root, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unknown_options_name_what_there_is(cases: CaseSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--format: found 'voc', wanted one of coco, label-studio"):
        export_review(cases.root, tmp_path / "x", "voc")
    with pytest.raises(ValueError, match="--images: found 'zip', wanted link or inline"):
        export_review(cases.root, tmp_path / "x", "label-studio", "zip")
    with pytest.raises(ValueError, match="no file, wanted at least one"):
        import_review([], cases.root, tmp_path / "x")


def test_two_boxes_of_which_one_is_outlined_are_refused_until_the_other_is_too(cases: CaseSet, tmp_path: Path) -> None:
    coco = tmp_path / "coco.json"
    export_review(cases.root, coco, "coco")
    content = json.loads(coco.read_text())
    (entry,) = [entry for entry in content["annotations"] if not entry["segmentation"]]
    entry["segmentation"] = [[12, 12, 20, 12, 20, 22, 12, 22]]
    other = {**entry, "id": 99, "segmentation": [], "bbox": [34, 26, 12, 10]}
    content["annotations"].append(other)
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"case 'boxed': the polyp in box 34, 26 to 46, 36 .*outline it or delete it"):
        import_review([coco], cases.root, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    other["segmentation"] = [[34, 26, 46, 26, 46, 36, 34, 36]]
    coco.write_text(json.dumps(content))
    import_review([coco], cases.root, tmp_path / "new")
    new = read_case_set(tmp_path / "new")
    mask = new.mask(new.by_id["boxed"])
    assert mask is not None and mask[26:36, 34:46].all() and mask.sum() == 80 + 120
