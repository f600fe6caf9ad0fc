import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from cogalign.evaluation import metrics

LABELS = ["normal", "polyp", "ulcer"]


def frame(rows: list[tuple[list[str], list[str]]], groups: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [str(index) for index in range(len(rows))],
            "model": "aligned",
            "split": "test",
            "group": groups or [str(index) for index in range(len(rows))],
            "findings": [there for there, _ in rows],
            "diagnosis": [said for _, said in rows],
            "unknown": [[] for _ in rows],
            "correct": [set(there) == set(said) for there, said in rows],
            "location_correct": pd.array([True, None, False] * len(rows), dtype="boolean")[: len(rows)],
            "cognition": [0.5] * len(rows),
            "format": [True] * len(rows),
            "finished": [True] * len(rows),
        }
    )


def test_exact_match_needs_the_whole_set_and_nothing_else() -> None:
    assert metrics.exact_match(("polyp", "ulcer"), ("ulcer", "polyp"))
    assert not metrics.exact_match(("polyp", "ulcer"), ("polyp",))
    assert not metrics.exact_match(("polyp",), ("polyp", "ulcer"))
    assert not metrics.exact_match(("polyp",), ("polyp",), unknown=("gremlin",))
    assert not metrics.exact_match(("polyp",), ())


def test_accuracies_are_split_by_number_of_findings() -> None:
    table = frame([(["polyp"], ["polyp"]), (["ulcer"], []), (["polyp", "ulcer"], ["polyp", "ulcer"])])
    assert metrics.accuracy(table) == pytest.approx(2 / 3)
    assert metrics.accuracy_single_label(table) == 0.5
    assert metrics.accuracy_multi_label(table) == 1.0


def test_metrics_of_no_rows_are_none_not_zero() -> None:
    table = frame([(["polyp"], ["polyp"])])
    assert metrics.accuracy_multi_label(table) is None
    result = metrics.summarize(table[:0])
    assert result["n"] == 0 and result["accuracy"] is None and result["macro_f1"] is None


def test_cases_without_a_known_organ_do_not_count_for_location() -> None:
    table = frame([(["polyp"], ["polyp"])] * 3)
    assert metrics.location_accuracy(table) == 0.5


def test_macro_f1_is_one_for_perfect_and_zero_for_silent_answers() -> None:
    truth = [["polyp"], ["ulcer"], ["polyp", "ulcer"]]
    assert metrics.macro_f1(frame([(there, there) for there in truth])) == 1.0
    assert metrics.macro_f1(frame([(there, []) for there in truth])) == 0.0


def test_a_finding_that_no_case_has_lowers_accuracy_but_is_no_class_of_macro_f1() -> None:
    table = frame([(["polyp"], ["polyp", "varices"])])
    assert metrics.accuracy(table) == 0.0
    assert metrics.macro_f1(table) == 1.0


sets = st.lists(st.sampled_from(LABELS), unique=True, max_size=3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(sets.filter(bool), sets), min_size=2, max_size=12))
def test_macro_f1_agrees_with_scikit_learn_and_lies_in_its_interval(rows: list[tuple[list[str], list[str]]]) -> None:
    table = frame(rows)
    present = sorted({name for there, _ in rows for name in there})
    binarizer = MultiLabelBinarizer(classes=present).fit([present])
    said = [[name for name in names if name in present] for _, names in rows]
    wanted = f1_score(
        binarizer.transform([there for there, _ in rows]), binarizer.transform(said), average="macro", zero_division=0
    )
    assert metrics.macro_f1(table) == pytest.approx(wanted)
    interval = metrics.macro_f1_interval(table, resamples=50)
    assert interval is None or 0 <= interval[0] <= interval[1] <= 1


