"""The pixel cache, filled a generation ahead, changes how fast stage 3 is, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.grpo.stage import run
from cogalign.models.pixel_store import SUFFIX
from cogalign.training.interrupt import Interrupted
from tests.grpo.test_stage import adapter, make, same_rows, stop_at

__all__ = ["make"]  # a fixture


def test_a_run_is_the_same_with_and_without_cache_also_where_it_was_stopped(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 3, "num_iterations": 1, "steps_per_generation": 1}
    bare = make(tmp_path / "plain", **fields)
    bare = replace(bare, recipe=replace(bare.recipe, data=replace(bare.recipe.data, cache_gb=None)))
    metrics = run(bare)
    assert not (tmp_path / "plain/cache").exists()
    out = tmp_path / "cached"
    with monkeypatch.context() as patch:
        stop_at(patch, 1, "signal")
        with pytest.raises(Interrupted):
            run(make(out, **fields))
    assert run(make(out, **fields)) == metrics
    assert adapter(out) == adapter(tmp_path / "plain") and same_rows(out, tmp_path / "plain")
    assert list((out / "cache").rglob(f"*{SUFFIX}"))
