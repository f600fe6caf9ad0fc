import json
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from cogalign.evaluation import collect, stage
from cogalign.recipe import EvaluateSettings
from cogalign.training.context import StageContext

Make = Callable[..., StageContext]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report takes most of a short run's time and has tests of its own."""
    monkeypatch.setattr(stage, "write_report", lambda context: None)


def test_models_are_judged_on_every_split(make_context: Make, asked: list[str]) -> None:
    context = make_context()
    result = stage.run(context)
    models = result["models"]
    assert list(models) == ["base", "sft", "aligned"] and asked == ["base", "sft", "aligned"]
    assert models["base"]["test"]["accuracy"] == 0 and models["base"]["test"]["format_rate"] == 0
    # The box tells every case but those with two findings.
    assert models["sft"]["test"]["accuracy_single_label"] == 1 and models["sft"]["test"]["accuracy_multi_label"] == 0
    assert models["sft"]["test_shifted"]["accuracy"] < 0.3
    assert models["aligned"]["test_shifted"]["accuracy"] == 1
    assert models["aligned"]["test_shifted"]["accuracy_ci"][0] < 1
    assert models["aligned"]["test"]["n"] == 30 and models["aligned"]["test"]["n_groups"] == 15
    assert models["aligned"]["test"]["recall"]["bleeding"] == {
        "value": 1.0,
        "ci": [pytest.approx(0.56, abs=0.1), 1.0],
        "n": 6,
    }
    assert models["sft"]["test_shifted"]["recall"]["bleeding"]["value"] == 0
    shifted = result["comparisons"]["aligned_vs_sft"]["test_shifted"]
    assert shifted["only_second"] > 20 and shifted["p_value"] < 1e-3
    assert json.loads((context.folder / "metrics.json").read_text()) == result
    predictions = pd.read_parquet(context.folder / "predictions.parquet")
    assert len(predictions) == 3 * 60
    assert (context.run_dir / "report.html").stat().st_size > 10_000


def test_a_stopped_stage_asks_only_the_models_that_are_missing(
    make_context: Make, asked: list[str], no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    real = collect.load_model

    def fail(settings: object, checkpoint: object = None) -> object:
        if checkpoint is not None and "grpo" in str(checkpoint):
            raise KeyboardInterrupt
        return real(settings, checkpoint)  # type: ignore[arg-type]

    monkeypatch.setattr(collect, "load_model", fail)
    with pytest.raises(KeyboardInterrupt):
        stage.run(context)
    assert asked == ["base", "sft"] and not (context.folder / "metrics.json").exists()
    monkeypatch.setattr(collect, "load_model", real)
    stage.run(context)
    assert asked == ["base", "sft", "aligned"]


def test_new_weights_are_asked_again_and_old_predictions_go(
    make_context: Make, asked: list[str], no_report: None
) -> None:
    context = make_context()
    stage.run(context)
    (context.run_dir / "grpo" / "adapter" / "weights").write_text("other weights")
    stage.run(context)
    assert asked == ["base", "sft", "aligned", "aligned"]
    assert len(list((context.folder / "models").iterdir())) == 3


def test_another_number_of_resamples_asks_no_model_again(make_context: Make, asked: list[str], no_report: None) -> None:
    stage.run(make_context())
    stage.run(make_context(evaluate=EvaluateSettings(batch_size=8, bootstrap=50)))
    assert asked == ["base", "sft", "aligned"]


def test_a_model_that_the_recipe_does_not_make_is_left_out_with_a_note(
    make_context: Make, asked: list[str], no_report: None
) -> None:
    context = make_context(stages=["sft", "evaluate"])
    adapter = context.run_dir / "grpo" / "adapter"
    (adapter / "weights").unlink()
    adapter.rmdir()
    result = stage.run(context)
    assert list(result["models"]) == ["base", "sft"]
    assert any("aligned" in note and "grpo" in note for note in result["notes"])
    with pytest.raises(FileNotFoundError, match="run the stage grpo first"):
        stage.run(replace(context, recipe=replace(context.recipe, stages=["sft", "grpo", "evaluate"])))


def test_missing_splits_are_skipped_and_none_at_all_is_an_error(
    make_context: Make, asked: list[str], no_report: None
) -> None:
    settings = EvaluateSettings(splits=["test", "moon"], limit=6, batch_size=4, bootstrap=50)
    result = stage.run(make_context(evaluate=settings))
    assert list(result["models"]["sft"]) == ["test"] and result["models"]["sft"]["test"]["n"] == 6
    assert any("moon" in note for note in result["notes"])
    with pytest.raises(ValueError, match=r"evaluate\.splits: found \['moon'\].*test_shifted"):
        stage.run(make_context(evaluate=EvaluateSettings(splits=["moon"])))