def test_summary_has_the_names_of_the_contract() -> None:
    table = frame([(["polyp"], ["polyp"]), (["ulcer"], ["polyp"]), (["normal"], ["normal"])])
    result = metrics.summarize(table, resamples=50)
    wanted = {"accuracy", "accuracy_ci", "accuracy_single_label", "accuracy_multi_label", "macro_f1",
              "location_accuracy", "cognition_recall", "format_rate", "n"}  # fmt: skip
    assert wanted <= set(result)
    low, high = result["accuracy_ci"]
    assert low <= result["accuracy"] <= high and (low, high) != (0.0, 1.0)
    assert result["n"] == 3 and result["n_single_label"] == 3 and result["n_multi_label"] == 0


def test_comparison_takes_the_cases_that_both_models_have() -> None:
    first = frame([(["polyp"], ["polyp"]), (["ulcer"], []), (["ulcer"], [])]).assign(model="sft")
    second = frame([(["polyp"], []), (["ulcer"], ["ulcer"])])
    result = metrics.compare_models(pd.concat([first, second]), "sft", "aligned")
    assert (result["n"], result["only_first"], result["only_second"], result["difference"]) == (2, 1, 1, 0.0)


def test_recall_and_precision_of_each_finding() -> None:
    table = metrics.per_finding(frame([(["polyp"], ["polyp"]), (["polyp"], ["ulcer"]), (["ulcer"], ["ulcer"])]))
    rows = table.set_index("finding")
    assert list(table["finding"]) == ["polyp", "ulcer"]
    assert rows.loc["polyp", "recall"] == 0.5 and rows.loc["polyp", "precision"] == 1.0
    assert rows.loc["ulcer", "recall"] == 1.0 and rows.loc["ulcer", "precision"] == 0.5
    assert (rows["recall_low"] <= rows["recall"]).all() and (rows["recall"] <= rows["recall_high"]).all()


def test_precision_of_a_finding_that_is_never_said_is_unknown() -> None:
    table = metrics.per_finding(frame([(["polyp"], [])]))
    assert np.isnan(table.loc[0, "precision"]) and table.loc[0, "recall"] == 0.0


def test_confusion_counts_what_was_said_of_cases_with_one_finding() -> None:
    table = frame([(["polyp"], ["polyp"]), (["polyp"], ["varices"]), (["ulcer"], []), (["ulcer"], ["polyp", "ulcer"]),
                   (["polyp", "ulcer"], ["polyp"])])  # fmt: skip
    table.at[2, "unknown"] = ["gremlin"]
    counts = metrics.confusion(table)
    assert list(counts.columns) == ["polyp", "ulcer", "varices", metrics.SEVERAL, metrics.UNKNOWN]
    assert counts.loc["polyp", "polyp"] == 1 and counts.loc["polyp", "varices"] == 1
    assert counts.loc["ulcer", metrics.SEVERAL] == 1 and counts.loc["ulcer", metrics.UNKNOWN] == 1
    assert counts.to_numpy().sum() == 4


def test_recall_counts_each_finding_among_its_own_cases() -> None:
    rows = [(["polyp"], ["polyp"]), (["polyp"], ["ulcer"]), (["polyp", "ulcer"], ["polyp"]), (["normal"], ["normal"])]
    recall = metrics.summarize(frame(rows), resamples=50)["recall"]
    assert {name: (one["value"], one["n"]) for name, one in recall.items()} == {
        "polyp": (2 / 3, 3), "normal": (1.0, 1), "ulcer": (0.0, 1)
    }  # fmt: skip
    assert next(iter(recall)) == "polyp" and all(
        one["ci"][0] <= one["value"] <= one["ci"][1] for one in recall.values()
    )


def test_recall_is_resampled_by_group() -> None:
    rows = [(["polyp"], ["polyp"] if index < 20 else []) for index in range(40)]
    alone = metrics.recall_by_finding(frame(rows))["polyp"]["ci"]
    grouped = metrics.recall_by_finding(frame(rows, [str(index // 10) for index in range(40)]))["polyp"]["ci"]
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])


def test_recall_leaves_out_question_cases_and_is_empty_without_cases() -> None:
    table = frame([(["polyp"], ["polyp"]), ([], ["polyp"])])
    assert metrics.summarize(table, resamples=50)["recall"]["polyp"]["n"] == 1
    assert metrics.summarize(table[1:], resamples=50)["recall"] == {}
