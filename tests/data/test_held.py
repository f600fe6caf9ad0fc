import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import read_case_set
from cogalign.data.held import HELD, place_held
from cogalign.data.prepare import prepare
from cogalign.data.splits import split_case_set
from cogalign.recipe import DataSettings, ImportSettings
from tests.data.importers.small_sets import photograph


def case(number: int, held: str = "", group: str = "") -> Case:
    attributes = {HELD: held} if held else {}
    return Case(
        f"c{number}", f"images/c{number}.png", ("polyp",), "train", group=group, dataset="a", attributes=attributes
    )


def test_cases_that_share_a_group_with_a_held_one_are_not_drawn():
    cases = [case(0, "cross_source", "g"), case(1, group="g"), case(2, "train", "h"), case(3, group="h"), case(4)]
    placed, notes = place_held(cases, "left_out")
    assert placed == {"c0": "cross_source", "c1": "left_out", "c2": "train", "c3": "train"}
    assert "a: 1 cases are left out: their group has cases with a given split" in notes
    assert "a: 1 cases go to train: their group has cases with a given split" in notes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders in the layout of Kvasir v2 with five photographs of three classes each."""
    for number, (name, label) in enumerate(
        (n, c) for n in ("one", "two") for c in ("polyps", "esophagitis", "normal-cecum")
    ):
        for k in range(5):
            photograph(tmp_path / "root" / name / label / f"{name}-{label}-{k}.jpg", 100 * number + k)
    return tmp_path / "root"


def settings(root: Path, **second) -> DataSettings:
    imports = [ImportSettings("kvasir-v2", "one"), ImportSettings("kvasir-v2", "two", **second)]
    return DataSettings(imports=imports, root=str(root), image_side=48)


def files(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """File name and finding of the cases of each split."""
    found: dict[str, list[tuple[str, str]]] = {}
    for one in read_case_set(folder).cases:
        found.setdefault(one.split, []).append((str(one.attributes["file"]), one.findings[0]))
    return found


def test_an_import_goes_whole_into_its_split_and_the_others_are_drawn(root, tmp_path):
    folder = prepare(settings(root, split="cross_source"), tmp_path / "run")
    found = files(folder)
    assert len(found["cross_source"]) == 15 and all(name.startswith("two-") for name, _ in found["cross_source"])
    drawn = [name for split in ("train", "validation", "test") for name, _ in found.get(split, [])]
    assert len(drawn) == 15 and all(name.startswith("one-") for name in drawn) and len(found["test"]) >= 2
    summary = json.loads((folder / "split.json").read_text())
    assert summary["notes"][0] == "15 cases stay in cross_source, which their import names"


def test_a_later_split_by_hand_leaves_them_where_they_are(root, tmp_path):
    folder = prepare(settings(root, split="cross_source"), tmp_path / "run")
    before = sorted(files(folder)["cross_source"])
    split_case_set(folder, "stratified", seed=99, test_share=0.4, workers=1)
    split_case_set(folder, "official", workers=1, rest="stratify")
    assert sorted(files(folder)["cross_source"]) == before


def test_a_photograph_of_a_held_data_set_is_never_trained_on(root, tmp_path):
    shared = root / "two/polyps/two-polyps-0.jpg"
    image = Image.open(shared)
    image.resize((image.width * 2, image.height * 2)).save(root / "one/polyps/one-polyps-0.jpg", quality=95)
    found = files(prepare(settings(root, split="cross_source"), tmp_path / "run"))
    assert found["left_out"] == [("one-polyps-0.jpg", "polyp")]
    assert ("two-polyps-0.jpg", "polyp") in found["cross_source"]


def test_a_photograph_that_two_imports_hold_in_two_splits_is_a_leak(root, tmp_path):
    (root / "one/polyps/one-polyps-0.jpg").write_bytes((root / "two/polyps/two-polyps-0.jpg").read_bytes())
    wanted = settings(root, split="cross_source")
    assert wanted.imports is not None
    wanted.imports[0].split = "train"
    with pytest.raises(ValueError, match="pairs leak between splits"):
        prepare(wanted, tmp_path / "run")


def test_only_the_wanted_findings_are_imported(root, tmp_path):
    folder = prepare(settings(root, findings=["polyp", "normal"], split="unseen", limit=3), tmp_path / "run")
    found = files(folder)["unseen"]
    assert sorted(finding for _, finding in found) == ["normal"] * 3 + ["polyp"] * 3
    everything = files(prepare(settings(root, split="unseen"), folder))
    assert len(everything["unseen"]) == 15


def test_a_finding_that_is_unknown_or_not_there_is_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"data\.imports\.findings: found 'polyps', .*nearest: 'polyp'"):
        prepare(settings(root, findings=["polyps"]), tmp_path / "run")
    with pytest.raises(ValueError, match="wanted the findings ulcer, its labels tell esophagitis, normal, polyp"):
        prepare(settings(root, findings=["ulcer"]), tmp_path / "run")


def test_a_case_set_made_before_these_keys_is_found_done(root, tmp_path):
    wanted = settings(root)
    folder = prepare(wanted, tmp_path / "run")
    made = json.loads((folder / "prepared.json").read_text())
    del made["overlays"]
    for item in made["imports"]:
        del item["findings"], item["split"]
    (folder / "prepared.json").write_text(json.dumps(made))
    written = (folder / "metadata.jsonl").stat().st_mtime_ns
    prepare(wanted, folder)
    assert (folder / "metadata.jsonl").stat().st_mtime_ns == written
    assert np.asarray(read_case_set(folder).image(read_case_set(folder).cases[0])).shape == (48, 48, 3)
