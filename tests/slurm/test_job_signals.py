"""What signals, failures and requeues do to the job scripts, on a real cluster with a stand-in for cogalign."""

from __future__ import annotations

import time

import pytest

from tests.slurm.stand_ins import (
    Site,
    data_is_finished,
    requeued_by,
    wait_restart,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_a_signal_to_the_steps_requeues_the_job_and_the_restart_finishes(site: Site) -> None:
    sent = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}, stages={"data": {}}), "segmenter")
    requeued_by(site, sent.jobs["data"], "prepare", 1, "--signal=USR1")
    number = sent.jobs["segmenter"]
    requeued_by(site, number, "segmenter", 2, "--signal=USR1")
    assert site.log("segmenter", number).count("cogalign: segmenter: requeued") == 1
    assert "restart 1" in site.log("segmenter", number)  # appended, not written anew
    assert (site.folder / "run" / "slurm" / "segmenter.finished").read_text().strip() == number
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


@pytest.mark.parametrize(
    "how", [("--batch", "--signal=USR1"), ("--batch", "--signal=TERM"), ("--full", "--signal=USR1")]
)
def test_a_signal_to_the_batch_shell_reaches_all_ranks(site: Site, how: tuple[str, ...]) -> None:
    data_is_finished(site)
    sent = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft")
    requeued_by(site, sent.jobs["sft"], "sft", 2, *how)


def test_a_job_is_requeued_only_after_its_command_has_saved_however_often_it_is_told(site: Site) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "slow"}), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    for _ in range(3):
        site.cluster.run("scancel", "--batch", "--signal=TERM", number)
        time.sleep(1)
    wait_restart(site, number)
    assert len(list(site.records.glob(f"sft.x.*.0.{number}.saved"))) == 2


def test_a_preempted_job_whose_commands_alone_get_term_is_requeued(site: Site) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft").jobs["sft"]
    requeued_by(site, number, "sft", 2, "--signal=TERM")


def test_a_job_is_requeued_although_slurm_does_not_answer_at_first(site: Site) -> None:
    mute = site.folder / "bin" / "scontrol"
    mute.write_text(
        '#!/bin/bash\n[[ $1 == show && $2 == job && ! -e $RECORD/mute ]] || exec /usr/bin/scontrol "$@"\n: >"$RECORD/mute"\n'
        'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1\n'
    )
    mute.chmod(0o755)
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    site.cluster.run("scancel", "--signal=USR1", number)
    wait_restart(site, number)
    assert (site.records / "mute").exists()


def test_a_job_one_of_whose_ranks_fails_is_not_requeued(site: Site) -> None:
    """srun ends the other ranks by TERM, which they take for a stop."""
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "one fails"}), "sft").jobs["sft"]
    site.cluster.wait(number, "FAILED")
    assert site.cluster.job(number)["Restarts"] == "0"
    assert "sft: ended with exit code 3" in site.log("sft", number)
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def test_a_command_that_had_no_time_to_listen_is_requeued_too(site: Site) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "deaf"}), "sft").jobs["sft"]
    site.until("sft.x.*.args", 2)
    time.sleep(1)
    site.cluster.run("scancel", "--signal=USR1", number)
    wait_restart(site, number)
    site.cluster.wait(number)


def test_a_job_that_was_cancelled_does_not_come_back(site: Site) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    site.cluster.run("scancel", number)
    site.cluster.wait(number, "CANCELLED")
    time.sleep(3)
    assert site.cluster.job(number)["JobState"] == "CANCELLED"
    assert "requeued" not in site.log("sft", number).replace("not requeued", "")
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def test_a_job_is_not_requeued_more_often_than_the_profile_allows(site: Site) -> None:
    data_is_finished(site)
    profile = site.profile(environment={"BEHAVIOUR": "stubborn"}, max_restarts=1)
    number = site.submit(profile, "sft").jobs["sft"]
    for restart in range(2):
        site.until(f"sft.x.*.{restart}.{number}.ready", 2)
        site.cluster.run("scancel", "--signal=USR1", number)
        if restart == 0:
            wait_restart(site, number)
    site.cluster.wait(number, "FAILED")
    assert "restarted 1 times before (max_restarts)" in site.log("sft", number)


def test_an_administrator_s_requeue_beyond_the_cap_ends_the_job_at_its_start(site: Site) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(environment={"BEHAVIOUR": "listen"}, max_restarts=0), "sft").jobs["sft"]
    site.until(f"sft.x.*.0.{number}.ready", 2)
    site.cluster.run("scontrol", "requeue", number)
    wait_restart(site, number)
    site.cluster.wait(number, "FAILED")
    assert "restarted 1 times, and max_restarts of the cluster profile is 0" in site.log("sft", number)
    assert not list(site.records.glob("sft.x.*.1.*"))


def test_a_finished_job_that_is_requeued_exits_at_once(site: Site) -> None:
    data_is_finished(site)
    number = site.submit(site.profile(), "sft").jobs["sft"]
    site.cluster.wait(number)
    site.cluster.run("scontrol", "requeue", number)
    wait_restart(site, number)
    site.cluster.wait(number)
    assert "finished before, nothing to do" in site.log("sft", number)
    assert len(site.calls("sft")) == 2  # both of the first time


def test_only_the_task_of_an_array_that_was_stopped_comes_back(site: Site) -> None:
    profile = site.profile(environment={"BEHAVIOUR": "listen"}, counterfactual={"shards": 2, "max_running": 1})
    data_is_finished(site)
    sent = site.submit(profile, "counterfactual")
    requeued_by(site, sent.jobs["counterfactual-masks"], "counterfactual", 1, "--signal=USR1")
    number = sent.jobs["counterfactual"]
    # with two tasks of which one runs at a time, the last one has the number of the array itself
    site.until("counterfactual.1.*.ready")
    site.cluster.run("scancel", "--signal=USR1", f"{number}_1")
    end = time.monotonic() + 60
    while (task := _task(site, number, "1"))["Restarts"] == "0":
        assert time.monotonic() < end, site.logs()
        time.sleep(0.3)
    assert task["JobId"] == number
    site.cluster.wait(number)
    assert _task(site, number, "0")["Restarts"] == "0"
    assert len(list(site.records.glob("counterfactual.0.*.args"))) == 1
    assert len(list(site.records.glob("counterfactual.1.*.args"))) == 2


def _task(site: Site, number: str, index: str) -> dict[str, str]:
    return next(task for task in site.cluster.tasks(number) if task["ArrayTaskId"] == index)


def test_a_job_comes_back_before_its_time_limit_and_also_when_it_was_too_slow_for_that(site: Site) -> None:
    data_is_finished(site)
    numbers = {}
    for behaviour in ("listen", "busy", "stone"):
        site.recipe.out = str(site.folder / behaviour)
        data_is_finished(site)
        profile = site.profile(environment={"BEHAVIOUR": behaviour}, time="00:01:00", signal_before=40, nodes=1)
        numbers[behaviour] = site.submit(profile, "sft").jobs["sft"]
    logs = {}
    for behaviour, number in numbers.items():
        site.cluster.wait(number, seconds=240)
        assert site.cluster.job(number)["Restarts"] == "1"
        logs[behaviour] = (site.folder / behaviour / "slurm" / "logs" / f"sft-{number}.log").read_text()
    assert "TIME LIMIT" in logs["busy"]
    assert "the time limit is reached: requeued" in logs["stone"]
    assert "TIME LIMIT" not in logs["listen"]
