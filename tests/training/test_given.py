"""Checkpoints that a recipe names: found with a hint, and known by their content."""

import os
import shutil
from pathlib import Path

import pytest

from cogalign.training.given import checkpoint_digest, given_checkpoint, is_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "run/sft/adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("about it")
    return folder


def test_a_checkpoint_is_found(adapter: Path) -> None:
    assert given_checkpoint("sft.start", str(adapter)) == adapter and is_adapter(adapter)


@pytest.mark.parametrize(
    ("place", "found"),
    [("run", "a folder without"), ("run/sft", "a folder without"), ("nowhere", "which is no folder")],
)
def test_a_folder_that_is_none_is_named_with_the_one_that_is_near(adapter: Path, place: str, found: str) -> None:
    folder = adapter.parents[2] / place
    near = f"such as '{adapter}'" if place != "nowhere" else "e.g. RUN/sft/adapter"
    with pytest.raises(FileNotFoundError, match=f"sft.checkpoint: found '{folder}', {found}.*{near}"):
        given_checkpoint("sft.checkpoint", str(folder))


def test_the_digest_is_of_weights_and_config_wherever_they_lie(adapter: Path) -> None:
    before = checkpoint_digest(adapter)
    moved = Path(shutil.copytree(adapter, adapter.with_name("moved")))
    (moved / "README.md").write_text("another text")
    assert checkpoint_digest(moved) == before
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        other = Path(shutil.copytree(adapter, adapter.with_name(f"other-{name}")))
        (other / name).write_bytes(b"changed")
        assert checkpoint_digest(other) != before


def test_a_file_that_changes_in_place_is_noticed(adapter: Path) -> None:
    before, weights = checkpoint_digest(adapter), adapter / "adapter_model.safetensors"
    time = weights.stat().st_mtime_ns
    weights.write_bytes(b"WEIGHTS")  # as long as before
    os.utime(weights, ns=(time + 1, time + 1))
    assert checkpoint_digest(adapter) != before
