import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set
from cogalign.data.check import check_case_set
from cogalign.data.review import apply as apply_file
from cogalign.data.review.apply import apply_review
from cogalign.data.review.lesions import Lesion, Refined, bounds, lesions_of
from cogalign.data.review.rle import Rle
from cogalign.data.review.verdicts import Verdict
from tests.data.review.conftest import picture, ring

ACCEPT, REJECT = Verdict("accept", "A"), Verdict("reject", "A", "rim left")


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((40, 56), dtype=bool)
    mask[rows, columns] = True
    return mask


def lesion(mask: np.ndarray, finding: str = "polyp") -> Lesion:
    return Lesion(finding, bounds(mask), Rle.from_mask(mask))


def rejected_rows(folder: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return {row["id"]: json.loads(row["attributes"]) for row in rows}


def test_a_refined_mask_brings_its_boxes_and_who_drew_it(cases: CaseSet, tmp_path: Path) -> None:
    before = fingerprint(cases.root)
    first, second = block(slice(12, 20), slice(12, 22)), block(slice(25, 30), slice(2, 9))
    items = [Refined("boxed", (lesion(first), lesion(second)), "Dr. B", confirmed=True)]
    applied = apply_review(cases.root, items, {}, tmp_path / "new")
    assert (applied.kept, applied.refined, applied.rejected) == (4, 1, 0)
    new = read_case_set(tmp_path / "new")
    case = new.by_id["boxed"]
    assert np.array_equal(new.mask(case), first | second)
    assert case.boxes == (Box("polyp", 12, 12, 22, 20), Box("polyp", 2, 25, 9, 30))
    assert case.attributes == {"cue": "boxed", "mask": {"provenance": "expert", "confidence": 1.0, "by": "Dr. B"}}
    for name in ("ring", "two", "normal"):
        assert new.by_id[name] == cases.by_id[name]
        assert np.array_equal(np.asarray(new.image(new.by_id[name])), np.asarray(cases.image(cases.by_id[name])))
    assert check_case_set(tmp_path / "new") == []
    assert fingerprint(cases.root) == before


def test_a_replaced_mask_leaves_the_old_case_set_alone(cases: CaseSet, tmp_path: Path) -> None:
    before = fingerprint(cases.root)
    mask = block(slice(5, 9), slice(5, 9))
    apply_review(cases.root, [Refined("ring", (lesion(mask),))], {}, tmp_path / "new")
    assert fingerprint(cases.root) == before
    new = read_case_set(tmp_path / "new")
    assert np.array_equal(new.mask(new.by_id["ring"]), mask)


def test_an_unchanged_mask_is_an_experts_only_if_somebody_handed_it_in(cases: CaseSet, tmp_path: Path) -> None:
    case = cases.by_id["two"]
    lesions = tuple(lesions_of(case, cases.mask(case)))
    applied = apply_review(cases.root, [Refined("two", lesions)], {}, tmp_path / "one")
    assert applied.refined == 0 and read_case_set(tmp_path / "one").by_id["two"] == case
    apply_review(cases.root, [Refined("two", lesions, "B", confirmed=True)], {}, tmp_path / "two")
    confirmed = read_case_set(tmp_path / "two").by_id["two"]
    assert confirmed.attributes["mask"]["provenance"] == "expert" and confirmed.boxes == case.boxes


def test_boxes_alone_move_the_boxes_and_keep_the_mask(cases: CaseSet, tmp_path: Path) -> None:
    items = [
        Refined("ring", (Lesion("polyp", (1, 2, 30, 31)),)),
        Refined("boxed", (Lesion("polyp", (10, 10, 30, 25)),)),
    ]
    assert apply_review(cases.root, items, {}, tmp_path / "new").refined == 1
    new = read_case_set(tmp_path / "new")
    assert new.by_id["ring"].boxes == (Box("polyp", 1, 2, 30, 31),)
    assert np.array_equal(new.mask(new.by_id["ring"]), cases.mask(cases.by_id["ring"]))
    assert "mask" not in new.by_id["ring"].attributes


BARE = Lesion("erosion", (30, 20, 50, 33))


def test_a_lesion_that_stays_a_box_keeps_its_part_of_the_old_mask(cases: CaseSet, tmp_path: Path) -> None:
    new_polyp = block(slice(2, 11), slice(2, 13))
    applied = apply_review(cases.root, [Refined("two", (lesion(new_polyp), BARE), "B", True)], {}, tmp_path / "new")
    new = read_case_set(tmp_path / "new")
    assert applied.refined == 1
    assert np.array_equal(new.mask(new.by_id["two"]), new_polyp | block(slice(20, 33), slice(30, 50)))
    assert new.by_id["two"].boxes == (Box("polyp", 2, 2, 13, 11), Box("erosion", 30, 20, 50, 33))


def test_a_lesion_without_outline_and_old_mask_beside_an_outlined_one_is_refused(
    cases: CaseSet, tmp_path: Path
) -> None:
    first, bare = lesion(block(slice(12, 20), slice(12, 22))), Lesion("polyp", (32, 26, 50, 38))
    with pytest.raises(ValueError, match=r"'boxed': the polyp in box 32, 26 to 50, 38 .*: outline it or delete it"):
        apply_review(cases.root, [Refined("boxed", (first, bare))], {}, tmp_path / "new")
    # A box that a reviewer added to a mask that stayed: the lesion is new.
    added = (*lesions_of(cases.by_id["two"], cases.mask(cases.by_id["two"])), Lesion("polyp", (2, 30, 9, 38)))
    with pytest.raises(ValueError, match="'two': the polyp in box 2, 30 to 9, 38"):
        apply_review(cases.root, [Refined("two", added)], {}, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]


def test_a_case_that_nobody_touched_may_have_a_box_without_mask(tmp_path: Path) -> None:
    root = tmp_path / "partly"
    boxes = (Box("polyp", 5, 4, 25, 20), Box("polyp", 30, 22, 50, 38))
    with CaseSetWriter(root) as writer:
        writer.add(
            Case("a", "images/a.png", ("polyp",), "train", mask_file_name="masks/a.png", boxes=boxes),
            picture(0),
            ring(),
        )
    cases = read_case_set(root)
    lesions = tuple(lesions_of(cases.by_id["a"], cases.mask(cases.by_id["a"])))
    assert apply_review(root, [Refined("a", lesions)], {}, tmp_path / "new").refined == 0
    assert read_case_set(tmp_path / "new").cases == cases.cases
    with pytest.raises(ValueError, match="box 30, 22 to 50, 38"):
        apply_review(root, [Refined("a", lesions, "B", confirmed=True)], {}, tmp_path / "newer")


def test_a_mask_file_of_several_cases_changes_for_the_refined_one_alone(cases: CaseSet, tmp_path: Path) -> None:
    rows = [case.to_row() for case in cases.cases]
    rows[0]["mask_file_name"] = "masks/./two.png"
    (cases.root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    before = fingerprint(cases.root)
    mask = block(slice(5, 9), slice(5, 9))
    apply_review(cases.root, [Refined("ring", (lesion(mask),))], {}, tmp_path / "new")
    new = read_case_set(tmp_path / "new")
    assert np.array_equal(new.mask(new.by_id["ring"]), mask)
    assert np.array_equal(new.mask(new.by_id["two"]), cases.mask(cases.by_id["two"]))
    assert fingerprint(cases.root) == before


def test_rejected_cases_are_listed_with_reason_and_pictures(cases: CaseSet, tmp_path: Path) -> None:
    applied = apply_review(cases.root, [], {"ring": REJECT, "two": ACCEPT}, tmp_path / "new")
    assert (applied.kept, applied.rejected) == (3, 1)
    assert "ring" not in read_case_set(tmp_path / "new").by_id
    attributes = rejected_rows(tmp_path / "new")["ring"]
    assert attributes["quality"] == {"failed": ["rejected in review"]}
    assert attributes["review"] == {"verdict": "reject", "by": "A", "note": "rim left"}
    assert (tmp_path / "new/images/ring.png").is_file() and (tmp_path / "new/masks/ring.png").is_file()


def test_verdicts_on_counterfactuals_move_them_either_way(pairs: CaseSet, tmp_path: Path) -> None:
    before = fingerprint(pairs.root)
    applied = apply_review(pairs.root, [], {"ring-control": REJECT, "two-removal": ACCEPT}, tmp_path / "new")
    assert (applied.kept, applied.rejected, applied.restored, applied.elsewhere) == (2, 1, 1, 0)
    new = read_case_set(tmp_path / "new")
    assert new.by_id.keys() == {"ring-removal", "two-removal"}
    restored = new.by_id["two-removal"].attributes
    assert restored["quality"] == {"seam": 2.5, "failed": []} and restored["review"]["overruled"] == ["visible seam"]
    assert rejected_rows(tmp_path / "new")["ring-control"]["quality"]["failed"] == ["rejected in review"]
    assert check_case_set(tmp_path / "new") == [] and fingerprint(pairs.root) == before
    # A second review of the result goes on from there.
    again = apply_review(tmp_path / "new", [], {"ring-control": ACCEPT}, tmp_path / "newer")
    assert (again.kept, again.restored) == (3, 1)


def test_rejecting_a_source_rejects_what_was_made_of_it(pairs: CaseSet, tmp_path: Path) -> None:
    verdicts = {"ring": REJECT, "ring-removal": ACCEPT, "two-removal": ACCEPT}
    applied = apply_review(pairs.root, [], verdicts, tmp_path / "new")
    assert (applied.rejected, applied.restored) == (2, 1)
    assert read_case_set(tmp_path / "new").by_id.keys() == {"two-removal"}


@pytest.fixture
def transplants(tmp_path: Path) -> CaseSet:
    """Lesions of `ring` on a background whose lesions `two`'s mask cleared, on a normal one and on one of an old file."""
    root = tmp_path / "transplants"
    grounds = {"two": {"background_findings": ["polyp", "erosion"]}, "normal": {"background_findings": ["normal"]},
               "old": {}}  # fmt: skip
    with CaseSetWriter(root) as writer:
        for name, attributes in grounds.items():
            made = Case(
                id=f"on-{name}", file_name=f"images/on-{name}.png", findings=("polyp",), split="train",
                mask_file_name=f"masks/on-{name}.png", counterfactual_of="ring", intervention="transplant",
                source_file_name="sources/ring.png", background_of=name, attributes=attributes,
            )  # fmt: skip
            writer.add(made, picture(1), ring(), picture(0))
    return read_case_set(root)


@pytest.mark.parametrize(
    ("rejected", "left"),
    [("two", {"on-normal", "on-old"}), ("normal", {"on-two", "on-normal", "on-old"}), ("old", {"on-two", "on-normal"})],
)
def test_rejecting_a_mask_rejects_the_transplants_that_it_cleared_a_background_for(
    transplants: CaseSet, tmp_path: Path, rejected: str, left: set[str]
) -> None:
    applied = apply_review(transplants.root, [], {rejected: REJECT, "on-two": ACCEPT}, tmp_path / "new")
    assert read_case_set(tmp_path / "new").by_id.keys() == left
    assert (applied.rejected, applied.elsewhere) == (3 - len(left), 0)


def test_accepting_a_backgrounds_mask_leaves_the_verdicts_on_its_transplants(
    transplants: CaseSet, tmp_path: Path
) -> None:
    apply_review(transplants.root, [], {"two": ACCEPT, "on-two": REJECT}, tmp_path / "new")
    assert read_case_set(tmp_path / "new").by_id.keys() == {"on-normal", "on-old"}


def test_a_gallerys_verdicts_on_counterfactuals_pass_by_the_factual_case_set(cases: CaseSet, tmp_path: Path) -> None:
    verdicts = {"ring-removal": Verdict("reject", of="ring"), "two": REJECT}
    applied = apply_review(cases.root, [], verdicts, tmp_path / "new")
    assert (applied.kept, applied.rejected, applied.elsewhere) == (3, 1, 1)


def test_nothing_is_left_behind_when_it_fails(cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path, rows: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apply_file, "write_metadata", full)
    with pytest.raises(OSError, match="No space left"):
        apply_review(cases.root, [], {}, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]


def test_images_are_copied_where_links_are_not_allowed(
    cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(apply_file.os, "link", refuse)
    apply_review(cases.root, [], {}, tmp_path / "new")
    assert fingerprint(tmp_path / "new") == fingerprint(cases.root)


def test_what_cannot_be_applied_is_one_clear_message(cases: CaseSet, pairs: CaseSet, tmp_path: Path) -> None:
    out, item = tmp_path / "new", Refined("ring", (lesion(block(slice(1, 3), slice(1, 3))),))
    with pytest.raises(FileExistsError, match="exists, wanted the name of a new folder"):
        apply_review(cases.root, [], {}, tmp_path)
    with pytest.raises(ValueError, match="lies in the reviewed case set"):
        apply_review(cases.root, [], {}, cases.root / "new")
    with pytest.raises(ValueError, match=r"'rong'.*nearest: 'ring'"):
        apply_review(cases.root, [], {"rong": ACCEPT}, out)
    with pytest.raises(ValueError, match="'ring': refined in more than one file"):
        apply_review(cases.root, [item, item], {}, out)
    with pytest.raises(ValueError, match="'ring-removal': is a counterfactual"):
        apply_review(pairs.root, [Refined("ring-removal", item.lesions)], {}, out)
    with pytest.raises(ValueError, match="all 4 cases are rejected"):
        apply_review(cases.root, [], dict.fromkeys(cases.by_id, REJECT), out)
    small = Refined("ring", (lesion(np.ones((4, 4), dtype=bool)),))
    with pytest.raises(ValueError, match="found 4 x 4, wanted 56 x 40"):
        apply_review(cases.root, [small], {}, out)
    (cases.root / "images/two.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.png"):
        apply_review(cases.root, [], {}, out)
    assert not out.exists()
