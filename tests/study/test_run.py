"""Calls of `cogalign study`, alone and side by side, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from cogalign.cli_data import UsageError
from cogalign.cli_study import study as study_command
from cogalign.study.claims import Claims
from cogalign.study.plan import make_plan
from cogalign.study.run import _are_written
from cogalign.training.atomic import write_text
from cogalign.training.stage_file import read_stage_file
from tests.study.judged_study import write_stage
from tests.study.processes import LIMIT, call, calls, until

BASE = {
    "model": {"name": "tiny-random", "dtype": "float32"},
    "data": {"phantom": {"train": 12, "validation": 2, "test": 6, "size": 64, "seed": 5}},
    "sft": {"steps": 40, "batch_size": 2, "lora": {"r": 4, "alpha": 8}, "max_length": 512, "validate_every": 0,
            "checkpoint_every": 100},
    "counterfactual": {"fill": "surround_blur", "quality": {"enabled": False}, "gallery": 2},
    "grpo": {"steps": 2, "prompts_per_step": 2, "num_generations": 2, "micro_batch": 2, "max_completion_length": 8,
             "mix": {"factual": 1, "removal": 1}},
    "evaluate": {"limit": 4, "batch_size": 4, "max_completion_length": 8, "bootstrap": 20, "splits": ["test"]},
    "audit": {"limit": 4, "batch_size": 4, "max_completion_length": 8, "bootstrap": 20},
    "tracking": {"wandb": False},
    "trainer": {"accelerator": "cpu", "devices": 1},
}  # fmt: skip
ARMS = {
    "sft": {"title": "SFT", "trains": "sft"},
    "grpo": {"title": "GRPO", "trains": "grpo", "after": "sft"},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A small study with two arms and two seeds."""
    content = {"name": "small", "recipe": "base.yaml", "seeds": [1, 2], "arms": ARMS, "compare": [["grpo", "sft"]]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for name in ("hold", "fail"):
        (tmp_path / name).mkdir()
    return tmp_path / "study.yaml"


def ended(process: subprocess.Popen[str]) -> str:
    """What a call has said, once it is over."""
    return process.communicate(timeout=LIMIT)[0]


def finish(study: Path, *words: str) -> tuple[int, str]:
    """A whole call: its exit code and what it has said."""
    with call(study, *words) as process:
        said = ended(process)
        return process.returncode, said


def trained(study: Path) -> list[str]:
    """The trainings that began, in order."""
    return [
        one
        for one in calls(study.parent)
        if one.startswith("arms/") and one.endswith(("seed1/sft", "seed2/sft", "/grpo"))
    ]


def test_two_calls_share_the_work_and_each_run_is_done_once(study: Path) -> None:
    hold = study.parent / "hold"
    for name in ("shared-counterfactual", "arms-sft-seed1-sft", "arms-sft-seed2-sft"):
        (hold / name).touch()
    with call(study, "--seeds", "1,2") as first:
        until(lambda: "shared/counterfactual" in calls(study.parent))
        with call(study) as second:
            assert second.stdout is not None
            assert "waiting for shared, under way in another process" in second.stdout.readline()
            (hold / "shared-counterfactual").unlink()
            until(lambda: {"arms/sft/seed1/sft", "arms/sft/seed2/sft"} <= set(calls(study.parent)))
            (hold / "arms-sft-seed1-sft").unlink()
            until(lambda: "arms/grpo/seed1/grpo" in calls(study.parent))  # though sft with seed 2 is not finished
            (hold / "arms-sft-seed2-sft").unlink()
            said = [ended(first), ended(second)]
    done = calls(study.parent)
    assert len(done) == len(set(done)) and done.count("shared/data") == 1
    assert {
        f"arms/{arm}/seed{seed}/{stage}" for arm, stage in (("sft", "sft"), ("grpo", "grpo")) for seed in (1, 2)
    } <= set(done)
    assert "shared | counterfactual: starting" in said[0] and "shared | " not in said[1]
    assert all("study: " in one and "(5 of 5)" in one for one in said)


def test_what_is_finished_is_skipped_and_what_has_changed_is_not(study: Path) -> None:
    part = ("--seeds", "1")
    finish(study, *part)
    before = calls(study.parent)
    finish(study, *part)
    assert calls(study.parent) == before
    finish(study, *part, "--grpo.learning_rate", "0.5")
    new = calls(study.parent)[len(before) :]
    assert "arms/grpo/seed1/grpo" in new and "arms/grpo/seed1/audit" in new
    assert not [one for one in new if one.startswith("arms/sft") or one.startswith("shared")]


def test_results_that_lack_a_run_or_are_older_than_one_are_not_taken_for_those_of_all(study: Path) -> None:
    plan = make_plan(study, study.parent / "out")
    found = plan.out / "study.json"
    write_stage(plan.runs[-1].recipe.run_dir, "audit")

    def written(later: float, **content: list[str]) -> bool:
        write_text(found, json.dumps({"missing": [], "doubtful": [], **content}))
        changed = (plan.runs[-1].recipe.run_dir / "audit" / "stage.json").stat().st_mtime
        os.utime(found, (changed + later, changed + later))
        return _are_written(plan, began=changed - 5)

    assert not _are_written(plan, began=0)
    assert written(later=1)
    assert not written(later=1, missing=["grpo, seed 2: audit has not finished"])
    assert not written(later=1, doubtful=["grpo-seed2"])
    assert not written(later=-1)  # before the last run was done again
    assert not written(later=-6)  # before this call began


def test_only_what_is_chosen_is_run_with_what_it_starts_from(study: Path) -> None:
    code, said = finish(study, "--arms", "grpo", "--seeds", "2")
    assert code == 0
    assert {one.split("/seed")[0] for one in calls(study.parent)} == {
        "shared/data",
        "shared/counterfactual",
        "arms/sft",
        "arms/grpo",
    }
    assert not [one for one in calls(study.parent) if "seed1" in one]
    assert "3 of 5 runs are finished; missing: sft seed 1, grpo seed 1" in said
    assert not (study.parent / "out" / "study.html").exists()


def test_a_failed_run_is_named_with_its_log_and_the_others_are_done(study: Path) -> None:
    fault = study.parent / "fail" / "arms-sft-seed1-sft"
    fault.touch()
    code, said = finish(study)
    out = study.parent / "out"
    log = out / "arms" / "sft" / "seed1" / "log.txt"
    assert code == 1
    assert f"study: sft seed 1 has failed. Its log is {log}" in said
    assert "    cogalign: error: no luck with arms/sft/seed1/sft" in said
    assert "not begun, since they need it: grpo seed 1" in said and "3 of 5 runs are finished and kept" in said
    assert "no luck" in log.read_text()
    assert trained(study) == ["arms/sft/seed1/sft", "arms/sft/seed2/sft", "arms/grpo/seed2/sft", "arms/grpo/seed2/grpo"]
    fault.unlink()
    finish(study, "--seeds", "1")
    assert trained(study)[4:] == ["arms/sft/seed1/sft", "arms/grpo/seed1/sft", "arms/grpo/seed1/grpo"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_under_way_and_the_next_call_goes_on(study: Path, number: signal.Signals) -> None:
    hold, out = study.parent / "hold" / "arms-sft-seed1-sft", study.parent / "out"
    hold.touch()
    part = ("--arms", "sft", "--seeds", "1")
    with call(study, *part) as process:
        until(lambda: "arms/sft/seed1/sft" in calls(study.parent))
        process.send_signal(number)
        said = ended(process)
        assert process.returncode == 130
    assert "study: stopping sft seed 1" in said and "cogalign: stopped (" in said
    record = read_stage_file(out / "arms" / "sft" / "seed1" / "sft")
    assert record is not None and record.status == "interrupted"
    hold.unlink()
    _, said = finish(study, *part)
    assert "sft seed 1 | sft: not finished (interrupted), going on" in said and "(2 of 5)" in said


def test_the_process_of_a_run_outlives_a_killed_call_and_keeps_others_away(study: Path) -> None:
    hold = study.parent / "hold" / "arms-sft-seed1-sft"
    hold.touch()
    with call(study, "--arms", "sft", "--seeds", "1") as process:
        until(lambda: "arms/sft/seed1/sft" in calls(study.parent))
        process.kill()
        process.wait(LIMIT)
    claims = Claims(study.parent / "out")
    assert claims.take("sft-seed1") is None
    with call(study, "--arms", "sft", "--seeds", "1") as other:
        assert other.stdout is not None
        until(lambda: "waiting for sft seed 1" in other.stdout.readline())  # type: ignore[union-attr]
        hold.unlink()
        assert "study: sft seed 1 is finished" in ended(other)
    assert trained(study) == ["arms/sft/seed1/sft"]


def test_a_call_with_other_settings_is_refused_while_one_works(study: Path) -> None:
    hold = study.parent / "hold" / "shared-counterfactual"
    hold.touch()
    with call(study) as first:
        until(lambda: "shared/counterfactual" in calls(study.parent))
        code, said = finish(study, "--grpo.steps", "3")
        assert code == 1 and "works here with other settings" in said and "recipes/recipe.yaml differs" in said
        first.send_signal(signal.SIGTERM)
        ended(first)
    assert read_stage_file(study.parent / "out" / "shared" / "counterfactual") is not None


def test_a_dry_run_lists_the_runs_and_writes_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study_command([str(study), "--out", str(study.parent / "out"), "--dry-run", "--grpo.steps=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "shared",
        "sft seed 1",
        "grpo seed 1",
        "sft seed 2",
        "grpo seed 2",
    ]
    assert lines[2].split()[3:6] == ["40", "40", "model"] and lines[3].split()[3:6] == ["7", "47", "sft"]
    assert not (study.parent / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "wanted one study"),
        (("--arms", "grop"), "--arms: found 'grop', wanted some of sft, grpo; did you mean grpo?"),
        (("--arms", ","), "--arms: found '', wanted some of sft, grpo"),
        (("--results", "--arms", "sft"), "--results takes all that is finished; leave out --arms"),
        (("--seeds", "3"), "--seeds: found '3', wanted some of 1, 2"),
        (("--dryrun",), "no option --dryrun; did you mean --dry-run?"),
        (("--sft.steps", "many"), "--sft.steps: found 'many'"),
    ],
)
def test_a_wrong_command_line_is_named(study: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        study_command([*([str(study)] if words else []), *words])
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_small_study_is_stopped_taken_over_and_finished(study: Path) -> None:
    """Real trainings on phantoms: one call begins, another takes over what it leaves, and writes the results."""
    out = study.parent / "out"
    words = ("--seeds", "1", "--sft.steps", "300")  # so many that the second call is there before they are done
    state = out / "arms" / "sft" / "seed1" / "sft"
    with call(study, *words, real=True) as first:
        until(lambda: (state / "progress.json").exists() and '"step": 0' not in (state / "progress.json").read_text())
        with call(study, *words, real=True) as second:
            assert second.stdout is not None
            until(lambda: "waiting for sft seed 1" in second.stdout.readline())  # type: ignore[union-attr]
            first.send_signal(signal.SIGTERM)
            ended(first)
            assert first.returncode == 130
            said = ended(second)
            assert second.returncode == 0, said
    record = read_stage_file(state)
    assert record is not None and (record.status, record.resumed, record.metrics["steps"]) == ("finished", 1, 300)
    aligned = read_stage_file(out / "arms" / "grpo" / "seed1" / "grpo")
    assert aligned is not None and (aligned.status, aligned.metrics["steps"]) == ("finished", 2)
    given = read_stage_file(out / "arms" / "grpo" / "seed1" / "sft")
    assert given is not None and given.metrics["made_by"]["digest"] == record.digest
    assert "missing: sft seed 2, grpo seed 2" in said
    with call(study, "--results", *words[2:], real=True) as results:
        said = ended(results)
        assert results.returncode == 0, said
    assert "not finished with these settings: sft seed 2, grpo seed 2" in said
    assert {"study.json", "study.md", "study.html"} <= {path.name for path in out.iterdir()}
