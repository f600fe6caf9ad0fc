"""Steps that are not finite: who decides, what is saved, and when it is too many."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cogalign.training.finite import KEEP, Count, FiniteGuard, NonFinite, told, write_batch


def alone(statement: bool) -> bool:
    return statement


def batch() -> dict[str, Any]:
    whole = torch.arange(6.0).reshape(2, 3)
    return {"ids": ["a", "b"], "labels": whole[:, 1:], "inputs": {"pixels": whole, "again": whole}, "scale": math.inf}


def test_a_finite_step_is_taken_and_nothing_is_written(tmp_path: Path) -> None:
    guard = FiniteGuard(tmp_path, 2)
    assert guard.judge(alone, 1, torch.tensor(0.5), 2.0, batch)
    assert list(tmp_path.iterdir()) == [] and guard.metrics() == {"nonfinite_steps": 0.0}


@pytest.mark.parametrize(("norm", "loss"), [(math.inf, 1.0), (1.0, math.nan), (math.nan, math.nan)])
def test_a_step_with_a_loss_or_gradient_that_is_not_finite_is_skipped_and_its_batch_saved(
    norm: float, loss: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = FiniteGuard(tmp_path / "sft", 2)
    assert not guard.judge(alone, 12, norm, loss, batch)
    path = tmp_path / "sft/nonfinite/step-00000012-rank-0.safetensors"
    saved, texts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    assert saved["inputs.pixels"].equal(torch.arange(6.0).reshape(2, 3))
    assert saved["labels"].equal(torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
    assert texts["ids"] == ["a", "b"] and texts["step"] == 12 and texts["scale"] == "inf"
    assert math.isnan(float(texts["loss"])) == math.isnan(loss)
    message = capsys.readouterr().err
    assert f"sft step 12: loss {loss:.6g}, gradient norm {norm:.6g}: skipped (1 in a row, 2 allowed)" in message
    assert str(path) in message


def test_more_steps_in_a_row_than_allowed_end_the_stage_with_what_to_do(tmp_path: Path) -> None:
    guard = FiniteGuard(tmp_path / "grpo", 2)
    assert not guard.judge(alone, 1, 1.0, math.nan, batch)
    assert guard.judge(alone, 2, 1.0, 1.0, batch)  # the row is broken
    assert not guard.judge(alone, 3, 1.0, math.nan, batch)
    assert not guard.judge(alone, 4, 1.0, math.nan, batch)
    with pytest.raises(NonFinite, match="learning rate") as error:
        guard.judge(alone, 5, 1.0, math.nan, batch)
    assert "grpo step 5" in str(error.value) and "step-00000005-rank-0.safetensors" in str(error.value)
    assert guard.metrics() == {"nonfinite_steps": 4.0}


def test_a_rank_whose_own_numbers_are_finite_skips_when_another_rank_does(tmp_path: Path) -> None:
    asked: list[bool] = []

    def other_rank_is_not(statement: bool) -> bool:
        asked.append(statement)
        return False

    assert not FiniteGuard(tmp_path, 2).judge(other_rank_is_not, 1, 1.0, 1.0, batch)
    assert asked == [True]


def test_the_count_goes_on_after_a_resume(tmp_path: Path) -> None:
    first, second = FiniteGuard(tmp_path, 1), FiniteGuard(tmp_path, 1)
    first.judge(alone, 1, 1.0, math.nan, batch)
    second.load_state_dict(first.state_dict())
    assert second.count == Count(1, 1)
    with pytest.raises(NonFinite):
        second.judge(alone, 2, 1.0, math.nan, batch)


def test_only_the_newest_batches_of_a_rank_stay(tmp_path: Path) -> None:
    folder = tmp_path / "nonfinite"
    write_batch(folder / "step-00000001-rank-1.safetensors", {"ids": []})
    guard = FiniteGuard(tmp_path, 100)
    for step in range(1, KEEP + 4):
        guard.judge(alone, step, 1.0, math.nan, batch)
    mine = sorted(path.name for path in folder.glob("*rank-0.safetensors"))
    assert mine == [f"step-{step:08d}-rank-0.safetensors" for step in range(4, KEEP + 4)]
    assert len(list(folder.glob("*rank-0.json"))) == KEEP
    assert (folder / "step-00000001-rank-1.safetensors").exists()


def test_a_batch_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nonfinite").write_text("in the way")
    assert not FiniteGuard(tmp_path, 1).judge(alone, 1, 1.0, math.nan, batch)
    assert "could not be written" in capsys.readouterr().err


def test_of_several_ranks_the_guilty_ones_are_named() -> None:
    ranks = [{"loss": 1.0, "norm": math.nan}, {"loss": math.nan, "norm": math.nan}]
    assert told(ranks) == "loss nan on rank 1, gradient norm nan"
    assert told([{"loss": 1.0, "norm": math.inf}] * 2) == "all losses finite, gradient norm inf"
