"""The gate on phantoms: real pictures, the real encoder at a small side."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogalign.counterfactual import interventions as do
from cogalign.counterfactual.interventions import Operator, stream
from cogalign.counterfactual.located import Located, write_mask
from cogalign.counterfactual.plan import unsuitable
from cogalign.counterfactual.quality import measure
from cogalign.counterfactual.quality.compare import compare_fills
from cogalign.counterfactual.quality.stage import Graded, grade
from cogalign.counterfactual.quality.table import TableParts
from cogalign.counterfactual.quality.views import Views
from cogalign.data.caseset import CaseSet, CaseSetWriter, read_case_set
from cogalign.data.phantom import write_phantom
from cogalign.models.encoder import FrozenEncoder
from cogalign.recipe import DataSettings, PhantomSettings, QualitySettings, Recipe
from cogalign.training.context import StageContext


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    settings = PhantomSettings(train=44, validation=1, test=1, size=64, seed=5, multi_label=0.0)
    return read_case_set(write_phantom(settings, tmp_path_factory.mktemp("quality") / "data"))


@pytest.fixture(scope="module")
def made(data: CaseSet, tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    """Removals with a white patch (odd cases: a smooth one) and controls of 16 cases."""
    root = tmp_path_factory.mktemp("made")
    chosen = [case for case in data.split("train") if unsuitable(case) is None and case.mask_file_name][:16]
    with CaseSetWriter(root) as writer:
        for number, case in enumerate(chosen):
            image, mask = np.asarray(data.image(case)), data.mask(case)
            assert mask is not None
            operator = Operator("surround_blur" if number % 2 else "white")
            rng = stream(1, case.id, "any")
            edits = {
                "removal": do.removal(image, mask, operator, rng),
                "control": do.control(image, mask, operator, rng),
            }
            for name, edited in edits.items():
                if edited is not None:
                    row = replace(case, id=f"{case.id}-{name}", file_name=f"images/{number}-{name}.png",
                                  mask_file_name=f"masks/{number}-{name}.png", source_file_name=f"sources/{number}.png",
                                  counterfactual_of=case.id, intervention=name, fill=operator.fill)  # fmt: skip
                    writer.add(row, edited.image, edited.touched, image)
    return read_case_set(root)


def context(data: CaseSet, out: Path, **fields: Any) -> StageContext:
    recipe = Recipe(out=str(out), data=DataSettings(case_set=str(data.root)))
    recipe.counterfactual.quality = QualitySettings(side=64, bootstrap=50, folds=3, **fields)
    recipe.counterfactual.splits = ["train"]
    recipe.counterfactual.fill = "surround_blur"
    recipe.trainer.accelerator = "cpu"
    return StageContext(recipe, out, "counterfactual")


def graded(data: CaseSet, made: CaseSet, out: Path, **fields: Any) -> Graded:
    here = context(data, out, **fields)
    return grade(here, data, made, here.recipe.counterfactual)


@pytest.fixture(scope="module")
def first(data: CaseSet, made: CaseSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Graded, Path]:
    out = tmp_path_factory.mktemp("graded")
    return graded(data, made, out), out


def test_every_counterfactual_is_accepted_or_rejected_with_a_reason(made: CaseSet, first: tuple[Graded, Path]) -> None:
    result, out = first
    ids = [case.id for case in result.accepted] + [case.id for case, _ in result.rejected]
    assert sorted(ids) == sorted(case.id for case in made.cases)
    assert all(reasons for _, reasons in result.rejected)
    for case in [*result.accepted, *(case for case, _ in result.rejected)]:
        quality = case.attributes["quality"]
        assert quality["seam"] > 0
        if case.intervention == "removal":
            assert 0 <= quality["residual_classifier"] <= 1
            assert quality["realism_patch"] > 0
        assert json.loads(json.dumps(quality)) == quality
    written = json.loads((out / "counterfactual" / "quality.json").read_text())
    assert written["yield"] == result.summary["yield"] and written["set"]["surround_blur"]["leakage_auc_patch"]
    for name in ("quality.csv", "quality.md", "quality.svg"):
        assert (out / "counterfactual" / name).stat().st_size > 100


def test_white_patches_are_rejected_for_their_seam_and_smooth_ones_are_not(first: tuple[Graded, Path]) -> None:
    result, _ = first
    seams = {case.id: "visible seam" in reasons for case, reasons in result.rejected}
    cases = [*result.accepted, *(case for case, _ in result.rejected)]
    white = [seams.get(case.id, False) for case in cases if case.fill == "white"]
    smooth = [seams.get(case.id, False) for case in cases if case.fill == "surround_blur"]
    assert np.mean(white) > 0.8 and np.mean(smooth) < 0.2


def test_an_interrupted_run_goes_on_to_the_same_result_and_measures_nothing_twice(
    data: CaseSet, made: CaseSet, first: tuple[Graded, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = TableParts.write, []

    def killed(self: TableParts, units: list[str], views: Views, features: Any) -> None:
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        calls.append(units)
        real(self, units, views, features)

    monkeypatch.setattr(TableParts, "write", killed)
    with pytest.raises(OSError, match="No space left"):
        graded(data, made, tmp_path)
    done = {unit for units in calls for unit in units}
    monkeypatch.setattr(TableParts, "write", real)
    seen: list[str] = []
    read = measure.Units.__getitem__

    def watched(self: measure.Units, index: int) -> measure.Read:
        seen.append(self.units[index].name)
        return read(self, index)

    monkeypatch.setattr(measure.Units, "__getitem__", watched)
    again = graded(data, made, tmp_path)
    assert done and not done & set(seen)
    assert again == first[0]


def test_other_limits_need_no_new_measuring(
    data: CaseSet, made: CaseSet, first: tuple[Graded, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrozenEncoder, "features", lambda *_: pytest.fail("encoded again"))
    result = graded(data, made, first[1], max_seam=None, max_residual_classifier=None, max_realism=None)
    assert not result.rejected


def test_without_quality_everything_is_accepted(data: CaseSet, made: CaseSet, tmp_path: Path) -> None:
    result = graded(data, made, tmp_path, enabled=False)
    assert result == Graded(list(made.cases), [], {})


def test_a_damaged_part_is_measured_again(tmp_path: Path) -> None:
    parts = TableParts(tmp_path, "x")
    views = Views([("image", "a", np.zeros((2, 2, 3), np.uint8))], {"a": {"seam": 1.0}})
    parts.write(["case a"], views, np.ones((1, 4)))
    parts.write(["case b"], Views([("image", "b", np.zeros((2, 2, 3), np.uint8))]), np.zeros((1, 4)))
    damaged = sorted(parts.folder.glob("*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:60])
    table = parts.read()
    assert len(table.units) == 1 and not damaged.exists()


def test_fills_are_compared_on_the_same_cases(data: CaseSet, tmp_path: Path) -> None:
    result = compare_fills(context(data, tmp_path), ["white", "surround_blur"], 12, tmp_path / "fills")
    white, smooth = result["fills"]["white"], result["fills"]["surround_blur"]
    assert white["n"] == smooth["n"] == result["cases"] == 12
    assert white["seam"]["value"] > 2 > smooth["seam"]["value"]
    assert white["leakage_auc_patch"]["value"] > 0.95
    assert white["yield"]["value"] < smooth["yield"]["value"]
    for name in ("fills.json", "fills.csv", "fills.md", "fills.svg", "fills.png"):
        assert (tmp_path / "fills" / name).stat().st_size > 100


def damaged(made: CaseSet, folder: Path) -> CaseSet:
    """A copy of the made counterfactuals whose tenth picture is cut off."""
    shutil.copytree(made.root, folder)
    copy = read_case_set(folder)
    victim = folder / copy.cases[9].file_name
    victim.write_bytes(victim.read_bytes()[:100])
    return copy


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_line_and_what_was_measured_is_kept(
    data: CaseSet, made: CaseSet, tmp_path: Path, workers: int
) -> None:
    copy = damaged(made, tmp_path / "copy")
    here = context(data, tmp_path)
    here.recipe.counterfactual.workers = workers
    with pytest.raises(ValueError, match=Path(copy.cases[9].file_name).name) as caught:
        grade(here, data, copy, here.recipe.counterfactual)
    assert "Traceback" not in str(caught.value)
    folder = next((tmp_path / "counterfactual").glob("quality-*"))
    measured = TableParts(tmp_path / "counterfactual", folder.name.removeprefix("quality-")).read().units
    assert len(measured) == measure.BATCH - 1


def test_a_killed_worker_is_told_of_and_the_next_call_goes_on(
    data: CaseSet, made: CaseSet, first: tuple[Graded, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.Units.__getitem__

    def killed(self: measure.Units, index: int) -> measure.Read:
        if index == measure.BATCH + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    here = context(data, tmp_path)
    here.recipe.counterfactual.workers = 1
    monkeypatch.setattr(measure.Units, "__getitem__", killed)  # the worker is forked from this process
    with pytest.raises(
        ChildProcessError, match=r"quality: a worker process was killed .* fewer counterfactual\.workers"
    ):
        grade(here, data, made, here.recipe.counterfactual)
    monkeypatch.undo()
    assert grade(here, data, made, here.recipe.counterfactual) == first[0]


def test_a_case_that_was_not_measured_never_passes_the_gate_in_silence(
    data: CaseSet, made: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = TableParts.write, f"case {made.cases[0].counterfactual_of}"

    def elsewhere(self: TableParts, units: list[str], views: Views, features: Any) -> None:
        if lost not in units:
            real(self, units, views, features)

    monkeypatch.setattr(TableParts, "write", elsewhere)
    with pytest.raises(RuntimeError, match=f"cases were not measured, the first '{lost}'"):
        graded(data, made, tmp_path)


def test_a_mask_that_was_found_tells_where_the_lesion_is(data: CaseSet, made: CaseSet, tmp_path: Path) -> None:
    controls = CaseSet(made.root, [case for case in made.cases if case.intervention == "control"][:1])
    name = controls.cases[0].counterfactual_of or ""
    mask = data.mask(data.by_id[name])
    assert mask is not None
    write_mask(tmp_path / "found.png", mask)
    bare = CaseSet(data.root, [replace(case, mask_file_name=None) for case in data.cases])
    unit = measure.Unit(f"case {name}", bare.by_id[name], tuple(controls.cases))

    def shown(source: CaseSet, located: dict[str, Located]) -> list[tuple[str, str]]:
        one = replace(unit, case=source.by_id[name])
        read = measure.Units(source, controls, [one], Operator("white"), 3, located)[0]
        return [(role, of) for role, of, _ in read.views.pictures]

    found = {name: Located(tmp_path / "found.png", "box+grabcut", 0.8)}
    assert shown(bare, found) == shown(data, {})
    assert ("before", name) in shown(bare, found) and ("before", name) not in shown(bare, {})


def test_the_recipes_batch_size_is_used(
    data: CaseSet, made: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = FrozenEncoder._encode
    monkeypatch.setattr(FrozenEncoder, "_encode", lambda self, batch: (seen.append(len(batch)), real(self, batch))[1])
    graded(data, CaseSet(made.root, made.cases[:8]), tmp_path, batch_size=5)
    assert max(seen) == 5 and seen.count(5) > 2
