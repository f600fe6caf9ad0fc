"""The pixel cache and worker processes change how fast stage 1 is, and nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogalign.models.pixel_cache import CachedImageProcessor
from cogalign.models.pixel_store import SUFFIX
from cogalign.sft.stage import run
from cogalign.training.context import StageContext
from cogalign.training.interrupt import Interrupted
from tests.sft.test_stage import context, rows, stop_at


def with_cache(made: StageContext, gigabytes: float | None) -> StageContext:
    return replace(made, recipe=replace(made.recipe, data=replace(made.recipe.data, cache_gb=gigabytes)))


def adapter(out: Path) -> bytes:
    return (out / "sft/adapter/adapter_model.safetensors").read_bytes()


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{**row, "step_time": ""} for row in rows(out)]


@pytest.mark.filterwarnings("ignore:.*worker processes.*")
def test_a_run_is_the_same_with_and_without_cache_and_workers_also_where_it_was_stopped(
    phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    metrics = run(with_cache(context(plain, phantom_set), None))
    assert not (plain / "cache").exists()
    made = context(cached, phantom_set, workers=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, "signal")
        with pytest.raises(Interrupted):
            run(made)
    entries = list((cached / "cache").rglob(f"*{SUFFIX}"))
    assert entries
    entries[0].write_bytes(b"damaged")
    shutil.rmtree(entries[-1].parent)  # anybody may delete from it
    assert run(made) == metrics
    assert adapter(cached) == adapter(plain) and timeless(cached) == timeless(plain)
    processed: list[int] = []
    real = CachedImageProcessor._fields

    def fields(self: CachedImageProcessor, *arguments: Any) -> Any:
        found = real(self, *arguments)
        processed.append(self.processed)
        return found

    monkeypatch.setattr(CachedImageProcessor, "_fields", fields)
    shutil.rmtree(cached / "sft")
    assert run(context(cached, phantom_set)) == metrics
    assert processed and max(processed) <= 2  # all is there, but what was thrown away above
    assert len(list((cached / "cache").rglob(f"*{SUFFIX}"))) == 20 + 3  # training cases, and the validation's limit
    assert adapter(cached) == adapter(plain)
