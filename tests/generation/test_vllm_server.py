"""How a server is started, watched and ended; a small HTTP program stands in for vLLM, which tests/vllm runs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cogalign.generation.vllm_server import (
    GUARD,
    VllmError,
    VllmServer,
    base_model,
    log_end,
    needed_arguments,
    server_command,
    server_environment,
)
from cogalign.models.load import LoadedModel, load_model
from cogalign.recipe import ModelSettings
from cogalign.recipe_grpo import VllmSettings

HEALTHY = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
print("pid", __import__("os").getpid(), flush=True)
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""
DYING = """
print("loading")
raise MemoryError("no room for the weights")
"""
SILENT = "import time; print('still compiling', flush=True); time.sleep(60)"


def stand_in(folder: Path, program: str) -> str:
    """An executable that takes a server's command line and runs `program`."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\n{program}", encoding="utf-8")
    script.chmod(0o755)
    return str(script)


def is_gone(pid: int, within: float) -> bool:
    """Whether the process ends within so many seconds (a zombie has ended)."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def server_pid(log: Path) -> int:
    return int(log.read_text().split("pid ")[1].split()[0])


def test_a_server_is_started_on_a_free_port_and_ended_with_its_group(adapted: LoadedModel, tmp_path: Path) -> None:
    settings = VllmSettings(python=stand_in(tmp_path, HEALTHY), start_timeout=20)
    with VllmServer(settings, adapted, tmp_path / "stage") as server:
        assert server.healthy() and server.url.startswith("http://127.0.0.1:")
        assert server.log is not None
        pid = server_pid(server.log)
        assert not is_gone(pid, 0.1)
    assert is_gone(pid, 5) and not server.healthy()
    server.close()  # a second time does nothing


def test_a_server_that_dies_while_it_starts_is_an_error_with_its_log(adapted: LoadedModel, tmp_path: Path) -> None:
    settings = VllmSettings(python=stand_in(tmp_path, DYING), start_timeout=20)
    with pytest.raises(
        VllmError, match=r"has ended; first errors in .*vllm\.log:\n  MemoryError: no room for the weights"
    ):
        VllmServer(settings, adapted, tmp_path)


def test_a_server_that_is_not_healthy_in_time_is_an_error_and_ended(adapted: LoadedModel, tmp_path: Path) -> None:
    settings = VllmSettings(
        python=stand_in(tmp_path, "import os; print('pid', os.getpid())\n" + SILENT), start_timeout=1
    )
    with pytest.raises(VllmError, match=r"(?s)not healthy after 1 s \(grpo\.vllm\.start_timeout\).*still compiling"):
        VllmServer(settings, adapted, tmp_path)
    assert is_gone(server_pid(tmp_path / "vllm.log"), 5)


def test_a_server_ends_when_the_run_is_killed(tmp_path: Path) -> None:
    program = stand_in(tmp_path, HEALTHY)
    run = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {str(GUARD)!r}, str(os.getpid()), {program!r}, '--port', '0'],"
        f" stdout=open({str(tmp_path / 'log')!r}, 'w'), start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", run])
    deadline = time.monotonic() + 20
    while not ((tmp_path / "log").is_file() and "pid" in (tmp_path / "log").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = server_pid(tmp_path / "log")
    assert not is_gone(pid, 0.6)  # it stays while the run goes on
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert is_gone(pid, 5)


def test_the_guard_does_not_end_a_group_that_is_not_its_own() -> None:
    done = subprocess.run([sys.executable, str(GUARD), str(os.getpid()), "true"], capture_output=True, text=True)
    assert done.returncode == 1 and "leader of a new one" in done.stderr


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://somewhere"])
def test_a_url_that_is_none_is_an_error(adapted: LoadedModel, tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"grpo\.vllm\.url: found '" + url):
        VllmServer(VllmSettings(url=url), adapted, tmp_path)


def test_without_a_python_that_holds_vllm_the_error_says_so(adapted: LoadedModel, tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed beside cogalign")
    with pytest.raises(FileNotFoundError, match=r"grpo\.vllm\.python: found null and no vLLM.*docs/vllm\.md"):
        VllmServer(VllmSettings(), adapted, tmp_path)


def test_a_python_that_is_not_there_is_an_error(adapted: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"grpo\.vllm\.python: found .*nowhere"):
        VllmServer(VllmSettings(python=str(tmp_path / "nowhere")), adapted, tmp_path)


def test_full_weights_are_refused(own_tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grpo\.sampler: found vllm with .* full weights.*needs LoRA"):
        VllmServer(VllmSettings(url="http://127.0.0.1:1"), own_tiny, tmp_path)


def test_a_model_without_files_is_written_without_its_adapter(adapted: LoadedModel, tmp_path: Path) -> None:
    folder = base_model(adapted, tmp_path / "base")
    again = load_model(ModelSettings(name=folder, dtype="float32"), device="cpu").model.state_dict()
    with adapted.model.disable_adapter():
        expected = {name.replace(".base_layer.", "."): value for name, value in adapted.core.state_dict().items()}
    expected = {name: value for name, value in expected.items() if "lora_" not in name}
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_a_model_from_files_is_served_from_them(adapted: LoadedModel, tmp_path: Path) -> None:
    adapted.core.name_or_path = "somebody/some-model"
    assert base_model(adapted, tmp_path / "base") == "somebody/some-model"
    assert not (tmp_path / "base").exists()


def test_the_command_line_says_what_the_processor_and_the_adapter_need(adapted: LoadedModel) -> None:
    arguments = needed_arguments(adapted, adapters=2, images=3)
    value = dict(pairwise(arguments))
    assert value["--max-lora-rank"] == "8"  # of 4: the next that vLLM knows
    assert value["--max-loras"] == "2" and value["--dtype"] == "float32"
    assert value["--logprobs-mode"] == "processed_logprobs"
    assert json.loads(value["--limit-mm-per-prompt"]) == {"image": 3, "video": 0}
    assert json.loads(value["--mm-processor-kwargs"]) == {"min_pixels": 16384, "max_pixels": 16384}
    command = server_command(VllmSettings(arguments=["--dtype", "bfloat16"]), adapted, "model", 8000)
    assert command[0] == sys.executable and command[-2:] == ["--dtype", "bfloat16"]


def test_the_server_is_no_member_of_a_distributed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    found = server_environment()
    assert "WORLD_SIZE" not in found and "MASTER_ADDR" not in found
    assert found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_the_end_of_a_log_names_the_first_error_and_leaves_out_noise(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    head = "(Worker pid=7) ERROR 11-21 22:47:26 [executor.py:9] "
    lines = [f"{head}Traceback (most recent call last):", f"{head}RuntimeError: no such generator"]
    lines += ["(API pid=3) WARNING errors like `OSError: too many`", *(f"line {i}" for i in range(40))]
    lines += ["nanobind: leaked 514 functions!", ' - leaked function "run"']
    log.write_text("\n".join(lines))
    text = log_end(log)
    assert "\n  RuntimeError: no such generator\n" in text and text.endswith("line 39")
    assert "OSError" not in text and "nanobind" not in text and log_end(None) == ""
