"""A rollout server as the second part of a job: health, death, requeue, with a small server in place of vLLM."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.slurm.stand_ins import (
    ROOT,
    Site,
    data_is_finished,
    processes,
    requeued_by,
    with_vllm,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_the_training_is_given_a_healthy_server_which_ends_with_the_job(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site)
    site.cluster.wait(number)
    port = 30000 + int(number) % 2000
    assert {call.split("--grpo.vllm.url ")[1] for call in site.calls("grpo")} == {f"http://n2:{port}"}
    assert f"--gpus 2 --argument=--max-model-len --argument=4096 --port {port}".split()[-1] in site.log(
        "grpo", f"{number}-server"
    )
    assert not processes(f"python .*server.py .*--port {port}")


def _grpo(site: Site, server: str = "", behaviour: str = "", **changes: Any) -> str:
    from cogalign.training.stage_file import StageFile

    data_is_finished(site)
    for stage in ("sft", "counterfactual"):
        StageFile(stage, "any", status="finished").write(site.folder / "run" / stage)
    settings = yaml.safe_load((ROOT / "slurm" / "gpu-vllm.yaml").read_text())["rollout_server"]
    settings |= {"arguments": ["--max-model-len", "4096"]} | changes
    profile = site.profile(
        "gpu-vllm.yaml", rollout_server=settings, environment={"SERVER": server, "BEHAVIOUR": behaviour}
    )
    return site.submit(profile, "grpo").jobs["grpo"]


@pytest.mark.parametrize(("server", "changes", "message"), [
    ("dies at once", {}, "the rollout server has ended before it was healthy"),
    ("never healthy", {"start_timeout": 3}, "the rollout server was not healthy after 3 s"),
])  # fmt: skip
def test_a_server_that_does_not_start_ends_the_job_with_the_end_of_its_log(
    site: Site, server: str, changes: dict[str, Any], message: str
) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, server, **changes)
    site.cluster.wait(number, "FAILED")
    assert message in site.log("grpo", number)
    assert "server: [" in site.log("grpo", number)
    assert ("no memory left" in site.log("grpo", number)) == (server == "dies at once")
    assert not site.calls("grpo")


def test_a_server_that_dies_later_stops_the_training_which_saves(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, "dies later", "listen")
    site.cluster.wait(number, "FAILED")
    log = site.log("grpo", number)
    assert "the rollout server has ended before the training" in log
    assert "the server fell over" in log
    assert site.cluster.job(number)["Restarts"] == "0"
    assert not list((site.folder / "run" / "slurm").glob("*.requeue"))


def test_a_job_with_a_server_is_requeued_whole(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, behaviour="listen")
    requeued_by(site, number, "grpo", 4, "--signal=USR1")
    assert site.log("grpo", number).count("the rollout server is healthy") == 2


def test_a_job_with_a_server_is_requeued_when_both_are_preempted_by_term(site: Site) -> None:
    with_vllm(site.recipe)
    number = _grpo(site, behaviour="listen")
    requeued_by(site, number, "grpo", 4, "--signal=TERM")
    assert not list((site.folder / "run" / "slurm" / "logs").glob("*.healthy"))
