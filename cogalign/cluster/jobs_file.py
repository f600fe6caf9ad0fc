"""`slurm/jobs.json`: the jobs of a run, as they were submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

JOBS_FILE = Path("slurm") / "jobs.json"


def read_jobs(run_dir: Path) -> dict[str, str]:
    """Job → its number in SLURM, in the order of submission; empty if nothing was submitted.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / JOBS_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}, wanted the jobs that `cogalign submit` wrote") from None
    jobs = content.get("jobs", content) if isinstance(content, dict) else None
    if not isinstance(jobs, dict) or not all(str(number).isdecimal() for number in jobs.values()):
        raise ValueError(f"{path}: found {str(content)[:80]!r}, wanted job names with their numbers")
    return {name: str(number) for name, number in jobs.items()}
