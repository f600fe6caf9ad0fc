"""What becomes of errors while a sharded checkpoint is written and read; the rest is in test_fsdp."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cogalign.training.consolidate import META, read_sharded, save_sharded


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def content() -> dict[str, Any]:
    group = {"params": ["a"], "lr": 0.1}
    state = {"state": {"a": {"step": torch.tensor(3.0)}}, "param_groups": [group]}
    return {"epoch": 1, "state_dict": {"a": torch.arange(5000.0)}, "optimizer_states": [state]}


def test_what_is_cut_off_is_an_error_that_names_the_folder(group: None, tmp_path: Path) -> None:
    save_sharded(content(), tmp_path / "saved")
    whole = read_sharded(tmp_path / "saved")
    assert torch.equal(whole["state_dict"]["a"], torch.arange(5000.0)) and whole["epoch"] == 1
    (part,) = (tmp_path / "saved").glob("*.distcp")
    os.truncate(part, 1000)
    with pytest.raises(OSError, match=r"rank 0: .*saved"):
        read_sharded(tmp_path / "saved")


def test_a_part_that_cannot_be_written_is_an_error_that_handlers_see(group: None, tmp_path: Path) -> None:
    (tmp_path / "saved/__0_0.distcp").mkdir(parents=True)
    with pytest.raises(OSError, match=r"rank 0: .*directory") as raised:
        save_sharded(content(), tmp_path / "saved")
    assert isinstance(raised.value.__cause__, IsADirectoryError)
    assert not (tmp_path / "saved" / META).exists()
