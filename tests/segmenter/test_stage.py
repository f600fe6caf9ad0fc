"""The stage `segmenter` from end to end, on phantoms."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cogalign.data.caseset import read_case_set
from cogalign.data.phantom import write_phantom
from cogalign.models.segmenter import Segmenter
from cogalign.recipe import DataSettings, PhantomSettings, Recipe, SegmenterSettings, TrackingSettings, TrainerSettings
from cogalign.segmenter import stage
from cogalign.segmenter.module import SegmenterModule
from cogalign.segmenter.stage import run
from cogalign.training.context import StageContext
from cogalign.training.interrupt import Interrupted
from cogalign.training.metrics_file import METRICS_FILE, read_rows

EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(train=14, validation=6, test=6, size=48, seed=5)
    return write_phantom(settings, tmp_path_factory.mktemp("phantoms") / "data")


def recipe(data: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "encoder": "tu-test_efficientnet", "decoder_channels": [16, 8, 8, 8, 8], "pretrained": False, "side": 32,
        "epochs": EPOCHS, "batch_size": 4, "bootstrap": 50, "worst": 3, "flips": False,
    }  # fmt: skip
    return Recipe(
        data=DataSettings(case_set=str(data)),
        segmenter=SegmenterSettings(**{**settings, **changes}),
        trainer=TrainerSettings(accelerator="cpu", threads=1),
        tracking=TrackingSettings(wandb=False),
    )


def context(data: Path, folder: Path, **changes: Any) -> StageContext:
    return StageContext(recipe(data, **changes), folder, "segmenter")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished stage, and what it returned."""
    where = context(data, tmp_path_factory.mktemp("run"))
    return where.folder, run(where)


def test_writes_a_model_that_gives_the_scores_that_are_told(finished: tuple[Path, dict[str, Any]], data: Path) -> None:
    folder, scores = finished
    segmenter = Segmenter.load(folder / "model")
    case_set = read_case_set(data)
    cases = [case for case in case_set.split("test") if not case.is_normal]
    dice = []
    for case in cases:
        found = segmenter.probabilities([np.asarray(case_set.image(case))])[0] > 0.5
        truth = case_set.mask(case)
        assert truth is not None
        dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert scores["test"]["n"] == len(cases)
    assert scores["test"]["dice"] == pytest.approx(np.mean(dice), abs=1e-3)
    assert json.loads((folder / "scores.json").read_text())["test"]["dice"] == scores["test"]["dice"]
    assert segmenter.config.calibration.temperature == pytest.approx(scores["temperature"])
    assert segmenter.config.trained["epoch"] == scores["best_epoch"]


def test_lists_every_case_once(finished: tuple[Path, dict[str, Any]], data: Path) -> None:
    with (finished[0] / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = {case.id for name in ("validation", "test") for case in read_case_set(data).split(name)}
    assert len(rows) == len(wanted)
    assert {row["id"] for row in rows} == wanted
    assert all((row["dice"] == "") == (row["normal"] == "True") for row in rows)
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)


