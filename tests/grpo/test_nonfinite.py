"""A step whose gradient is not finite is left out, its batch kept, and the run goes on; too many in a row end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cogalign.grpo.judge import Judge, Judgement
from cogalign.grpo.module import GrpoModule
from cogalign.grpo.stage import run
from cogalign.training.finite import NonFinite
from tests.grpo.test_stage import adapter, make, rows, same_rows, stop_at

__all__ = ["make"]
FIELDS: dict[str, Any] = {"steps": 5, "num_iterations": 1, "micro_batch": 3, "checkpoint_every": 1}


def spoil(patch: pytest.MonkeyPatch, generations: set[int]) -> None:
    """Make an advantage of some generations (from 0) infinite."""
    real = Judge.advantages
    seen = -1

    def advantages(self: Judge, judgement: Judgement, sum_over_ranks: Any) -> Tensor:
        nonlocal seen
        seen += 1
        found = real(self, judgement, sum_over_ranks).clone()
        if seen in generations:
            found[1] = torch.inf
        return found

    patch.setattr(Judge, "advantages", advantages)


def test_a_step_that_is_not_finite_is_left_out_and_its_batch_is_kept(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights: list[float] = []
    real = GrpoModule._update

    def update(self: GrpoModule, *arguments: Any) -> dict[str, float]:
        weights.append(sum(float(p.double().abs().sum()) for p in self.parameters() if p.requires_grad))
        return real(self, *arguments)

    monkeypatch.setattr(GrpoModule, "_update", update)
    spoil(monkeypatch, {2})
    assert run(make(tmp_path, **FIELDS))["steps"] == 5
    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5"] and len(weights) == 5
    assert [float(row["nonfinite_steps"]) for row in table] == [0, 0, 1, 1, 1]
    assert weights[2] == weights[3] and len(set(weights)) == 4
    (batch,) = (tmp_path / "grpo/nonfinite").glob("*.safetensors")
    tensors, told = load_file(batch), json.loads(batch.with_suffix(".json").read_text())
    assert batch.name == "step-00000003-rank-0.safetensors" and told["step"] == 3
    assert torch.isinf(tensors["micros.0.advantages"]).tolist()[:2] == [False, True]
    assert len(told["micros.0.cases"]) == 3 and len(told["micros.0.completions"]) == 9 == len(tensors["micros.0.ids"])
    assert "step 3" in capsys.readouterr().err


def test_a_stopped_run_with_a_skipped_step_goes_on_bit_for_bit(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own count of steps, by which it ends the training, has the skipped step too."""
    with monkeypatch.context() as patch:
        spoil(patch, {1})
        run(make(tmp_path / "whole", **FIELDS))
    for step in (1, 4):  # in the step that is skipped, and in the last one
        out = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            spoil(patch, {1})
            stop_at(patch, step, "signal")
            with pytest.raises(BaseException, match="is saved"):
                run(make(out, **FIELDS))
        assert run(make(out, **FIELDS))["steps"] == 5
        assert adapter(out) == adapter(tmp_path / "whole") and same_rows(out, tmp_path / "whole")


def test_too_many_in_a_row_end_the_run(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path, **FIELDS)
    made.recipe.trainer.nonfinite_limit = 1
    spoil(monkeypatch, {1, 3, 4})
    with pytest.raises(NonFinite, match=r"grpo step 5.*trainer\.nonfinite_limit is 1"):
        run(made)
    assert len(list((tmp_path / "grpo/nonfinite").glob("*.safetensors"))) == 3
