"""Has imported everything once, and forks a process for each command of the tests: a run then starts in a moment.

Reads one JSON line a command on standard input ({"argv", "fault", "log", "environment"}); answers with the process's
number at its start and with its exit code (negative: the signal) at its end.
"""

import json
import os
import sys


def run(job: dict) -> None:
    os.setsid()
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.environ.update(job["environment"])
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


if __name__ == "__main__":
    import cogalign.pipeline
    import cogalign.sft.stage  # noqa: F401  what a run imports later is then there

    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
