"""Stages that are killed after their long work: the next run ends with the same files."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cogalign import export
from cogalign.data.phantom import write_phantom
from cogalign.recipe import (
    DataSettings,
    ExportSettings,
    ModelSettings,
    PhantomSettings,
    Recipe,
    SegmenterSettings,
    TrackingSettings,
    TrainerSettings,
)
from cogalign.segmenter import stage as segmenter_stage
from cogalign.training.context import StageContext


def digests(folder: Path, *leave_out: str) -> dict[str, str]:
    """Digests of all files of a folder but those with the names that are left out."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in leave_out}  # fmt: skip


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(train=10, validation=5, test=5, size=48, seed=5)
    return write_phantom(settings, tmp_path_factory.mktemp("phantoms") / "data")


def segmenter_context(data: Path, run_dir: Path) -> StageContext:
    settings = SegmenterSettings(
        encoder="tu-test_efficientnet", decoder_channels=[16, 8, 8, 8, 8], pretrained=False, side=32, epochs=1,
        batch_size=4, bootstrap=20, worst=2, flips=False,
    )  # fmt: skip
    recipe = Recipe(
        out=str(run_dir), data=DataSettings(case_set=str(data)), segmenter=settings,
        trainer=TrainerSettings(accelerator="cpu", threads=1), tracking=TrackingSettings(wandb=False),
    )  # fmt: skip
    return StageContext(recipe, run_dir, "segmenter")


def test_a_segmenter_killed_while_it_is_judged_saved_or_drawn_ends_with_the_same_files(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (segmenter_context(phantoms, tmp_path / name) for name in ("whole", "killed"))
    scores = segmenter_stage.run(whole)
    for name in ("calibrate", "write_cases", "write_worst", "write_curves", "write_json"):
        with monkeypatch.context() as patch:

            def stop(*_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(segmenter_stage, name, stop)
            with pytest.raises(KeyboardInterrupt):
                segmenter_stage.run(killed)
    assert not (killed.folder / "scores.json").exists()
    assert segmenter_stage.run(killed) == scores
    told = ("model", "scores.json", "cases.csv", "worst", "curves.png")
    first, second = (
        {name: digest for name, digest in digests(context.folder).items() if name.startswith(told)}
        for context in (whole, killed)
    )
    assert first == second and len(first) > 5


def test_an_export_killed_in_the_middle_leaves_nothing_half_done_and_is_repeated(tmp_path: Path) -> None:
    recipe = Recipe(
        name="killed", out=str(tmp_path), model=ModelSettings(name="tiny", dtype="float32"),
        export=ExportSettings(model="base"),
    )  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").write_text("")
    context = StageContext(recipe, tmp_path, "export")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        export.compare_reloaded = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
        export.run(context)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    left = [path.name for path in (tmp_path / "export").iterdir()]
    assert left == [".model.partial"]
    export.run(context)
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["model"]
    assert {"config.json", "model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "export/model").iterdir()
    }
