"""A server that dies is started once more a generation; a small HTTP program stands in for vLLM, which tests/vllm runs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogalign.generation import vllm_client
from cogalign.generation.vllm_server import VllmError
from cogalign.grpo.ranks import Ranks
from cogalign.grpo.vllm_rollouts import VllmRollouts
from cogalign.models.load import LoadedModel
from cogalign.recipe_grpo import VllmSettings

PROGRAM = """
import http.server, json, os, sys
adapters = {}
class Answer(http.server.BaseHTTPRequestHandler):
    def say(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        models = [{"id": "base"}] + [{"id": name, "parent": "base"} for name in adapters]
        self.say(200, {"data": models})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            assert os.path.isfile(body["lora_path"] + "/adapter_model.safetensors")
            adapters[body["lora_name"]] = body["lora_path"]
            print("loaded", body["lora_name"], flush=True)
        elif self.path == "/v1/unload_lora_adapter" and adapters.pop(body["lora_name"], None) is None:
            return self.say(404, {"error": {"message": "adapter cannot be found"}})
        self.say(200, {"choices": [{"logprobs": {"content": [{"logprob": 0.0}]}}]})
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
print("pid", os.getpid(), flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def rollouts(adapted: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmRollouts]:
    """Rollouts of one process, whose server runs."""
    monkeypatch.setattr(vllm_client, "FIRST_PAUSE", 0.3)
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{PROGRAM}", encoding="utf-8")
    script.chmod(0o755)
    settings = VllmSettings(python=str(script), start_timeout=60, retries=2, request_timeout=10)
    made = VllmRollouts(settings, adapted, tmp_path / "grpo", None)
    made.open(Ranks(), 1, lambda value: value)
    yield made
    made.close()


def log(made: VllmRollouts) -> str:
    return (made.folder / "vllm.log").read_text(encoding="utf-8")


def kill_server(made: VllmRollouts) -> None:
    """End the program itself, and wait until its guard has followed."""
    pid = int(log(made).split("pid ")[-1].split()[0])
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    assert made.server is not None
    while made.server._process is not None and made.server._process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def offered(made: VllmRollouts) -> list[str]:
    """Adapters that the server has."""
    assert made.sampler is not None
    models = made.sampler.client.request("GET", "/v1/models").json()["data"]
    return [model["id"] for model in models if model.get("parent")]


def test_a_server_that_dies_is_started_again_with_the_adapter_that_it_had(
    rollouts: VllmRollouts, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts.sync()
    assert rollouts.server is not None and rollouts.sampler is not None
    name, url = rollouts.sampler.adapter, rollouts.server.url
    kill_server(rollouts)
    assert rollouts.surely(lambda: offered(rollouts)) == [name]
    assert rollouts.server.url == url and log(rollouts).count(f"loaded {name}") == 2
    assert "it is started once more" in capsys.readouterr().err


def test_a_server_that_dies_twice_in_a_generation_ends_the_run_with_what_is_kept(rollouts: VllmRollouts) -> None:
    rollouts.sync()
    kill_server(rollouts)
    assert len(rollouts.surely(lambda: offered(rollouts))) == 1
    kill_server(rollouts)
    with pytest.raises(VllmError, match=r"(?s)has ended.*No checkpoint had been written: the same command begins"):
        rollouts.surely(lambda: offered(rollouts))
    (rollouts.folder / "checkpoints").mkdir(parents=True)
    (rollouts.folder / "checkpoints/step-00000002.ckpt").touch()
    with pytest.raises(
        VllmError, match=r"(?s)The newest checkpoint in .*checkpoints is kept: the same command goes on"
    ):
        rollouts.surely(lambda: offered(rollouts))


def test_between_two_generations_it_may_die_again(rollouts: VllmRollouts) -> None:
    """The new policy's adapter is given to the new server."""
    for generation in range(2):
        rollouts.sync()
        kill_server(rollouts)
        rollouts.surely(lambda: offered(rollouts))
        kill_server(rollouts)
        rollouts.sync()
        assert rollouts.sampler is not None and offered(rollouts) == [rollouts.sampler.adapter], generation
    assert len(list((rollouts.folder / "vllm").glob("policy-*"))) == 1


def test_what_is_not_the_servers_fault_is_not_tried_again(rollouts: VllmRollouts) -> None:
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise ValueError("the prompts differ")

    with pytest.raises(ValueError, match="the prompts differ"):
        rollouts.surely(work)
    assert tries == [1] and log(rollouts).count("pid ") == 1


def test_a_server_that_is_well_is_not_started_again(rollouts: VllmRollouts) -> None:
    def refused() -> None:
        raise VllmError("the vLLM server refused it: HTTP 400")

    with pytest.raises(VllmError, match="refused it"):
        rollouts.surely(refused)
    assert log(rollouts).count("pid ") == 1


def test_several_machines_need_a_server_that_all_of_them_reach(adapted: LoadedModel, tmp_path: Path) -> None:
    made = VllmRollouts(VllmSettings(), adapted, tmp_path, None)
    with pytest.raises(
        ValueError, match=r"grpo\.vllm\.url: found null with trainer\.num_nodes = 2, wanted the address"
    ):
        made.open(Ranks(), 2, lambda value: value)


def test_the_first_process_gives_the_adapter_to_the_server_for_all(
    rollouts: VllmRollouts, adapted: LoadedModel
) -> None:
    """A second process connects to the same server, and samples from the same adapter without loading one."""
    from dataclasses import replace

    assert rollouts.server is not None and rollouts.sampler is not None
    given: list[Any] = [rollouts.server.url, rollouts.sampler.run]
    second = VllmRollouts(rollouts.settings, adapted, rollouts.folder, None)
    second.open(replace(Ranks(), rank=1, world_size=2), 1, lambda _: given.pop(0))
    rollouts.sync()
    second.sync()
    assert second.sampler is not None and second.sampler.adapter == rollouts.sampler.adapter
    assert log(rollouts).count("loaded ") == 1
    second.close()  # leaves the server and the adapter's files to the first
    assert offered(rollouts) == [rollouts.sampler.adapter] and list((rollouts.folder / "vllm").rglob("*.safetensors"))


def test_a_run_ends_well_whose_server_is_gone_when_it_disconnects(rollouts: VllmRollouts) -> None:
    rollouts.sync()
    kill_server(rollouts)
    rollouts.close()
    assert not list((rollouts.folder / "vllm").rglob("*.safetensors"))
