"""`cogalign benchmark`: what it measures adds up, what it says is so, and the run folder stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cogalign.cli import main
from cogalign.data.prepare import prepare
from cogalign.grpo import benchmark
from cogalign.grpo.benchmark import run_benchmark
from cogalign.grpo.benchmark_inputs import limited, was_made_from
from cogalign.grpo.benchmark_summary import (
    PHASES,
    Cycle,
    floor_of,
    generation_rows,
    lines,
    number,
    per_step,
    seconds_of,
    spread,
    table,
)
from cogalign.grpo.flops import GrpoStep, TextShape, VisionShape, grpo_floor
from cogalign.recipe import (
    DataSettings,
    GrpoSettings,
    ImportSettings,
    LoraSettings,
    MixSettings,
    ModelSettings,
    PhantomSettings,
    Recipe,
    SftSettings,
    TrackingSettings,
    TrainerSettings,
)

KEYS = {
    "benchmark", "recipe", "date", "versions", "settings", "model", "data", "steps", "peak_memory", "machine",
    "per_step", "mfu", "mfu_of", "floor", "notes",
}  # fmt: skip
NUMBERS = {
    "step_s", *(f"{phase}_s" for phase in PHASES), "other_s", "images_encoded", "distinct_images", "completions",
    "completion_tokens", "completion_tokens_per_s", "sampled_tokens_per_s", "mean_completion_length",
    "truncated_share", "floor_s", "step_over_floor", "mfu",
}  # fmt: skip
PHANTOMS = PhantomSettings(train=20, validation=4, test=4, size=64, seed=5)
"""As `phantom_set` of the other tests."""


def tiny_recipe(out: Path, base: Path, lora: LoraSettings | None, sft: dict[str, Any], **fields: Any) -> Recipe:
    chosen = {"prompts_per_step": 3, "num_generations": 2, "micro_batch": 2, "max_completion_length": 5} | fields
    return Recipe(
        name="tiny",
        out=str(out),
        model=ModelSettings(name=str(base), dtype="float32"),
        data=DataSettings(phantom=PHANTOMS),
        sft=SftSettings(lora=lora, **sft),
        grpo=GrpoSettings(**chosen),
        trainer=TrainerSettings(accelerator="cpu", precision="32-true"),
        tracking=TrackingSettings(wandb=True, sample_every=1),
    )


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def median(result: dict[str, Any], name: str) -> float:
    return float(result["per_step"][name]["median"])


def assert_adds_up(result: dict[str, Any]) -> None:
    """What holds for one measured step or generation, where median, minimum and maximum are one."""
    parts = sum(median(result, f"{phase}_s") for phase in PHASES)
    assert 0 < parts <= median(result, "step_s") == pytest.approx(parts + median(result, "other_s"))
    tokens = median(result, "completion_tokens")
    assert median(result, "completion_tokens_per_s") == pytest.approx(tokens / median(result, "step_s"))
    assert median(result, "mean_completion_length") == pytest.approx(tokens / median(result, "completions"))


def test_without_any_finished_stage_the_command_measures_the_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / "r.yaml", tmp_path / "found" / "b.json"
    path.write_text(
        "name: small\nmodel: {name: tiny, dtype: float32}\nsft: {lora: {r: 4}}\n"
        "data: {phantom: {train: 5000, size: 64}}\n"
        "grpo: {num_generations: 2, micro_batch: 2, max_completion_length: 5, mix: {removal: 1}}\n"
        "trainer: {accelerator: cpu, precision: 32-true}\n"
    )
    out = tmp_path / "run"
    arguments = ["--grpo.prompts_per_step", "3", "--steps", "2", "--json", str(target), "--out", str(out)]
    assert main(["benchmark", str(path), *arguments]) == 0
    captured = capsys.readouterr()
    result = json.loads(target.read_text())
    assert set(result) == KEYS and set(result["per_step"]) == NUMBERS
    assert all(set(values) == {"median", "min", "max"} for values in result["per_step"].values())
    assert median(result, "images_encoded") == median(result, "distinct_images") == 3
    assert median(result, "completions") == 6 and 1 <= median(result, "mean_completion_length") <= 5
    assert_adds_up(result)
    assert result["steps"] == {"measured": 1, "warmup": 1, "per_generation": 1}
    assert result["model"]["weights"] == "base model tiny, not fine-tuned, with a fresh adapter of rank 4"
    assert result["data"]["mix"] == "factual" and "no counterfactuals of removal" in result["notes"][0]
    rate = result["machine"]["matmul_flops_per_s"]
    assert result["floor"]["seconds"] == pytest.approx(result["floor"]["flops"]["median"] / rate)
    assert median(result, "step_over_floor") == pytest.approx(median(result, "step_s") / result["floor"]["seconds"])
    assert result["mfu"] == pytest.approx(1 / median(result, "step_over_floor"))
    assert result["machine"]["peak_flops_per_s"] is None and "measured rate" in result["mfu_of"]
    assert "phantoms 6/6" in captured.err  # 5000 are not needed
    assert "images encoded a step" in captured.out and f"{target} is written" in captured.out
    assert not out.exists()


def test_what_a_run_has_made_is_used_and_left_as_it_was(
    base_folder: Path, sft_folder: Path, counterfactuals: Path, tmp_path: Path
) -> None:
    mix = MixSettings(factual=0.5, removal=0.25, control=0.25)
    recipe = tiny_recipe(tmp_path, base_folder, None, {}, mix=mix, num_iterations=2, prompts_per_step=4)
    prepare(recipe.data, tmp_path / "data")
    shutil.copytree(sft_folder, tmp_path / "sft")
    shutil.copytree(counterfactuals, tmp_path / "counterfactual")
    before = files_of(tmp_path)
    result = run_benchmark(recipe, 3)
    assert files_of(tmp_path) == before
    assert result["model"]["weights"] == f"SFT model in {tmp_path / 'sft' / 'adapter'}"
    assert result["data"] == {"cases": str(tmp_path / "data"), "mix": "as the recipe says"}
    assert result["notes"] == []
    # two updates on each generation: one generation to warm up, one that is measured, halved
    assert result["steps"] == {"measured": 2, "warmup": 2, "per_generation": 2}
    assert median(result, "completions") == 4
    assert median(result, "images_encoded") == median(result, "distinct_images") == 2
    assert_adds_up(result)


def test_a_trained_encoder_shares_nothing_and_the_count_says_so(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "COUNTED", ())  # as for a family whose operations are not counted
    recipe = tiny_recipe(tmp_path / "none", base_folder, None, {"freeze_vision": False}, max_completion_length=2)
    result = run_benchmark(recipe, 2)
    assert median(result, "images_encoded") > median(result, "distinct_images") == 3
    assert result["model"]["weights"].endswith("not fine-tuned, full weights")
    assert result["floor"] is None and result["mfu"] is None
    assert result["per_step"]["step_over_floor"] == {"median": None, "min": None, "max": None}
    assert set(result["per_step"]) == NUMBERS
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(result))
    assert "model FLOP utilisation" in shown.get()
    assert not any(line.startswith("floor") for line in lines(result))


def test_one_step_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--steps: found 1, wanted at least 2"):
        run_benchmark(Recipe(out=str(tmp_path)), 1)


def test_a_case_set_of_other_settings_is_not_taken(phantom_set: Path, tmp_path: Path) -> None:
    data = DataSettings(phantom=PHANTOMS)
    assert not was_made_from(data, phantom_set)  # it does not say what it was made from
    folder = prepare(DataSettings(phantom=PhantomSettings(train=2, validation=0, test=0, size=32)), tmp_path / "data")
    assert was_made_from(DataSettings(phantom=PhantomSettings(train=2, validation=0, test=0, size=32)), folder)
    assert not was_made_from(data, folder)
    (folder / "metadata.jsonl").unlink()
    assert not was_made_from(DataSettings(phantom=PhantomSettings(train=2, validation=0, test=0, size=32)), folder)


def test_no_more_cases_are_made_than_the_steps_need() -> None:
    small = limited(DataSettings(phantom=PhantomSettings(train=10)), 4, 5).phantom
    large = limited(DataSettings(phantom=PhantomSettings(train=1000)), 4, 5).phantom
    assert small is not None and large is not None
    assert (small.train, large.train, large.test) == (10, 20, 0)
    imports = [ImportSettings("kvasir-v2", "a"), ImportSettings("kvasir-v2", "b", limit=3)]
    found = limited(DataSettings(imports=imports), 4, 5).imports
    assert found is not None and [item.limit for item in found] == [8, 3]


# -- summaries ------------------------------------------------------------------------------------


def test_seconds_come_from_the_modules_own_names() -> None:
    found = seconds_of({"step_time": 3.0, "time/sampling": 1.0, "time/sync": 0.5, "time/backward": 1.0, "loss": 9.0})
    assert found["step_s"] == 3 and found["sampling_s"] == 1 and found["sync_s"] == 0.5 and found["scoring_s"] == 0
    assert found["other_s"] == pytest.approx(0.5)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_generations_are_whole_and_hold_the_steps(slices: int, iterations: int, steps: int) -> None:
    cycle = Cycle(slices, iterations)
    found = cycle.generations(steps)
    assert found >= 2 and found * cycle.steps >= steps
    assert found == 2 or (found - 1) * cycle.steps < steps


def test_rows_of_a_generation_are_added_and_shared_by_its_steps() -> None:
    counts = {"completions": 4.0, "completion_tokens": 20.0, "truncated": 1.0, "distinct_images": 2.0}
    nothing = dict.fromkeys(counts, 0.0)
    rows = [
        {"step_s": 3.0, "sampling_s": 2.0, **counts},
        {"step_s": 1.0, "sampling_s": 0.0, **nothing},
        {"step_s": 9.0, "sampling_s": 0.0, **counts},
    ]
    (whole,) = generation_rows(rows, 2)
    found = per_step(whole, 2)
    assert (found["step_s"], found["sampling_s"], found["distinct_images"], found["completions"]) == (2, 1, 1, 2)
    assert (found["completion_tokens_per_s"], found["sampled_tokens_per_s"]) == (5, 10)
    assert (found["mean_completion_length"], found["truncated_share"]) == (5, 0.25)
    assert spread([{"a": 1.0}, {"a": 5.0}, {"a": 2.0}]) == {"a": {"median": 2.0, "min": 1.0, "max": 5.0}}


def test_the_floor_of_a_step_pays_a_generation_once_and_an_update_every_time() -> None:
    text = TextShape(2, 32, 4, 2, 8, 64, 100, lora_rank=4)
    vision = VisionShape(2, 16, 32, 48, 2, 1, 32)
    row = {
        "mix_prompts": 3.0, "mix_images": 2.0, "mix_completions": 12.0, "mix_tokens": 96.0,
        "prompt_rows": 3.0, "prompt_tokens": 60.0, "images": 3.0, "patches": 48.0,
    }  # fmt: skip
    once = grpo_floor(text, vision, GrpoStep(3, 2, 16, 20.0, 4, 8.0, True))
    assert floor_of(text, vision, row, Cycle(1, 1), True) == pytest.approx(once)
    again = floor_of(text, vision, row, Cycle(1, 2), True)
    updates = once["policy_forward"] + once["policy_backward"]
    assert again["total"] == pytest.approx((once["total"] + updates) / 2)
    assert floor_of(text, vision, row, Cycle(2, 1), True)["total"] == pytest.approx(once["total"] / 2)
    assert floor_of(text, vision, row, Cycle(1, 1), False)["total"] < once["total"]


def test_numbers_are_short() -> None:
    assert [number(v) for v in (None, 0.012345, 3.0, 12.34, 123456.7)] == ["-", "0.0123", "3", "12.3", "123,457"]
