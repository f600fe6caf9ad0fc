import json
from collections.abc import Callable

import pandas as pd
import pytest

from cogalign.evaluation import audit_stage
from cogalign.recipe import AuditSettings
from cogalign.training.context import StageContext

Make = Callable[..., StageContext]


def test_the_audit_tells_the_model_that_reads_the_box_from_the_one_that_reads_the_lesion(
    make_context: Make, asked: list[str]
) -> None:
    context = make_context("audit")
    result = audit_stage.run(context)
    sft, aligned = result["models"]["sft"], result["models"]["aligned"]
    assert sft["removal_normal_rate"] == 0 and sft["background_flip_rate"] == 1 and sft["transplant_keep_rate"] == 0
    assert aligned["removal_normal_rate"] == aligned["control_keep_rate"] == aligned["transplant_keep_rate"] == 1
    assert aligned["background_flip_rate"] == 0 and aligned["causal_score"] == 1
    assert aligned["causal_score"] - sft["causal_score"] > 0.5
    assert aligned["causal_score_ci"][0] > sft["causal_score_ci"][1]
    assert result["models"]["base"]["causal_score"] == 0.25
    assert aligned["removal_normal_rate_n"] == 24 and aligned["spot_drop_n"] == 30
    assert json.loads((context.folder / "metrics.json").read_text()) == result
    predictions = pd.read_parquet(context.folder / "predictions.parquet")
    kinds = {"factual", "spots", "removal", "control", "transplant", "background"}
    assert set(predictions["kind"]) == kinds and set(predictions["split"]) == {"test"}
    assert (context.run_dir / "report.html").exists()


def test_spots_are_the_same_in_every_run(make_context: Make, asked: list[str]) -> None:
    context = make_context("audit")
    jobs = {job.kind: job for job in audit_stage.plan(context)}
    again = {job.kind: job for job in audit_stage.plan(context)}
    case = jobs["spots"].cases[0]
    assert jobs["spots"].images(case).tobytes() == again["spots"].images(case).tobytes()
    assert jobs["spots"].images(case).tobytes() != jobs["factual"].images(case).tobytes()


def test_a_limit_bounds_each_kind_and_keeps_the_unedited_images_it_needs(make_context: Make, asked: list[str]) -> None:
    jobs = {job.kind: job for job in audit_stage.plan(make_context("audit", audit=AuditSettings(limit=5)))}
    assert {kind: len(job.cases) for kind, job in jobs.items() if kind != "factual"} == dict.fromkeys(
        ("spots", "removal", "control", "transplant", "background"), 5
    )
    sources = {case.id for case in jobs["factual"].cases}
    assert {case.counterfactual_of for case in jobs["removal"].cases} <= sources
    assert {case.id for case in jobs["spots"].cases} <= sources and len(sources) <= 10


def test_a_split_without_counterfactuals_is_an_error_that_says_where_there_are_some(make_context: Make) -> None:
    context = make_context("audit", audit=AuditSettings(split="validation"))
    with pytest.raises(ValueError, match=r"audit\.split: found 'validation'.*of test only.*counterfactual\.splits"):
        audit_stage.run(context)


def test_counterfactuals_of_another_case_set_are_refused(make_context: Make) -> None:
    context = make_context("audit")
    folder = context.counterfactual_dir
    rows = (folder / "metadata.jsonl").read_text().replace('"counterfactual_of": "a000"', '"counterfactual_of": "zzz"')
    folder.unlink()
    folder.mkdir()
    (folder / "metadata.jsonl").write_text(rows)
    with pytest.raises(ValueError, match="counterfactual_of 'zzz' is not in"):
        audit_stage.run(context)
