from pathlib import Path

import pytest

from cogalign.counterfactual.located import Located
from cogalign.counterfactual.parts import Parts, digest, read_left_out, read_rejected
from cogalign.counterfactual.plan import Edit, Plan, Task
from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.recipe import CounterfactualSettings, QualitySettings

SOURCE = Case("a", "images/a.png", ("polyp",), "train")
EDITS = (Edit("a-removal", "0-removal", "removal", 0), Edit("a-control", "0-control", "control", 0))
PLAN = Plan((Task(SOURCE, "sources/0.png", EDITS),), {"no mask": 2})


def row(folder: Path, edit: Edit) -> dict[str, object]:
    """A finished counterfactual: its row, and its files on disk."""
    names = [f"images/{edit.name}.png", f"masks/{edit.name}.png", "sources/0.png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
    made = Case(edit.id, names[0], ("normal",), "train", mask_file_name=names[1], source_file_name=names[2],
                counterfactual_of="a", intervention=edit.intervention)  # fmt: skip
    return {"id": edit.id, "row": made.to_row()}


def test_a_line_cut_off_by_a_kill_is_made_again_and_hurts_no_other(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [row(tmp_path, EDITS[0])])
    path = tmp_path / "parts-abc" / "rank-0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "a-control", "row": {"id": "a-con')
    assert "a-removal" in parts.read() and "a-control" not in parts.read()
    parts.append(0, [row(tmp_path, EDITS[1])])
    assert set(parts.read().rows) == {"a-removal", "a-control"}


def test_a_row_without_its_picture_or_with_an_empty_one_is_not_finished(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [row(tmp_path, EDITS[0])])
    assert "a-removal" in parts.read()
    (tmp_path / "masks/0-removal.png").write_bytes(b"")
    assert "a-removal" not in parts.read()
    (tmp_path / "masks/0-removal.png").unlink()
    assert "a-removal" not in parts.read()


def finish(parts: Parts, rejected: tuple[str, ...] = ()) -> None:
    """What the stage does once everything is made."""
    made = [Case.from_row(row) for row in parts.rows(PLAN)]
    parts.finish(
        PLAN, [case for case in made if case.id not in rejected], [case for case in made if case.id in rejected]
    )
    parts.clean(made)


def test_finish_joins_all_ranks_in_the_plans_order_and_cleans_up(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(1, [row(tmp_path, EDITS[1])])
    parts.append(0, [row(tmp_path, EDITS[0])])
    (tmp_path / "images/stale.png").write_bytes(b"old")
    Parts(tmp_path, "old").append(0, [{"id": "x", "left_out": "y"}])
    (tmp_path / "parts-old/.nfs0001").write_bytes(b"left by a network file system")
    finish(parts)
    assert [case.id for case in read_case_set(tmp_path).cases] == ["a-removal", "a-control"]
    assert read_left_out(tmp_path) == {"no mask": 2}
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["0-control.png", "0-control.png", "0-removal.png", "0-removal.png", "0.png", "left_out.json",
                     "metadata.jsonl", "rank-0.jsonl", "rank-1.jsonl", "rejected.jsonl"]  # fmt: skip
    assert not (tmp_path / "parts-old").exists()


def test_what_the_gate_rejects_is_kept_apart_with_its_pictures(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [row(tmp_path, edit) for edit in EDITS])
    finish(parts, rejected=("a-removal",))
    assert [case.id for case in read_case_set(tmp_path).cases] == ["a-control"]
    (rejected,) = read_rejected(tmp_path)
    assert rejected.id == "a-removal" and (tmp_path / rejected.file_name).is_file()


def test_a_gate_that_leaves_nothing_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [row(tmp_path, edit) for edit in EDITS])
    with pytest.raises(ValueError, match="all 2 counterfactuals failed the quality gate"):
        finish(parts, rejected=("a-removal", "a-control"))
    assert set(parts.read().rows) == {"a-removal", "a-control"}


def test_a_plan_of_which_nothing_could_be_made_says_why(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [{"id": edit.id, "left_out": "empty mask"} for edit in EDITS])
    with pytest.raises(ValueError, match=r"no counterfactual could be made: .*empty mask \(2\)"):
        parts.rows(PLAN)


def test_what_was_left_out_is_counted_with_the_plans_reasons(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [row(tmp_path, EDITS[0]), {"id": "a-control", "left_out": "no place"}])
    finish(parts)
    assert read_left_out(tmp_path) == {"no mask": 2, "no place": 1}


def test_an_unfinished_plan_is_not_finished(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    parts.append(0, [row(tmp_path, EDITS[0])])
    with pytest.raises(RuntimeError, match="1 counterfactuals were not made, the first 'a-control'"):
        parts.rows(PLAN)
    assert not (tmp_path / "metadata.jsonl").exists()


def test_digest_follows_settings_cases_and_masks_but_not_gallery_or_gate(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    case_set = CaseSet(tmp_path, [SOURCE])
    first = digest(CounterfactualSettings(), case_set, {})
    assert first == digest(CounterfactualSettings(gallery=3, quality=QualitySettings(max_seam=1.0)), case_set, {})
    assert first != digest(CounterfactualSettings(sigma=0.6), case_set, {})
    found = Located(None, "box+grabcut", 0.8, "")
    assert first != digest(CounterfactualSettings(), case_set, {"a": found})
    (tmp_path / "metadata.jsonl").write_text("{ }\n")
    assert first != digest(CounterfactualSettings(), case_set, {})
