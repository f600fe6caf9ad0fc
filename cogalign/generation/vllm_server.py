"""vLLM's OpenAI-compatible server as a child process of the run, or one that runs already."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import torch

from cogalign.models.adapt import POLICY
from cogalign.models.load import LoadedModel
from cogalign.models.whole_parts import trained_whole
from cogalign.recipe_grpo import VllmSettings
from cogalign.training.heartbeat import beat

GUARD = Path(__file__).with_name("vllm_guard.py")
LOG_NAME, MODEL_FOLDER = "vllm.log", "vllm-base"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes for which vLLM has memory layouts; a smaller adapter fits into the next one."""
DISTRIBUTED = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
               "MASTER_PORT")  # fmt: skip
"""What tells a process of a distributed run its place; the server is none of them."""
POLL = 0.5
NOISE = re.compile(
    r"\s*$|\s+- leaked |\s+- \.\.\. skipped|nanobind: |See https://nanobind|.*resource_tracker|\s+warnings\.warn\("
)
"""Lines at a server's end that tell nothing."""
CAUSE = re.compile(r"(?:\(.*\) ERROR .*\] )?([\w.]*(?:Error|Exception): .*)")
"""The last line of a traceback, plain or in vLLM's log."""


class VllmError(RuntimeError):
    """The server did not start, died, or refused a request."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def log_end(log: Path | None, lines: int = 15) -> str:
    """What a server's log says of its end, as the end of an error message: the first errors, and the last lines."""
    if log is None or not log.is_file():
        return ""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if not NOISE.match(line)]
    causes = list(dict.fromkeys(found.group(1) for line in said if (found := CAUSE.match(line))))[:3]
    first = "".join(f"\n  {cause[:300]}" for cause in causes)
    last = "\n".join(line[:300] for line in said[-lines:])
    return f"; first errors in {log}:{first}\nits last lines:\n{last}" if first else f"; {log} ends with:\n{last}"


def base_model(loaded: LoadedModel, folder: Path) -> str:
    """Folder or hub id of the weights under the adapter, for a server to open.

    A model that was not read from files (`tiny-random`) is written to `folder` without its adapter.
    """
    core = loaded.core
    name = str(getattr(core, "name_or_path", "") or "")
    if name:
        return name
    weights = {
        key.replace(".base_layer.", "."): value for key, value in core.state_dict().items() if "lora_" not in key
    }
    core.save_pretrained(str(folder), state_dict=weights)
    loaded.processor.save_pretrained(str(folder))
    return str(folder)


def require_adapter(loaded: LoadedModel) -> None:
    """Refuse a model of which more than low-rank matrices is trained: a running server can be given nothing else.

    Raises:
        ValueError: the model has no adapter, or one with a projector of its own.
    """
    if trained_whole(loaded.model):
        raise ValueError(
            "grpo.sampler: found vllm with an adapter that holds a trained projector (sft.freeze_projector: false), "
            "wanted hf; the server's base model has another projector, and vLLM takes low-rank matrices only"
        )
    if not hasattr(loaded.model, "peft_config"):
        raise ValueError(
            "grpo.sampler: found vllm with a model that is trained with full weights, wanted hf; "
            "sampler vllm needs LoRA (sft.lora), because only adapters are sent to the server"
        )


def image_limits(processor: Any) -> dict[str, int]:
    """The processor's limits on an image's pixels, for families that have them (Qwen-VL); else nothing."""
    size = dict(getattr(processor.image_processor, "size", None) or {})
    # other families mean the length of an edge by these names, and have no patches that are merged
    if not {"shortest_edge", "longest_edge"} <= size.keys() or not hasattr(processor.image_processor, "merge_size"):
        return {}
    return {"min_pixels": int(size["shortest_edge"]), "max_pixels": int(size["longest_edge"])}


def needed_arguments(loaded: LoadedModel, adapters: int = 1, images: int = 1) -> list[str]:
    """Arguments without which a server could not sample as this process would (also of one that is attached to)."""
    rank = int(loaded.model.peft_config[POLICY].r)
    arguments = ["--dtype", str(next(loaded.core.parameters()).dtype).removeprefix("torch.")]
    arguments += ["--enable-lora", "--max-lora-rank", str(next((size for size in LORA_RANKS if size >= rank), rank))]
    arguments += ["--max-loras", str(adapters)]
    # probabilities after temperature and bans, and no sampling defaults out of the model's folder
    arguments += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    arguments += ["--limit-mm-per-prompt", json.dumps({"image": images, "video": 0})]
    limits = image_limits(loaded.processor)
    return [*arguments, "--mm-processor-kwargs", json.dumps(limits)] if limits else arguments


