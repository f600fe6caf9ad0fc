"""GRPO: rewards that raise or hang, gradients that are not finite, and ends inside a generation cycle."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import RowCheck, good
from tests.faults.inject import AT
from tests.faults.runs import GRPO_STEPS, Runs, metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole_grpo(runs: Runs, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, to its end."""
    return good(runs.command("grpo", shutil.copytree(pairs, tmp_path_factory.mktemp("faults") / "grpo")))


def test_ends_inside_a_generation_cycle_lose_no_more_than_elsewhere(
    runs: Runs, whole_grpo: Path, pairs: Path, row: RowCheck, tmp_path: Path
) -> None:
    """The second generation serves steps 5 to 8."""
    out = shutil.copytree(pairs, tmp_path / "run")
    stopped, killed = runs.command("grpo", out, "signal:SIGTERM@4"), runs.command("grpo", out, "signal:SIGKILL@7")
    assert stopped.code == 130 and stopped.steps == 5 and killed.code == -signal.SIGKILL
    last = runs.command("grpo", out)
    row("SIGTERM in GRPO, inside a generation cycle", "signal handler, at the end of the step", stopped, killed,
        whole_grpo, last=last)  # fmt: skip
    row("`kill -9` in GRPO, inside a generation cycle", "the next run", killed, last, whole_grpo,
        message=last.line("going on after"))  # fmt: skip
    assert [found["reward"] for found in last.rows] == [found["reward"] for found in metrics(whole_grpo, "grpo")]


def test_a_gradient_that_is_not_finite_is_skipped(runs: Runs, pairs: Path, row: RowCheck, tmp_path: Path) -> None:
    first = runs.command("grpo", shutil.copytree(pairs, tmp_path / "run"), "inf")
    assert first.steps == GRPO_STEPS and float(first.rows[-1]["nonfinite_steps"]) == 1
    assert (first.folder / f"nonfinite/step-{AT + 1:08d}-rank-0.json").is_file()
    row("a gradient is not finite in GRPO", "every step", first, lost="1, not taken")


def test_a_reward_that_raises_or_hangs_is_missing_and_the_run_goes_on(
    runs: Runs, pairs: Path, row: RowCheck, tmp_path: Path
) -> None:
    kinds = ("raising", "hanging")
    paths = [{"path": f"tests.faults.rewards.{kind}_reward"} for kind in kinds]
    first = runs.command("grpo", shutil.copytree(pairs, tmp_path / "run"), grpo__custom_rewards=paths,
                         grpo__reward_timeout=6.0)  # fmt: skip
    assert first.steps == GRPO_STEPS
    for kind, name in zip(kinds, ("a reward raises", "a reward hangs"), strict=True):
        missing = [float(found[f"rewards/{kind}_reward/missing"]) for found in first.rows]
        assert 0.0 in missing and 0.5 in missing  # the group of that case, beside another one
        row(name, "the pool of reward processes", first, message=first.line(f"reward {kind}_reward, completion"))
    assert "nan" not in {found["reward"] for found in first.rows}
