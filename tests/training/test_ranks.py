from pathlib import Path

import pytest
import torch

from cogalign.training.ranks import is_distributed, is_first, together


def test_a_process_alone_is_the_first_and_waits_for_nobody() -> None:
    assert not is_distributed() and is_first()
    together()


def test_a_group_is_seen_as_long_as_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        assert is_distributed() and is_first()
        together()
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        assert not is_first()
    finally:
        torch.distributed.destroy_process_group()
    assert not is_distributed()
