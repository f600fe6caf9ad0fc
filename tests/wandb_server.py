"""A server on this machine that answers what wandb's client asks when it starts, resumes, logs and syncs a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}}


class WandbServer:
    """Keeps the history of each run as wandb's server does: lines by their place in the file.

    Attributes:
        url: for WANDB_BASE_URL.
        lines: run id → place → row.
        silent: from when on it takes requests and never answers.
    """

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, dict[str, Any]]] = {}
        self.silent = threading.Event()
        self.closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def steps(self, run_id: str) -> list[int]:
        """The steps of a run in the order of its lines."""
        return [row["_step"] for _, row in sorted(self.lines.get(run_id, {}).items())]

    def take(self, run_id: str, content: dict[str, Any]) -> None:
        """Store the lines of a request to the file stream."""
        for name, part in (content.get("files") or {}).items():
            if "history" in name:
                for place, line in enumerate(part["content"], part["offset"]):
                    self.lines.setdefault(run_id, {})[place] = json.loads(line)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation."""
        run_id = variables.get("name") or ""
        lines = self.lines.get(run_id, {})
        bucket: dict[str, Any] = {"id": "B", "name": run_id, "displayName": "run", "description": "", "config": "{}",
                                  "sweepName": None, "project": PROJECT, "historyLineCount": len(lines)}  # fmt: skip
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}
        if operation == "RunResumeStatus":
            tail = json.dumps([json.dumps(lines[max(lines)])] if lines else [])
            bucket |= {"summaryMetrics": "{}", "logLineCount": 0, "eventsLineCount": 0, "historyTail": tail,
                       "eventsTail": "[]", "tags": [], "notes": "", "wandbConfig": '{"t": 1}'}  # fmt: skip
            return {"model": {**PROJECT, "bucket": bucket if lines else None}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        return {}

    def close(self) -> None:
        """Stop: connections are refused from now on."""
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Nothing on the screen."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.silent.is_set():
                server.closed.wait(600)
                return
            if self.path.endswith("/file_stream"):
                server.take(self.path.split("/")[-2], json.loads(body))
                self._reply({"exitcode": None, "limits": {}})
            else:
                asked = json.loads(body or b"{}")
                self._reply({"data": server.answer(asked.get("operationName") or "", asked.get("variables") or {})})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._reply({})

        def _reply(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that is closed at the end of the block."""
    server = WandbServer()
    try:
        yield server
    finally:
        server.close()


def sync(server: WandbServer, run_dir: Path) -> str:
    """Upload a run's offline files with the command that the docs name; what it said."""
    folders = sorted(str(path) for path in (run_dir / "wandb").glob("offline-run-*"))
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_SILENT": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *folders],
        cwd=run_dir, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    return done.stdout + done.stderr


def run_id_of(said: str) -> str:
    """The id of the run in what `sync` said."""
    found = re.search(r"/runs/(\w+)", said)
    assert found, said
    return found[1]