def test_draws_the_worst_cases_and_the_curves(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    page = (folder / "worst.html").read_text()
    with (folder / "cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["dice"]]
    worst = sorted(rows, key=lambda row: float(row["dice"]))
    assert f"Dice {float(worst[0]['dice']):.3f}" in page
    assert page.count("data:image/jpeg;base64,") == 4 * min(3, len(rows))
    assert "http" not in page
    for name in ("worst.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_best_validation_is_the_one_that_is_kept(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, scores = finished
    history = json.loads((folder / "validations.json").read_text())
    assert len(history) == EPOCHS
    assert scores["best_epoch"] == max(history.values(), key=lambda row: row["dice"])["epoch"]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the callback believe after so many steps that a signal came."""
    from cogalign.training.interruption import Interrupt

    def asked(self: Interrupt, trainer: Any) -> bool:
        if trainer.global_step == steps:
            self.signal_name = "SIGTERM"
        return trainer.global_step == steps

    monkeypatch.setattr(Interrupt, "asked", asked)


@pytest.mark.parametrize(("after", "workers"), [(2, 2), ("an epoch", 0)])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    after: int | str,
    workers: int,
    data: Path,
    tmp_path: Path,
    finished: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, scores = finished
    steps = after if isinstance(after, int) else scores["steps"] // EPOCHS
    where = context(data, tmp_path, workers=workers)
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        with pytest.raises(Interrupted, match=f"step {steps} is saved"):
            run(where)
    torch.manual_seed(99)  # whatever the process drew before must not matter
    assert run(where) == scores
    whole, resumed = (load_file(one / "model" / "model.safetensors") for one in (folder, where.folder))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_killed_before_its_validation_does_it_after(
    data: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scores = finished
    where = context(data, tmp_path)

    def killed(self: SegmenterModule) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(SegmenterModule, "on_validation_epoch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(where)
    assert not (where.folder / "validations.json").exists()
    assert run(where) == scores
    assert (where.folder / "validations.json").read_text() == (folder / "validations.json").read_text()
    (_, wanted), (_, found) = (read_rows(one / METRICS_FILE) for one in (folder, where.folder))
    assert [{**row, "step_time": ""} for row in found] == [{**row, "step_time": ""} for row in wanted]


def test_validations_and_best_weights_later_than_the_checkpoint_are_made_again(
    data: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scores = finished
    where = context(data, tmp_path, checkpoint_every=2)
    real, last = SegmenterModule.training_step, scores["steps"] - 1

    def killed(self: SegmenterModule, *arguments: Any) -> Any:
        if self.trainer.global_step == last:
            raise RuntimeError("killed")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SegmenterModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(where)
    (checkpoint,) = (where.folder / "checkpoints").iterdir()
    checkpoint.unlink()  # the newest is lost: the run starts anew, with the files of a later step beside it
    assert len(json.loads((where.folder / "validations.json").read_text())) == 2
    assert run(where) == scores
    assert (where.folder / "validations.json").read_text() == (folder / "validations.json").read_text()
    kept, wanted = (list(one.glob("best-*.safetensors")) for one in (where.folder, folder))
    assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in wanted] and len(kept) == 1


def test_a_step_that_is_not_finite_moves_no_weight_and_its_images_are_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SegmenterModule.training_step
    before: list[list[torch.Tensor]] = []

    def step(self: SegmenterModule, batch: Any, index: int) -> torch.Tensor:
        before.append([p.detach().clone() for p in self.parameters()])
        loss = real(self, batch, index)
        if index != 1:
            return loss
        self._loss = float("nan")
        return loss * self._loss

    monkeypatch.setattr(SegmenterModule, "training_step", step)
    where = context(data, tmp_path, epochs=1)
    stage.train(where, read_case_set(data))
    same = [all(map(torch.equal, one, two)) for one, two in itertools.pairwise(before)]
    assert same == [index == 1 for index in range(len(same))] and len(same) >= 2
    kept = load_file(where.folder / "nonfinite/step-00000002-rank-0.safetensors")
    notes = json.loads((where.folder / "nonfinite/step-00000002-rank-0.json").read_text())
    assert kept["images"].shape == (4, 3, 32, 32) and kept["masks"].shape == (4, 1, 32, 32)
    known = {case.id for case in read_case_set(data).split("train")}
    assert len(notes["cases"]) == 4 and set(notes["cases"]) <= known


def test_a_finished_training_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = context(data, tmp_path, epochs=1)
    scores = run(where)

    def never(self: SegmenterModule, *arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(SegmenterModule, "training_step", never)
    assert run(where) == scores


def test_learns_to_find_the_lesions_of_phantoms(data: Path, tmp_path: Path) -> None:
    where = context(data, tmp_path, epochs=12, augmentation="light", learning_rate=5e-3, encoder_factor=1.0,
                    validate_every=4, checkpoint_every=12)  # fmt: skip
    stage.train(where, read_case_set(data))
    history = list(json.loads((where.folder / "validations.json").read_text()).values())
    assert [row["epoch"] for row in history] == [4.0, 8.0, 12.0]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_without_a_split_validation_it_says_so(data: Path, tmp_path: Path) -> None:
    from cogalign.data.caseset import CaseSet

    case_set = read_case_set(data)
    only_train = CaseSet(case_set.root, case_set.split("train"))
    with pytest.raises(ValueError, match="no split 'validation'"):
        stage.train(context(data, tmp_path), only_train)


def test_the_last_epoch_is_validated_whatever_the_interval(data: Path, tmp_path: Path) -> None:
    where = context(data, tmp_path, epochs=3, validate_every=2, checkpoint_every=3)
    module, _, trainer = stage.train(where, read_case_set(data))
    assert [row["epoch"] for row in module.read_history().values()] == [2.0, 3.0]
    assert list(module.read_history()) == [2 * module.steps_per_epoch, trainer.global_step]
    metrics = list(csv.DictReader((where.folder / "metrics.csv").open()))
    assert len([row for row in metrics if row["eval_dice"]]) == 2
