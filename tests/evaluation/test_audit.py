from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.data.case import Case
from cogalign.evaluation.audit import audit_model, causal_score, judgements, kind_of, lesion_read, spot_drop

KINDS = ("removal", "control", "transplant", "background")


def row(kind: str, name: str, findings: list[str], diagnosis: list[str], source: str | None = None) -> dict:
    return {
        "kind": kind,
        "id": name,
        "group": source or name,
        "counterfactual_of": source,
        "findings": findings,
        "diagnosis": diagnosis,
        "unknown": [],
        "correct": set(findings) == set(diagnosis),
    }


def run_of(says: dict[str, list[str]], n: int = 10, seen: int | None = None) -> pd.DataFrame:
    """`n` polyps with all counterfactuals; `says` by kind; in the first `seen` the unedited image was right."""
    rows = []
    for index in range(n):
        name = f"c{index}"
        factual = ["polyp"] if seen is None or index < seen else ["ulcer"]
        rows.append(row("factual", name, ["polyp"], factual))
        rows.append(row("spots", name, ["polyp"], says.get("spots", ["polyp"])))
        for kind in KINDS:
            truth = ["normal"] if kind == "removal" else ["polyp"]
            rows.append(row(kind, f"{name}-{kind}", truth, says.get(kind, truth), source=name))
    return pd.DataFrame(rows)


def test_a_model_that_reads_the_lesion_scores_one() -> None:
    result = audit_model(run_of({}), resamples=50)
    assert result["removal_normal_rate"] == result["control_keep_rate"] == result["transplant_keep_rate"] == 1
    assert result["background_flip_rate"] == 0 and result["causal_score"] == 1 and result["spot_drop"] == 0
    assert result["removal_normal_rate_n"] == 10
    assert 0.5 < result["causal_score_ci"][0] < 1 == result["causal_score_ci"][1]


def test_a_model_that_reads_the_background_scores_little() -> None:
    says = {"removal": ["polyp"], "transplant": ["ulcer"], "background": ["bleeding"]}
    result = audit_model(run_of(says), resamples=50)
    assert result["removal_normal_rate"] == 0 and result["control_keep_rate"] == 1
    assert result["background_flip_rate"] == 1 and result["causal_score"] == 0.25


@pytest.mark.parametrize("always", ["polyp", "normal", "ulcer"])
def test_a_model_that_always_says_the_same_has_read_no_lesion(always: str) -> None:
    frame = run_of({})
    frame["diagnosis"] = [[always]] * len(frame)
    frame["correct"] = [found == [always] for found in frame["findings"]]
    result = audit_model(frame, resamples=50)
    assert result["lesion_read_rate"] == 0 and result["lesion_read_rate_n"] == 10
    assert result["causal_score"] == {"polyp": 0.75, "normal": 0.5, "ulcer": 0.25}[always]


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 4, *[st.booleans()] * 2), min_size=1, max_size=12))
def test_a_lesion_is_read_where_all_that_was_asked_about_the_case_is_right(cases: list[tuple[bool, ...]]) -> None:
    """Image, removal, control and transplant right or not; control and transplant there or not."""
    rows, wanted = [], []
    for index, (image, removed, control, moved, has_control, has_moved) in enumerate(cases):
        name = f"c{index}"
        rows.append(row("factual", name, ["polyp"], ["polyp" if image else "ulcer"]))
        rows.append(row("removal", f"{name}-r", ["normal"], ["normal" if removed else "polyp"], source=name))
        rows += [row("control", f"{name}-c", ["polyp"], ["polyp" if control else "normal"], source=name)] * has_control
        rows += [row("transplant", f"{name}-t", ["polyp"], ["polyp" if moved else "normal"], source=name)] * has_moved
        wanted.append(image and removed and (control or not has_control) and (moved or not has_moved))
    found = lesion_read(judgements(pd.DataFrame(rows)))
    assert dict(zip(found["id"], found["value"], strict=True)) == {f"c{i}": value for i, value in enumerate(wanted)}


def test_a_case_without_a_removal_does_not_count_as_read() -> None:
    frame = run_of({})
    frame = frame[frame["id"] != "c0-removal"]
    assert set(lesion_read(judgements(frame))["id"]) == {f"c{index}" for index in range(1, 10)}


