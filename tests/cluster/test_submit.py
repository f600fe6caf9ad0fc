"""Submission: what is written, in which order sbatch is called, and what happens when it is refused.

What needs a scheduler is in tests/slurm (test_submit_scripts, test_job_signals, test_job_server).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cogalign.cluster.submit import submit
from cogalign.recipe import Recipe
from cogalign.recipe_file import read_recipe

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "slurm" / "mini.yaml"
SBATCH = r"""#!/bin/bash
echo "$*" >>"$RECORD/sbatch"
env | grep -c ^SLURM_ >>"$RECORD/variables"
number=$(($(wc -l <"$RECORD/sbatch") + 100))
((number < ${REFUSE_FROM:-999})) || { echo "sbatch: error: Batch job submission failed: no more" >&2; exit 1; }
echo "$number;cluster"
"""
SCANCEL = '#!/bin/bash\necho "$*" >>"$RECORD/scancel"\n'
SCONTROL = r"""#!/bin/bash
[[ ${!#} != 101 || -z ${STATE:-} ]] || { echo "JobId=101 JobName=x JobState=$STATE Reason=None"; exit 0; }
echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return replace(read_recipe(ROOT / "recipes" / "quickstart.yaml"), out=str(tmp_path / "run"))


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs by SLURM's names that write down how they are called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("RECORD", str(tmp_path))
    return tmp_path


def test_scripts_are_handed_over_in_order_each_with_the_ids_it_waits_for(recipe: Recipe, record: Path) -> None:
    sent = submit(recipe, MINI, ["sft", "counterfactual", "grpo"], dry_run=False)
    folder = recipe.run_dir / "slurm"
    wait = "--parsable --dependency=afterok:"
    assert (record / "sbatch").read_text().splitlines() == [
        f"--parsable {folder}/data.sh",
        f"{wait}101 {folder}/sft.sh",
        f"{wait}101 {folder}/counterfactual-masks.sh",
        f"{wait}103 {folder}/counterfactual.sh",
        f"{wait}104 {folder}/counterfactual-finish.sh",
        f"{wait}101:102:105 {folder}/grpo.sh",
    ]
    assert sent.jobs == {"data": "101", "sft": "102", "counterfactual-masks": "103", "counterfactual": "104",
                         "counterfactual-finish": "105", "grpo": "106"}  # fmt: skip
    for name, text in sent.scripts.items():
        assert (folder / f"{name}.sh").read_text() == text
    assert (folder / "logs").is_dir()
    assert read_recipe(folder / "recipe.yaml") == recipe


def test_the_list_of_jobs_holds_what_status_and_cancel_need(recipe: Recipe, record: Path) -> None:
    from cogalign.cluster.jobs_file import read_jobs

    submit(recipe, MINI, ["counterfactual"], dry_run=False)
    assert read_jobs(recipe.run_dir) == {"data": "101", "counterfactual-masks": "102", "counterfactual": "103",
                                         "counterfactual-finish": "104"}  # fmt: skip
    details = json.loads((recipe.run_dir / "slurm" / "jobs.json").read_text())["details"]["counterfactual"]
    assert details.pop("submitted").endswith("+00:00")
    assert details == {
        "after": ["counterfactual-masks"],
        "dependencies": ["102"],
        "script": str(recipe.run_dir / "slurm" / "counterfactual.sh"),
        "log": str(recipe.run_dir / "slurm" / "logs" / "counterfactual-%A_%a.log"),
        "max_restarts": 20,
        "array": 4,
    }


def test_a_job_around_the_submission_leaves_no_trace_in_its_jobs(
    recipe: Recipe, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    submit(recipe, MINI, ["sft"], dry_run=False)
    assert set((record / "variables").read_text().split()) == {"1"}  # SLURM_CONF: which cluster it is


def test_a_refused_job_cancels_those_before_it_and_quotes_sbatch(
    recipe: Recipe, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE_FROM", "103")
    with pytest.raises(
        ValueError, match=r"sbatch refused the job counterfactual-masks \(.*\): sbatch: error: .*: no more; "
    ):
        submit(recipe, MINI, None, dry_run=False)
    assert (record / "scancel").read_text() == "101 102\n"
    assert list(json.loads((recipe.run_dir / "slurm" / "jobs.json").read_text())["jobs"]) == ["data", "sft"]


def test_a_second_submission_waits_until_the_first_is_over(
    recipe: Recipe, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(recipe, MINI, ["sft"], dry_run=False)
    for state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
        monkeypatch.setenv("STATE", state)
        with pytest.raises(ValueError, match=rf"still there \(data 101 {state.lower()}\); .*cogalign cancel"):
            submit(recipe, MINI, ["sft"], dry_run=False)
    monkeypatch.setenv("STATE", "FAILED")
    folder = recipe.run_dir / "slurm"
    (folder / "sft.finished").write_text("102\n")
    (folder / "counterfactual_3.finished").write_text("9_3\n")
    assert submit(recipe, MINI, ["sft"], dry_run=False).jobs == {"data": "103", "sft": "104"}
    assert json.loads((folder / "jobs-101.json").read_text())["jobs"] == {"data": "101", "sft": "102"}
    assert not (folder / "sft.finished").exists()  # of the submission before
    assert (folder / "counterfactual_3.finished").exists()  # not submitted now


def test_a_dry_run_writes_nothing_and_needs_no_scheduler(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = submit(recipe, MINI, None, dry_run=True)
    assert made.scripts["sft"].startswith("#!/bin/bash\n")
    assert made.after["grpo"] == ("data", "sft", "counterfactual-finish")
    assert made.jobs == {}
    assert not recipe.run_dir.exists()


def test_without_a_scheduler_nothing_is_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="sbatch: not found; submit from a login node"):
        submit(recipe, MINI, None, dry_run=False)
    assert not recipe.run_dir.exists()


def test_a_dry_run_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cogalign.recipe_file import read_recipe\n"
        "from cogalign.cluster.submit import submit\n"
        "assert 'jinja2' not in sys.modules\n"
        "submit(read_recipe(Path('recipes/quickstart.yaml')), Path('slurm/mini.yaml'), None, True)\n"
        "print([name for name in ('torch', 'numpy', 'transformers', 'lightning', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, capture_output=True, text=True,
                          timeout=180, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"
