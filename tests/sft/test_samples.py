"""What stage 1 trains on: the mix's shares, balance, and a stop that changes nothing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cogalign.data.caseset import read_case_set
from cogalign.data.datamodule import CaseDataset, MixedCases
from cogalign.recipe import CounterfactualSettings, MixSettings, SftSettings
from cogalign.sft.module import SftModule
from cogalign.sft.samples import counts_of, open_pairs, training_samples
from cogalign.sft.stage import run
from cogalign.training.context import StageContext
from cogalign.training.interrupt import Interrupted
from tests.sft.test_stage import STEPS, context, rows, stop_at

MIX = MixSettings(factual=1, removal=1, control=0.5)


def mixed(out: Path, data: Path, pairs: Path, mix: MixSettings = MIX, **fields: Any) -> StageContext:
    made = context(out, data, mix=mix, **fields)
    return replace(made, recipe=replace(made.recipe, counterfactual=CounterfactualSettings(pairs=str(pairs))))


def test_parts_come_with_their_own_images_and_answers(phantom_set: Path, pairs: Path, tmp_path: Path) -> None:
    made = mixed(tmp_path, phantom_set, pairs)
    data, mixture = training_samples(made.recipe, read_case_set(phantom_set), open_pairs(made))
    assert isinstance(data, MixedCases) and mixture is not None and mixture.shares == (1.0, 1.0, 0.5)
    found = [data[index] for index in range(len(data))]
    assert tuple(Counter(case.intervention for case, _ in found).values()) == mixture.sizes
    sources = {None: read_case_set(phantom_set), "removal": read_case_set(pairs), "control": read_case_set(pairs)}
    for case, image in found:
        origin = sources[case.intervention]
        assert origin.by_id[case.id] == case and case.split == "train" and case.answer
        assert image.tobytes() == origin.image(case).tobytes()
    removed = [case for case, _ in found if case.intervention == "removal" and case.is_normal]
    assert removed and all("no focal lesion" in case.answer for case in removed)


def test_the_mix_of_factual_cases_alone_takes_no_counterfactuals(phantom_set: Path, tmp_path: Path) -> None:
    made = context(tmp_path, phantom_set)
    assert open_pairs(made) is None
    data, mixture = training_samples(made.recipe, read_case_set(phantom_set), None)
    assert type(data) is CaseDataset and mixture is None
    assert list(data.cases) == read_case_set(phantom_set).split("train")


def test_counterfactuals_alone_can_be_trained_on(phantom_set: Path, pairs: Path, tmp_path: Path) -> None:
    made = mixed(tmp_path, phantom_set, pairs, MixSettings(factual=0, removal=1))
    data, mixture = training_samples(made.recipe, read_case_set(phantom_set), open_pairs(made))
    assert mixture is not None and {data[index][0].intervention for index in range(len(data))} == {"removal"}


def test_balance_repeats_factual_cases_until_findings_are_even(phantom_set: Path, pairs: Path, tmp_path: Path) -> None:
    case_set = read_case_set(phantom_set)
    train = [case for case in case_set.split("train") if case.findings == ("polyp",)][:1]
    train += [case for case in case_set.split("train") if case.is_normal][:3]
    small = replace(case_set, cases=train)
    for made, others in ((context(tmp_path, phantom_set, balance=2), None),
                         (mixed(tmp_path, phantom_set, pairs, balance=2), read_case_set(pairs))):  # fmt: skip
        data, mixture = training_samples(made.recipe, small, others)
        seen = Counter(case.id for case in data.cases if case.intervention is None)
        assert seen == {case.id: 1 if case.is_normal else 2 for case in train}
        assert mixture is None or mixture.sizes[0] == 5


def test_a_share_without_counterfactuals_says_what_is_there(phantom_set: Path, pairs: Path, tmp_path: Path) -> None:
    made = mixed(tmp_path, phantom_set, pairs, MixSettings(removal=1, transplant=2))
    wanted = r"sft.mix.transplant: found a share of 2 but no transplant .*there are: removal \(\d+\), control \(\d+\)"
    with pytest.raises(ValueError, match=wanted):
        run(made)
    missing = context(tmp_path, phantom_set, mix=MIX)
    with pytest.raises(FileNotFoundError, match=r"sft.mix asks for counterfactuals.*run the stage counterfactual"):
        run(missing)


def seen_in(patch: pytest.MonkeyPatch) -> list[Counter[str | None]]:
    """Interventions of each step's cases, noted while a run trains."""
    found: list[Counter[str | None]] = []
    real = SftModule.optimizer_step

    def step(self: SftModule, *arguments: Any, **options: Any) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        real(self, *arguments, **options)
        by_id = {case.id: case for case in data.train.cases}
        found.append(Counter(by_id[name].intervention for name in data.last_cases()))

    patch.setattr(SftModule, "optimizer_step", step)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path, pairs: Path) -> tuple[Path, dict[str, Any]]:
    """A mixed run that nothing stopped, and its metrics."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        seen = seen_in(patch)
        metrics = run(mixed(out, phantom_set, pairs, batch_size=5))
    assert seen == [{None: 2, "removal": 2, "control": 1}] * STEPS
    return out, metrics


def test_a_run_says_how_many_samples_of_each_part_it_had(whole: tuple[Path, dict[str, Any]]) -> None:
    assert whole[1]["samples"] == {"factual": 2 * STEPS, "removal": 2 * STEPS, "control": STEPS}


@pytest.mark.parametrize(("how", "batch", "workers"), [("signal", 3, 2), ("crash", 3, 0)])
def test_a_stopped_mixed_run_goes_on_bit_for_bit(
    whole: tuple[Path, dict[str, Any]],
    phantom_set: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    batch: int,
    workers: int,
) -> None:
    out, metrics = whole
    made = mixed(tmp_path, phantom_set, pairs, batch_size=5, workers=workers)
    with monkeypatch.context() as patch:
        stop_at(patch, batch, how)
        with pytest.raises(Interrupted if how == "signal" else RuntimeError, match=r"SIGTERM|power"):
            run(made)
    assert not (tmp_path / "sft/adapter").exists()
    torch.manual_seed(12345)  # the new process has another history
    assert run(made) == metrics
    expected = (out / "sft/adapter/adapter_model.safetensors").read_bytes()
    assert (tmp_path / "sft/adapter/adapter_model.safetensors").read_bytes() == expected
    timeless = [[{**row, "step_time": ""} for row in rows(folder)] for folder in (out, tmp_path)]
    assert timeless[0] == timeless[1]


def test_counts_do_not_depend_on_how_shares_are_written(phantom_set: Path, tmp_path: Path) -> None:
    recipe = context(tmp_path, phantom_set).recipe
    for mix in (MixSettings(1, 1, 0.5), MixSettings(4, 4, 2)):
        assert counts_of(replace(recipe, sft=SftSettings(mix=mix)), 100) == {
            "factual": 40,
            "removal": 40,
            "control": 20,
        }
