"""Counterfactuals made by an array of jobs: masks, shards beside one another, and a stage that finishes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cogalign.counterfactual import make as make_file
from cogalign.counterfactual import work as work_file
from cogalign.counterfactual.shards import read_report
from cogalign.data.phantom import write_phantom
from cogalign.pipeline import run_phase, run_recipe
from cogalign.pipeline_locks import RunLocks
from cogalign.recipe import DataSettings, PhantomSettings, QualitySettings, Recipe
from cogalign.training.stage_file import StageFile, read_stage_file
from tests.counterfactual.test_stage import fingerprint

LIMIT = 300
"""Seconds that a process may take on a busy machine."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(train=10, validation=2, test=4, size=64, seed=5)
    return write_phantom(settings, tmp_path_factory.mktemp("data") / "phantom")


def recipe_of(data: Path, out: Path, **fields: Any) -> Recipe:
    recipe = Recipe(out=str(out), data=DataSettings(case_set=str(data)))
    settings = recipe.counterfactual
    settings.fill, settings.gallery, settings.quality = "surround_blur", 3, QualitySettings(enabled=False)
    for name, value in fields.items():
        setattr(settings, name, value)
    recipe.trainer.accelerator, recipe.trainer.devices = "cpu", 1
    return recipe


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what one process makes."""
    out = tmp_path_factory.mktemp("whole")
    run_recipe(recipe_of(data, out), ["counterfactual"])
    return fingerprint_of(out)


def fingerprint_of(out: Path) -> dict[str, str]:
    """Digests of the results; `stage.json` holds times."""
    return {name: digest for name, digest in fingerprint(out / "counterfactual").items() if name != "stage.json"}


def record(recipe: Recipe) -> StageFile:
    found = read_stage_file(recipe.run_dir / "counterfactual")
    assert found is not None
    return found


def test_shards_and_a_finish_give_the_bytes_of_one_process(
    data: Path, tmp_path: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(data, tmp_path)
    run_phase(recipe, "masks")
    begun = record(recipe)
    assert (begun.status, begun.message, begun.resumed) == ("partial", "masks are found", 0)
    assert begun.metrics["source_cases"] > 4
    assert not list((tmp_path / "counterfactual").glob("images/*"))
    stage_file = (tmp_path / "counterfactual" / "stage.json").read_bytes()
    reports = [run_phase(recipe, "make", (shard, 3)) for shard in (2, 0, 1)]
    assert (tmp_path / "counterfactual" / "stage.json").read_bytes() == stage_file
    assert sum(report["made"] + report["left_out"] for report in reports) == begun.metrics["planned"]
    capsys.readouterr()
    summary = run_recipe(recipe, ["counterfactual"])
    assert "counterfactual: masks are found, going on" in capsys.readouterr().err
    assert summary["stages"]["counterfactual"]["metrics"]["n"] == sum(report["made"] for report in reports)
    assert (record(recipe).status, record(recipe).resumed, record(recipe).message) == ("finished", 0, None)
    assert fingerprint_of(tmp_path) == whole


def test_a_finish_makes_what_shards_have_left_open(data: Path, tmp_path: Path, whole: dict[str, str]) -> None:
    recipe = recipe_of(data, tmp_path)
    run_phase(recipe, "masks")
    run_phase(recipe, "make", (1, 2))
    run_recipe(recipe, ["counterfactual"])
    assert fingerprint_of(tmp_path) == whole


def test_a_killed_shard_goes_on_and_the_number_of_shards_may_change(
    data: Path, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(data, tmp_path)
    run_phase(recipe, "masks")
    script = tmp_path / "kill.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import cogalign.counterfactual.make as make\n"
        "import cogalign.counterfactual.module as module\n"
        "from cogalign.pipeline import run_phase\n"
        "from tests.test_pipeline_phases import recipe_of\n"
        "module.BATCH = 2\n"
        "real, count = make.write_png, [0]\n"
        "def write(path, image):\n"
        "    count[0] += 1\n"
        "    if count[0] == 25:\n"
        "        (path.parent / f'.{path.name}.left.tmp').write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(path, image)\n"
        "make.write_png = write\n"
        "run_phase(recipe_of(Path(sys.argv[1]), Path(sys.argv[2])), 'make', (0, 2))\n"
    )
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, str(script), str(data), str(tmp_path)], env=variables, timeout=LIMIT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    report = read_report(tmp_path / "counterfactual", 0, 2)
    assert report is not None and (report.status, report.restarts) == ("running", 0)
    (part,) = (tmp_path / "counterfactual").glob("parts-*/rank-0-of-2-*.jsonl")
    lines = part.read_bytes().split(b"\n")
    assert len(lines) > 3
    part.write_bytes(b"\n".join([lines[0][:40], *lines[1:]]))  # and the disk has lost a part of a line

    written: list[Path] = []
    real = make_file.write_png
    monkeypatch.setattr(make_file, "write_png", lambda path, image: (written.append(path), real(path, image))[1])
    again = run_phase(recipe, "make", (0, 2))
    assert (again["status"], again["restarts"]) == ("finished", 1)
    made_again = {path.name for path in written if path.parent.name == "images"}
    assert json.loads(lines[0])["row"]["file_name"].split("/")[1] in made_again
    assert json.loads(lines[1])["row"]["file_name"].split("/")[1] not in made_again
    for shard in range(3):
        run_phase(recipe, "make", (shard, 3))
    count = len(written)
    run_recipe(recipe, ["counterfactual"])
    assert len(written) == count  # the finish had nothing to make
    assert fingerprint_of(tmp_path) == whole


def test_an_error_in_a_shard_stands_in_its_report_and_leaves_the_stage_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(data, tmp_path)
    run_phase(recipe, "masks")

    def full(path: Path, image: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_file, "write_png", full)
    with pytest.raises(OSError, match="No space left"):
        run_phase(recipe, "make", (0, 2))
    report = read_report(tmp_path / "counterfactual", 0, 2)
    assert report is not None and report.status == "failed" and "No space left" in str(report.message)
    assert record(recipe).status == "partial"


def test_making_needs_masks_of_the_same_settings(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"counterfactual needs the results of data.*cogalign prepare RECIPE"):
        run_phase(recipe, "make", (0, 2))
    run_recipe(recipe, [])
    with pytest.raises(FileNotFoundError, match=r"nothing tells where.*counterfactual RECIPE --phase masks"):
        run_phase(recipe, "make", (0, 2))
    run_phase(recipe, "masks")
    with pytest.raises(ValueError, match=r"other settings or inputs.*--phase masks"):
        run_phase(recipe_of(data, tmp_path, sigma=0.7), "make", (0, 2))
    assert not list((tmp_path / "counterfactual").glob("shards/*"))


def test_masks_that_were_not_all_found_are_not_looked_for_by_a_shard(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path)
    recipe.counterfactual.masks.evidence = ["box"]
    run_phase(recipe, "masks")
    lists = list((tmp_path / "counterfactual" / "located").glob("*.jsonl"))
    assert lists
    lists[0].write_bytes(lists[0].read_bytes().split(b"\n")[0] + b"\n")
    with pytest.raises(FileNotFoundError, match=r"were not looked at for lesions; run .*--phase masks"):
        run_phase(recipe, "make", (0, 2))
    run_phase(recipe, "masks")
    assert record(recipe).resumed == 0
    assert run_phase(recipe, "make", (0, 2))["made"] > 0


def test_a_finish_is_refused_while_shards_run_and_shards_stand_beside_one_another(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path)
    run_phase(recipe, "masks")
    with RunLocks(tmp_path, alone=False) as shard:  # what a running shard holds
        shard.write("counterfactual-make-0-of-2")
        shard.read("counterfactual")
        assert run_phase(recipe, "make", (1, 2))["status"] == "finished"
        for again in (lambda: run_recipe(recipe, ["counterfactual"]), lambda: run_phase(recipe, "masks")):
            with pytest.raises(ValueError, match=r"another cogalign run is writing here \(counterfactual\)"):
                again()
        with pytest.raises(ValueError, match=r"writing here \(counterfactual-make-0-of-2\)"):
            run_phase(recipe, "make", (0, 2))
    run_recipe(recipe, ["counterfactual"])


def test_phases_of_a_finished_stage_do_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(data, tmp_path)
    run_recipe(recipe, ["counterfactual"])
    monkeypatch.setattr(work_file, "make_plan", lambda *_: pytest.fail("was planned again"))
    capsys.readouterr()
    run_phase(recipe, "masks")
    run_phase(recipe, "make", (0, 2))
    said = capsys.readouterr().err
    assert "counterfactual: finished before, skipped" in said and "shard 0 of 2 skipped" in said
    assert record(recipe).status == "finished"


@pytest.mark.parametrize(
    ("phase", "shard", "message"),
    [
        ("make", None, "--shard: found none"),
        ("make", (2, 2), "--shard: found 2/2, wanted I/N"),
        ("masks", (0, 2), "--shard: found with --phase masks"),
        ("finish", None, "--phase: found 'finish', wanted masks or make"),
    ],
)
def test_a_wrong_phase_or_shard_is_refused(
    data: Path, tmp_path: Path, phase: str, shard: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_phase(recipe_of(data, tmp_path), phase, shard)
