"""docs/data.md, followed literally: from the official layouts of real photographs to a run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from cogalign.cli import main
from cogalign.data.caseset import read_case_set

ROOT = Path(__file__).resolve().parents[1]
# The page's recipe, cut short: whether it runs on the case set, not what it learns.
SHORT = {
    "segmenter.epochs": 1, "segmenter.side": 64, "segmenter.limit": 24, "counterfactual.limit": 12,
    "counterfactual.quality.enabled": "false", "counterfactual.gallery": 4,
    "sft.steps": 2, "sft.batch_size": 4, "sft.validation_limit": 2, "grpo.steps": 1, "grpo.prompts_per_step": 4,
    "grpo.num_generations": 2, "grpo.max_completion_length": 16, "evaluate.models": "[aligned]", "evaluate.limit": 24,
    "evaluate.max_completion_length": 16, "evaluate.bootstrap": 50, "audit.models": "[aligned]", "audit.limit": 4,
    "audit.max_completion_length": 16, "audit.bootstrap": 50, "tracking.wandb": "false",
}  # fmt: skip


def commands() -> list[list[str]]:
    """The words of the page's first block of commands, without the program's name."""
    block = re.search(r"^```bash\n(.*?)^```", (ROOT / "docs/data.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    lines = [shlex.split(line) for line in block.group(1).splitlines()]
    assert all(line[0] == "cogalign" for line in lines)
    return [line[1:] for line in lines]


@pytest.mark.slow
def test_the_page_leads_from_official_layouts_to_a_run(
    realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    *before, run = commands()
    assert [words[:2] for words in before][-3:] == [["data", "merge"], ["data", "check"], ["data", "split"]]
    for words in before:
        assert main([word.replace("../shared/realdata", str(realdata)) for word in words]) == 0, words
    assert "no problems" in capsys.readouterr().out
    case_set = read_case_set(tmp_path / "cases")
    assert len(case_set.cases) == 374 + 300 + 195 + 38
    assert {case.dataset for case in case_set.cases} == {"Kvasir-SEG", "HyperKvasir", "GastroVision", "Kvasir v2"}
    assert set(case_set.splits) == {"train", "validation", "test"}
    for name in ("leaks.md", "split.json", "sources.json", "overview/summary.md"):
        assert (tmp_path / "cases" / name).is_file(), name
    recipe = str(ROOT / run[1])
    assert main([run[0], recipe, *run[2:], *(f"--{key}={value}" for key, value in SHORT.items())]) == 0
    stages = json.loads((tmp_path / "runs/photographs/summary.json").read_text())["stages"]
    assert {stage["status"] for stage in stages.values()} == {"finished"}
