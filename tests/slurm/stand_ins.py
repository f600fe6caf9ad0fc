"""Stand-ins for cogalign, apptainer, pyxis and a server, and the cluster as a test of job scripts uses it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cogalign.cluster.submit import Submission, submit
from cogalign.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]

COMMAND = r"""#!/bin/bash
# A stand-in for cogalign: writes down how it was called, then does what $BEHAVIOUR says.
record=$RECORD/$1.${SLURM_ARRAY_TASK_ID:-x}.${SLURM_PROCID}.${SLURM_RESTART_COUNT:-0}.$SLURM_JOB_ID
printf '%s\n' "$*" >"$record.args.part" && mv "$record.args.part" "$record.args"
env -0 >"$record.env"
asked() {
  [[ $BEHAVIOUR != slow ]] || { trap "" USR1 TERM; sleep 4; : >"$record.saved"; }
  [[ $SLURM_PROCID != 0 ]] || echo "{\"signal\": \"SIG$1\"}" >"$COGALIGN_REQUEUE_FILE"
  exit 0
}
case $BEHAVIOUR in
  fail) exit 3 ;;
  deaf) [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || exec sleep 300 ;;
  busy) trap "" USR1; [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || sleep 300 ;;
  stone) [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || { trap "" USR1 TERM; exec sleep 300; } ;;
  listen | stubborn | slow | "one fails")
    [[ $BEHAVIOUR == stubborn || ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit 0
    [[ ${SLURM_ARRAY_TASK_ID:-1} == 1 ]] || exit 0
    trap 'asked USR1' USR1
    trap 'asked TERM' TERM
    : >"$record.ready"
    [[ $BEHAVIOUR != "one fails" || $SLURM_PROCID != 1 ]] || { sleep 2; exit 3; }
    for _ in {1..1500}; do sleep 0.2; done ;;
esac
exit 0
"""
APPTAINER = r"""#!/bin/bash
# A stand-in for apptainer: writes down its options, runs the rest in the folder asked for.
echo "$*" >>"$RECORD/apptainer"
[[ $1 == exec ]] || exit 9
shift
while [[ $1 == --* ]]; do
  case $1 in
    --nv) shift ;;
    --bind) shift 2 ;;
    --pwd) cd "$2" || exit 9; shift 2 ;;
    *) exit 9 ;;
  esac
done
shift # the image
exec "$@"
"""
SRUN = r"""#!/bin/bash
# A stand-in for the plug-in pyxis: writes its options down and takes them away; all else is the real srun.
kept=()
for word in "$@"; do
  if [[ $word == --container-* ]]; then echo "$word" >>"$RECORD/pyxis"; else kept+=("$word"); fi
done
exec /usr/bin/srun "${kept[@]}"
"""
SERVER = r"""
import http.server, os, signal, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as the real one
kind = os.environ.get("SERVER", "")
print("server:", sys.argv, flush=True)
if kind == "dies at once":
    sys.exit("the server has no memory left")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
if kind == "never healthy":
    time.sleep(600)
server = http.server.HTTPServer(("0.0.0.0", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
if kind == "dies later":
    server.timeout = 1
    end = time.monotonic() + 6
    while time.monotonic() < end:
        server.handle_request()
    sys.exit("the server fell over")
server.serve_forever()
"""


@dataclass
class Site:
    """The cluster as one test uses it: a folder, stand-ins on the path, a run."""

    cluster: Any
    folder: Path
    recipe: Recipe
    set_variable: Callable[[str, str], None]

    @property
    def records(self) -> Path:
        return self.folder / "records"

    def profile(self, source: str = "mini.yaml", **changes: Any) -> Path:
        """A profile of `slurm/` with the stand-in as its command, and some keys changed."""
        content = yaml.safe_load((ROOT / "slurm" / source).read_text())
        content |= {"command": str(self.folder / "bin" / "cogalign")} | changes
        content["environment"] = (
            content.get("environment", {}) | {"RECORD": str(self.records)} | changes.get("environment", {})
        )
        if content.get("rollout_server"):
            content["rollout_server"] |= {"command": f"python {self.folder / 'bin' / 'server.py'}"}
        path = self.folder / f"profile-{source}"
        path.write_text(yaml.safe_dump(content))
        return path

    def submit(self, profile: Path, *stages: str) -> Submission:
        return submit(self.recipe, profile, list(stages) or None, dry_run=False)

    def log(self, job: str, number: str) -> str:
        return (self.folder / "run" / "slurm" / "logs" / f"{job}-{number}.log").read_text()

    def calls(self, job: str) -> list[str]:
        """How the stand-in was called by a command, one line a process."""
        return sorted(path.read_text().strip() for path in self.records.glob(f"{job}.*.args"))

    def variables(self, pattern: str) -> dict[str, str]:
        found = next(iter(sorted(self.records.glob(f"{pattern}.env"))))
        return dict(entry.split("=", 1) for entry in found.read_text().split("\0") if "=" in entry)

    def until(self, pattern: str, number: int = 1, seconds: float = 120) -> list[Path]:
        """Wait until so many files of this pattern are in the records."""
        end = time.monotonic() + seconds
        while len(found := list(self.records.glob(pattern))) < number:
            assert time.monotonic() < end, f"{pattern}: found {len(found)}, wanted {number}; {self.logs()}"
            time.sleep(0.2)
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in (self.folder / "run" / "slurm" / "logs").glob("*.log"))


def with_vllm(recipe: Recipe) -> None:
    recipe.grpo.sampler = "vllm"


def requeued_by(site: Site, number: str, command: str, ranks: int, *how: str) -> None:
    site.until(f"{command}.x.*.0.{number}.ready", ranks)
    site.cluster.run("scancel", *how, number)
    wait_restart(site, number)
    site.cluster.wait(number)
    assert site.cluster.job(number)["Restarts"] == "1"


def wait_restart(site: Site, number: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while site.cluster.job(number)["Restarts"] == "0":
        assert time.monotonic() < end, site.logs()
        time.sleep(0.3)


def data_is_finished(site: Site) -> None:
    from cogalign.pipeline_digest import stage_digest
    from cogalign.training.stage_file import StageFile

    StageFile("data", stage_digest(site.recipe, "data"), status="finished").write(site.recipe.run_dir / "data")


def processes(command: str) -> list[str]:
    found = subprocess.run(["pgrep", "-fx", command], capture_output=True, text=True, check=False)
    return found.stdout.split()