def server_command(
    settings: VllmSettings, loaded: LoadedModel, model: str, port: int, adapters: int = 1, images: int = 1
) -> list[str]:
    """The command line of the server for the base model `model`; `settings.arguments` come last, so they win."""
    command = [settings.python or sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model, "--host", "127.0.0.1", "--port", str(port)]
    command += needed_arguments(loaded, adapters, images)
    if not torch.cuda.is_available():
        # Compiling for a CPU takes minutes. vLLM 0.32 turns the generator of a request with a seed back when only a
        # part of its prompt was computed, which a generator of the CPU cannot do: the whole server would end.
        command += ["--enforce-eager", "--no-enable-chunked-prefill"]
    return [*command, *settings.arguments]


def server_environment() -> dict[str, str]:
    """Environment variables of the server: this process's, with what adapters at run time need."""
    variables = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED}
    variables.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read on a CPU only
    return variables | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}


def _address(url: str) -> str:
    """The server's address without what the paths of requests add to it."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"grpo.vllm.url: found {url!r}, wanted an address such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def require_python(settings: VllmSettings) -> None:
    """Look whether the server can be started at all, which is sooner said than its own error."""
    wanted = "the Python of an environment that holds vLLM (docs/vllm.md says how to build one)"
    if settings.python is None and importlib.util.find_spec("vllm") is None:
        raise FileNotFoundError(f"grpo.vllm.python: found null and no vLLM beside cogalign, wanted {wanted}")
    if settings.python is not None and not Path(settings.python).is_file():
        raise FileNotFoundError(f"grpo.vllm.python: found {settings.python}, wanted {wanted}")


class VllmServer:
    """A healthy server at `url`: started here (then `close` ends it), or attached to (`settings.url`).

    A server that was started lives in a process group of its own and ends with this process, however that ends.
    """

    def __init__(
        self,
        settings: VllmSettings,
        loaded: LoadedModel,
        folder: Path,
        *,
        revision: str | None = None,
        adapters: int = 1,
        images: int = 1,
    ) -> None:
        """Start or find the server and wait until it is healthy.

        Args:
            settings: `grpo.vllm` of the recipe.
            loaded: the policy, whose base model is served with its type, image size and adapter rank.
            folder: where `vllm.log` is written, and the base model if it has no files.
            revision: of a model on the hub.
            adapters: adapters that are used at the same time; one for each process that samples.
            images: most images in a prompt.

        Raises:
            ValueError: the model has no adapter, or `settings.url` is no address.
            FileNotFoundError: `settings.python` does not exist, or has no vLLM.
            VllmError: it died or was not healthy within `settings.start_timeout`; quotes the end of its log.
        """
        require_adapter(loaded)
        self.log: Path | None = None
        self.started_here = settings.url is None
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._folder, self._timeout = folder, settings.start_timeout
        if settings.url is not None:
            self.url = _address(settings.url)
        else:
            port = settings.port or free_port()
            self.url = f"http://127.0.0.1:{port}"
            require_python(settings)
            model = base_model(loaded, folder / MODEL_FOLDER)
            command = server_command(settings, loaded, model, port, adapters, images)
            self._command = [*command, "--revision", revision] if revision else command
            self._start("wb")
        self._wait_or_close()

    def restart(self) -> None:
        """Start the server once more, at the same address and without any adapter; its log goes on in the same file.

        Raises:
            VllmError: it was not started here, or died again.
        """
        if not self._command:
            raise VllmError(f"the vLLM server at {self.url} was not started by this run, so it cannot be restarted")
        self.close()
        self._start("ab")
        self._wait_or_close()

    def _wait_or_close(self) -> None:
        try:
            self._wait(self._timeout)
        except BaseException:
            self.close()
            raise

    def _start(self, mode: Literal["wb", "ab"]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log = self._folder / LOG_NAME
        with self.log.open(mode) as log:
            self._process = subprocess.Popen(
                [sys.executable, str(GUARD), str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=server_environment(),
                start_new_session=True,
            )

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.healthy():
            beat()  # this waiting has a limit of its own
            self.check()
            if time.monotonic() > deadline:
                raise VllmError(
                    f"the vLLM server at {self.url} was not healthy after {timeout:g} s (grpo.vllm.start_timeout)"
                    + log_end(self.log)
                )
            time.sleep(POLL)

    @property
    def on_this_machine(self) -> bool:
        """Whether it runs here, where a proxy is of no use."""
        return self.started_here or urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")

    @property
    def group(self) -> int | None:
        """Id of the process group of a server that was started here and not closed."""
        return None if self._process is None else self._process.pid

    def healthy(self) -> bool:
        """Whether the server answers that it is well."""
        try:
            answer = httpx.get(f"{self.url}/health", timeout=5.0, trust_env=not self.on_this_machine)
            return answer.status_code == 200
        except httpx.TransportError:
            return False

    def check(self) -> None:
        """Notice a dead server.

        Raises:
            VllmError: the server that was started has ended.
        """
        if self._process is not None and self._process.poll() is not None:
            raise VllmError(f"the vLLM server at {self.url} has ended" + log_end(self.log))

    def close(self) -> None:
        """End the server if it was started here; otherwise it goes on."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()  # the guard ends the group, by force after a few seconds
        try:
            process.wait(timeout=20.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> VllmServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
