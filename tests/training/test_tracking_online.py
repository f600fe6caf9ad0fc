"""wandb's server away, silent or lost on the way: a run starts, goes on and ends in bounded time and keeps its rows."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cogalign.recipe import Recipe
from cogalign.training import tracking
from cogalign.training.context import StageContext
from cogalign.training.tracking import build_loggers, current_id, finish_tracking, log_step, read_rows
from tests.wandb_files import history_rows
from tests.wandb_server import WandbServer, wandb_server

SLACK = 60.0
"""Seconds that a busy machine may take beside the time limit that is tested."""

pytestmark = pytest.mark.slow


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageContext]:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(tracking, "START_SECONDS", 3.0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 3.0)
    finish_tracking()
    tracking._end_service()  # what an earlier test has told it of another server
    yield StageContext(Recipe(name="tracked", out=str(tmp_path)), tmp_path, "grpo")
    finish_tracking()
    tracking._end_service()


@contextmanager
def unreachable(kind: str) -> Iterator[str]:
    """The address of a server that refuses connections, or takes them and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == "black hole":
            listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["closed port", "black hole"])
def test_without_a_server_the_run_starts_soon_and_is_written_offline(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with unreachable(kind) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        start = time.monotonic()
        loggers = build_loggers(context.recipe, context)
        for step in range(1, 4):
            log_step(loggers, {"loss": 1 / step}, step)
        finish_tracking()
        assert time.monotonic() - start < 6 + SLACK
    assert "warning: wandb does not start" in (said := capsys.readouterr().err)
    assert "it goes on offline" in said
    assert [row["_step"] for row in history_rows(context.run_dir, current_id(context.folder))] == [1, 2, 3]
    assert [row["step"] for row in read_rows(context.folder / "metrics.csv")[1]] == ["1", "2", "3"]


def test_without_an_api_key_the_run_is_written_offline(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    with unreachable("closed port") as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        loggers = build_loggers(context.recipe, context)
        log_step(loggers, {"loss": 0.5}, 1)
        finish_tracking()
    assert "No API key configured" in capsys.readouterr().err
    assert [row["_step"] for row in history_rows(context.run_dir, current_id(context.folder))] == [1]


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_server_lost_on_the_way_stops_no_step_and_no_end(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        loggers = build_loggers(context.recipe, context)
        assert len(loggers) == 2
        log_step(loggers, {"loss": 1.0}, 1)
        if kind == "closed":
            server.close()
        else:
            server.silent.set()
        longest = 0.0
        for step in range(2, 40):
            start = time.monotonic()
            log_step(loggers, {"loss": 1 / step}, step)
            longest = max(longest, time.monotonic() - start)
        start = time.monotonic()
        finish_tracking()
        took = time.monotonic() - start
        server.closed.set()
    assert longest < 2.0
    assert took < 6 + SLACK
    assert len(read_rows(context.folder / "metrics.csv")[1]) == 39


def test_an_online_run_that_goes_on_has_each_step_once_on_the_server(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second life begins before the last step that the server has; the third one after rows that it never got."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setattr(tracking, "FINISH_SECONDS", 60.0)
        one_life(context, 1, 6)
        one_life(context, 4, 9)
        assert steps_of(server, context) == list(range(1, 10))
        monkeypatch.setenv("WANDB_MODE", "disabled")
        one_life(context, 10, 12)
        monkeypatch.setenv("WANDB_MODE", "online")
        one_life(context, 13, 14)
        assert steps_of(server, context) == list(range(1, 15))


def one_life(context: StageContext, first: int, last: int) -> None:
    loggers = build_loggers(context.recipe, context)
    for step in range(first, last + 1):
        log_step(loggers, {"loss": 1 / step}, step)
    finish_tracking()


def steps_of(server: WandbServer, context: StageContext) -> list[int]:
    return server.steps(current_id(context.folder) or "")