def test_calling_everything_normal_is_no_way_to_a_good_score() -> None:
    frame = run_of({kind: ["normal"] for kind in (*KINDS, "spots")}, seen=0)
    frame.loc[frame["kind"] == "factual", "diagnosis"] = pd.Series([["normal"]] * len(frame))
    result = audit_model(frame, resamples=50)
    assert result["removal_normal_rate"] == 1 and result["background_flip_rate"] == 0
    assert result["causal_score"] == 0.5
    assert result["removal_normal_rate_given_correct"] is None and result["removal_normal_rate_given_correct_n"] == 0


def test_removing_one_of_two_findings_has_a_rate_of_its_own_beside_the_score() -> None:
    frame = run_of({})
    rows = [row("removal_of_one", f"c{k}-removal-polyp", ["ulcer"], said, source=f"c{k}")
            for k, said in enumerate([["ulcer"], ["ulcer"], ["normal"], ["polyp", "ulcer"]])]  # fmt: skip
    result = audit_model(pd.concat([frame, pd.DataFrame(rows)]), resamples=50)
    assert (result["remaining_rate"], result["remaining_rate_n"]) == (0.5, 4)
    assert result["causal_score"] == 1 and result["removal_normal_rate_n"] == 10
    assert audit_model(frame, resamples=50)["remaining_rate"] is None


def test_a_removal_is_asked_about_by_what_it_leaves() -> None:
    left = Case("x", "x.png", ("ulcer",), "test", intervention="removal")
    assert kind_of(left) == "removal_of_one" and kind_of(replace(left, findings=("normal",))) == "removal"
    assert kind_of(replace(left, intervention="control")) == "control"


def test_normal_beside_another_diagnosis_is_not_normal() -> None:
    assert audit_model(run_of({"removal": ["normal", "polyp"]}), resamples=50)["removal_normal_rate"] == 0


def test_a_flip_is_measured_against_the_models_own_answer() -> None:
    frame = run_of({"background": ["ulcer"]}, seen=4)  # of the other six it said ulcer before as well
    result = audit_model(frame, resamples=50)
    assert result["background_flip_rate"] == 0.4
    assert result["background_flip_rate_given_correct"] == 1 and result["background_flip_rate_given_correct_n"] == 4


def test_the_order_of_diagnoses_is_no_flip_and_an_unknown_word_is_one() -> None:
    frame = pd.DataFrame(
        [
            row("factual", "a", ["polyp", "ulcer"], ["polyp", "ulcer"]),
            row("background", "a-b", ["polyp", "ulcer"], ["ulcer", "polyp"], source="a"),
            row("background", "a-c", ["polyp", "ulcer"], ["polyp", "ulcer"], source="a") | {"unknown": ["gremlin"]},
        ]
    )
    assert judgements(frame)["value"].tolist() == [False, True]


def test_spot_drop_is_in_points() -> None:
    frame = run_of({})
    hit = frame.index[(frame["kind"] == "spots") & frame["id"].isin(["c0", "c1", "c2"])]
    frame.loc[hit, "correct"] = False
    result = spot_drop(frame, resamples=200)
    assert result["spot_drop"] == pytest.approx(30) and result["spot_drop_n"] == 10
    assert 0 <= result["spot_drop_ci"][0] < 30 < result["spot_drop_ci"][1] <= 100


def test_a_missing_kind_leaves_out_its_rate_and_the_score() -> None:
    frame = run_of({})
    result = audit_model(frame[~frame["kind"].isin(["transplant", "spots"])], resamples=50)
    assert result["transplant_keep_rate"] is None and result["transplant_keep_rate_n"] == 0
    assert result["causal_score"] is None and result["spot_drop"] is None
    assert result["removal_normal_rate"] == 1


def test_a_counterfactual_without_its_unedited_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="'c0-removal' is of 'c0', which was not predicted"):
        judgements(run_of({}).query("kind != 'factual'"))


def test_the_score_is_the_mean_of_the_rates_whatever_their_numbers() -> None:
    frame = run_of({"removal": ["polyp"]})
    fewer = frame[(frame["kind"] != "removal") | frame["id"].isin(["c0-removal"])]
    judged = judgements(fewer)
    score, interval = causal_score(judged, resamples=100)
    assert score == 0.75
    assert interval is not None and interval[0] <= 0.75 <= interval[1]
