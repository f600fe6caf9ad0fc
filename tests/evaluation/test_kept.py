"""A model that is asked goes on in the middle after a kill, to the same bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cogalign.evaluation import audit_stage, predict, stage
from cogalign.evaluation.kept import KeptCompletions
from cogalign.generation.hf import Completion
from cogalign.recipe import AuditSettings, EvaluateSettings
from cogalign.training.context import StageContext

Make = Callable[..., StageContext]
Run = Callable[[StageContext], Any]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report takes most of a short run's time and has tests of its own."""
    for module in (stage, audit_stage):
        monkeypatch.setattr(module, "write_report", lambda context: None)


class Counted:
    """Counts the batches that a model is asked, and can kill before one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        self.kill_at = -1
        self.hard = False
        self.knew: list[bool] = []  # whether answers of the same model were known as drafts
        real = predict.generate

        def generate(loaded: Any, images: Sequence[Any], questions: Sequence[str], **options: Any) -> Any:
            if self.batches == self.kill_at:
                if self.hard:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt
            self.batches += 1
            self.knew.append(bool(options["drafts"]))
            return real(loaded, images, questions, **options)

        monkeypatch.setattr(predict, "generate", generate)


@pytest.fixture
def counted(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def results(context: StageContext) -> dict[str, bytes]:
    """What the stage leaves; the names in `models/` tell of the times of files."""
    names = ("predictions.parquet", "metrics.json")
    assert [path.suffix for path in (context.folder / "models").iterdir()] == [".parquet"] * 3
    return {name: (context.folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(("run", "name"), [(stage.run, "evaluate"), (audit_stage.run, "audit")])
@pytest.mark.parametrize("kill_at", [0, 3, 9])
def test_a_stage_that_was_killed_asks_only_what_is_missing(
    make_context: Make, counted: Counted, run: Run, name: str, kill_at: int
) -> None:
    context = make_context(name)
    run(context)
    whole, total = results(context), counted.batches
    for path in (context.folder, *context.folder.rglob("*")):
        if path.is_file():
            path.unlink()
    counted.batches, counted.kill_at = 0, kill_at
    with pytest.raises(KeyboardInterrupt):
        run(context)
    assert not (context.folder / "metrics.json").exists()
    counted.kill_at, counted.knew = -1, []
    run(context)
    assert counted.batches == total
    assert counted.knew[0] == (kill_at > 0)  # kept answers are drafts again
    assert results(context) == whole


def test_kill_9_between_two_batches_loses_none(make_context: Make, counted: Counted) -> None:
    context = make_context()
    stage.run(context)
    whole, total = results(context), counted.batches
    for path in context.folder.rglob("*.*"):
        path.unlink()
    counted.batches, counted.kill_at, counted.hard = 0, 5, True
    child = os.fork()
    if child == 0:
        stage.run(context)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    counted.batches, counted.kill_at = 0, -1
    stage.run(context)
    assert counted.batches == total - 5
    assert results(context) == whole


def test_other_batches_other_lengths_and_other_weights_use_nothing_that_was_kept(
    make_context: Make, counted: Counted
) -> None:
    def stopped(settings: EvaluateSettings) -> int:
        counted.batches, counted.kill_at = 0, 4
        with pytest.raises(KeyboardInterrupt):
            stage.run(make_context(evaluate=settings))
        return len(KeptCompletions(next((make_context().folder / "models").glob("*.jsonl")))._known)

    assert stopped(EvaluateSettings(batch_size=8, bootstrap=50)) == 4
    assert stopped(EvaluateSettings(batch_size=6, bootstrap=50)) == 8  # the same file, other batches
    stopped(EvaluateSettings(batch_size=8, bootstrap=50, max_completion_length=9))
    assert counted.batches == 4
    (make_context().run_dir / "sft" / "adapter" / "weights").write_text("other weights")
    counted.batches, counted.kill_at = 0, -1
    stage.run(make_context(evaluate=EvaluateSettings(batch_size=8, bootstrap=50, max_completion_length=9)))
    assert counted.batches == 3 * 8 - 4  # the base model's, whose weights are the same
    assert not list((make_context().folder / "models").glob("*.jsonl"))


def test_damaged_files_are_asked_again(
    make_context: Make, counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context()
    stage.run(context)
    whole, total = results(context), counted.batches
    damaged = next((context.folder / "models").glob("sft-*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    counted.batches = 0
    stage.run(context)
    assert counted.batches == total // 3
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert results(context) == whole


def test_a_damaged_line_does_not_count(tmp_path: Path) -> None:
    kept = KeptCompletions(tmp_path / "a.jsonl")
    kept.put("factual", ["1", "2"], [Completion("a polyp", (7, 2), True), Completion("an ulcer", (8,), False)])
    kept.put("factual", ["3"], [Completion("normal", (), True)])
    text = (tmp_path / "a.jsonl").read_text()
    again = KeptCompletions(tmp_path / "a.jsonl")
    assert again.get("factual", ["1", "2"]) == [
        Completion("a polyp", (7, 2), True),
        Completion("an ulcer", (8,), False),
    ]
    assert again.get("factual", ["1"]) is None and again.get("spots", ["3"]) is None
    (tmp_path / "a.jsonl").write_text(text.replace("a polyp", "a polip") + '{"kind": "fact')
    again = KeptCompletions(tmp_path / "a.jsonl")
    assert again.get("factual", ["1", "2"]) is None and again.get("factual", ["3"]) is not None


def test_the_audit_and_the_evaluation_tell_how_far_they_are(make_context: Make, counted: Counted) -> None:
    context = make_context("audit", audit=AuditSettings(batch_size=8, bootstrap=50, limit=5))
    audit_stage.run(context)
    assert (context.folder / "progress.json").exists()
