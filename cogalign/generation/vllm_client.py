"""Requests to a vLLM server: sent again when the network or the server stumbles, a clear error when that is no use."""

from __future__ import annotations

import time
from typing import Any

import httpx

from cogalign.generation.vllm_server import VllmError, VllmServer, log_end
from cogalign.recipe_grpo import VllmSettings
from cogalign.training.heartbeat import beat

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first repetition, doubled each time, up to the longest."""


class VllmClient:
    """HTTP requests to one server; safe to use from several threads."""

    def __init__(self, server: VllmServer, settings: VllmSettings, connections: int = 64) -> None:
        self.server, self.settings = server, settings
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        timeout = httpx.Timeout(settings.request_timeout, connect=min(10.0, settings.request_timeout))
        self._http = httpx.Client(
            base_url=server.url, timeout=timeout, limits=limits, trust_env=not server.on_this_machine
        )

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self._http.close()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to a request.

        Raises:
            VllmError: the server refused it (4xx), has ended, or failed `settings.retries` times more.
        """
        tries = self.settings.retries + 1
        reason = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
                self.server.check()  # no use to wait for a server that is dead
            beat()  # a request has a limit of its own
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code < 400:
                return answer
            reason = f"HTTP {answer.status_code}: {_message(answer)}"
            if answer.status_code < 500 and answer.status_code != 429:
                raise VllmError(f"the vLLM server at {self.server.url} refused {path}: {reason}")
        self.server.check()
        raise VllmError(
            f"the vLLM server at {self.server.url} failed {tries} times on {path}: {reason}" + log_end(self.server.log)
        )

    def base_name(self) -> str:
        """Name under which the server offers its base model."""
        models = self.request("GET", "/v1/models").json()["data"]
        return str(next(model["id"] for model in models if not model.get("parent")))

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        answer: dict[str, Any] = self.request("POST", "/v1/chat/completions", body).json()
        return answer

    def load_adapter(self, name: str, folder: str) -> None:
        """Make the server read the adapter in `folder` (a path that is the server's, too).

        Raises:
            VllmError: it refused. Where adapters cannot be changed at run time the error says how to start it; where it
                does not see the folder, that both machines need one file system.
        """
        for attempt in range(self.settings.retries + 1):
            if attempt:  # a network file system may show a new folder late
                time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                self._load(name, folder)
                return
            except VllmError as error:
                if "No adapter found" not in str(error):
                    raise
                reason = error
        raise VllmError(
            f"{reason}; the adapter was written to {folder}, which the server at {self.server.url} cannot read: put the "
            "run (--out) on a file system that both machines share, under the same path"
        ) from reason

    def _load(self, name: str, folder: str) -> None:
        try:
            self.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except VllmError as error:
            if "already been loaded" in str(error):  # an earlier try, whose answer was lost; names are never used twice
                return
            if str(error).endswith("HTTP 404: Not Found"):
                raise VllmError(
                    f"the vLLM server at {self.server.url} takes no adapters at run time; start it with --enable-lora "
                    "and the environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                ) from error
            raise

    def unload_adapter(self, name: str) -> None:
        """Make the server forget an adapter; one that it does not know is none."""
        try:
            self.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except VllmError as error:
            if "cannot be found" not in str(error):
                raise

    def require_sampling_distribution(self, model: str, token: int) -> None:
        """Check that log-probabilities are those of the distribution that is sampled from.

        One token is drawn where only `token` is allowed: its probability is 1 in the distribution that is sampled
        from, and about one in the size of the vocabulary in the model's raw one.

        Raises:
            VllmError: the server was started with another `--logprobs-mode`.
        """
        answer = self.chat(
            {
                "model": model,
                "messages": [{"role": "user", "content": "?"}],
                "max_completion_tokens": 1,
                "allowed_token_ids": [token],
                "logprobs": True,
                "top_logprobs": 0,
            }
        )
        found = float(answer["choices"][0]["logprobs"]["content"][0]["logprob"])
        if abs(found) > 1e-3:
            raise VllmError(
                f"the vLLM server at {self.server.url} gives log-probabilities before temperature and bans (a certain "
                f"token got {found:.3f}, wanted 0); start it with --logprobs-mode processed_logprobs"
            )


def _message(answer: httpx.Response) -> str:
    """What an error answer says, in one line."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text.strip()[:300] or answer.reason_phrase
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:600]
