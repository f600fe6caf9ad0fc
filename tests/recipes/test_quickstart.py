"""Metric gate: a shortened recipes/quickstart.yaml through the command line, from phantoms to the exported model."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cogalign.cli import main
from cogalign.cognition.report import HEADINGS
from cogalign.recipe import USUAL_STAGES

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"

OVERRIDES: dict[str, Any] = {
    "data.phantom.train": 800,
    "data.phantom.validation": 16,
    "data.phantom.test": 60,
    "sft.steps": 100,
    "sft.validate_every": 50,
    "sft.validation_limit": 16,
    "counterfactual.limit": 120,
    "counterfactual.gallery": 4,
    "grpo.steps": 15,
    "grpo.learning_rate": 1e-4,
    "evaluate.bootstrap": 200,
    "audit.limit": 40,
    "audit.bootstrap": 200,
    "tracking.wandb": "false",
}
"""What makes the run short (136 s on one busy core); so few GRPO steps want a smaller learning rate."""

GATE: dict[str, tuple[str, float]] = {
    "evaluate.models.base.test.accuracy": ("<=", 0.10),
    "evaluate.models.sft.test.accuracy": (">=", 0.70),
    "evaluate.models.sft.test.format_rate": (">=", 0.90),
    "evaluate.models.sft.test_shifted.accuracy": ("<=", 0.45),
    "evaluate.models.aligned.test.accuracy": (">=", 0.60),
    "audit.models.aligned.causal_score": (">=", 0.40),
    "export.max_abs_difference": ("<=", 1e-3),
}
"""Thresholds of the shortened run, each `stage.metric`; chance is 1 in 7 for the accuracy. SFT is good on `test` and
bad on `test_shifted`: the shortcut is there. A few GRPO steps must not break what SFT has learned."""

SECONDS_OF_A_SECOND_RUN = 15.0
EVALUATE_NAMES = {
    "accuracy", "accuracy_ci", "accuracy_single_label", "accuracy_multi_label", "macro_f1", "location_accuracy",
    "cognition_recall", "format_rate", "n",
}  # fmt: skip
RATES = ("removal_normal_rate", "control_keep_rate", "transplant_keep_rate", "background_flip_rate", "spot_drop")
AUDIT_NAMES = {f"{name}{end}" for name in (*RATES, "causal_score") for end in ("", "_ci", "_n")}
TRL_NAMES = {
    "reward", "reward_std", "rewards/format/mean", "rewards/cognition/mean", "rewards/diagnosis/mean",
    "frac_reward_zero_std", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio", "num_tokens",
    "step_time",
}  # fmt: skip
OPEN_EXPORT = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, image = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
content = [{"type": "image"}, {"type": "text", "text": "Based on the image, what is the diagnosis?"}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=[prompt], images=[Image.open(image).convert("RGB")], return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=96, do_sample=False)
assert "cogalign" not in sys.modules
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])
"""


@pytest.mark.timeout(900)
def test_shortened_quickstart_passes_its_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # One test, so that the run is made once however the tests are spread over processes.
    run_dir = tmp_path / "run"
    arguments = ["run", str(RECIPE), *(f"--{key}={value}" for key, value in OVERRIDES.items()), f"--out={run_dir}"]
    assert main(arguments) == 0, capsys.readouterr().err
    stages = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["stages"]

    assert misses(stages) == []
    assert_summary_is_whole(stages)
    assert_training_is_logged(run_dir / "grpo" / "metrics.csv", int(OVERRIDES["grpo.steps"]))
    assert_report_needs_nothing_else(run_dir / "report.html")
    assert_export_answers(run_dir / "export" / "model", next((run_dir / "data" / "images").glob("*.png")))
    capsys.readouterr()
    assert_second_run_skips(arguments, capsys)


def misses(stages: dict[str, Any]) -> list[str]:
    """The thresholds of the gate that are not met, with what was found."""
    found = []
    for path, (relation, threshold) in GATE.items():
        stage, *names = path.split(".")
        value: Any = stages[stage]["metrics"]
        for name in names:
            value = value[name]
        if not (value >= threshold if relation == ">=" else value <= threshold):
            found.append(f"{path}: found {value:.4g}, wanted {relation} {threshold:g}")
    return found


def assert_summary_is_whole(stages: dict[str, Any]) -> None:
    """All stages are finished, and all metrics of the contract are there for each model and split."""
    assert {name: stages[name]["status"] for name in stages} == dict.fromkeys(("data", *USUAL_STAGES), "finished")
    judged = stages["evaluate"]["metrics"]["models"]
    assert set(judged) == {"base", "sft", "aligned"}
    for splits in judged.values():
        assert set(splits) == {"test", "test_shifted"}
        assert all(set(metrics) >= EVALUATE_NAMES for metrics in splits.values())
    audited = stages["audit"]["metrics"]["models"]
    assert set(audited) == {"base", "sft", "aligned"}
    assert all(set(metrics) >= AUDIT_NAMES for metrics in audited.values())


def assert_training_is_logged(path: Path, steps: int) -> None:
    """One row an optimizer step, under TRL's names."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
    assert set(rows[0]) >= TRL_NAMES


def assert_report_needs_nothing_else(path: Path) -> None:
    """The report is one file: it loads nothing from elsewhere."""
    text = path.read_text(encoding="utf-8")
    assert "<html" in text
    assert not any(
        f'{name}="{place}' in text for name in ("src", "href") for place in ("http", "//", "data/", "audit/")
    )


def assert_export_answers(folder: Path, image: Path) -> None:
    """A process that never imports cogalign opens the export with plain transformers and gets a report of an image."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", OPEN_EXPORT, str(folder), str(image)],
        cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(heading in done.stdout for heading in HEADINGS.values()), done.stdout


def assert_second_run_skips(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again does nothing, says so, and is quick."""
    start = time.monotonic()
    assert main(arguments) == 0
    seconds = time.monotonic() - start
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert [stage for stage in ("data", *USUAL_STAGES) if f"{stage}: finished before, skipped" not in said] == []
    assert seconds < SECONDS_OF_A_SECOND_RUN
