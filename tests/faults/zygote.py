"""Has imported everything once, and forks a process for each command of the tests: a run then starts in a moment.

Reads one JSON line a command on standard input ({"argv", "fault", "log", "environment"}); answers with its exit code
(negative: the signal) when it has ended and nobody holds its output any more: further ranks do, too.
"""

import json
import os
import shutil
import sys
from pathlib import Path


def run(job: dict) -> None:
    os.setsid()
    os.environ.update(job["environment"])
    # Lightning starts further ranks by running the script again
    sys.argv = [str(Path(__file__).with_name("command.py")), job["fault"] or "-", *job["argv"]]
    from tests.faults import inject

    if job["fault"]:
        inject.strike(job["fault"])
    from cogalign.cli import main

    code = 1
    try:
        code = main(job["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def started(job: dict) -> tuple[int, int]:
    """The number of the process and the end of a pipe from which its output comes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)
        run(job)
    os.close(write)
    return pid, read


if __name__ == "__main__":
    import cogalign.counterfactual.stage
    import cogalign.evaluation.stage
    import cogalign.grpo.stage
    import cogalign.pipeline
    import cogalign.sft.stage  # noqa: F401  what a run imports later is then there

    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid, output = started(job)
        with open(output, "rb", buffering=0) as source, open(job["log"], "wb") as log:
            shutil.copyfileobj(source, log)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
