from pathlib import Path

import pandas as pd
import pytest

from cogalign.data.caseset import read_case_set
from cogalign.evaluation.gallery import KINDS, gallery, names

SAID = {"diagnosis": ["polyp"], "unknown": [], "completion": "…"}


@pytest.fixture
def predictions(painted: Path) -> pd.DataFrame:
    rows = []
    factual = [case for case in read_case_set(painted / "data").cases if case.split == "test"]
    for case in factual + read_case_set(painted / "counterfactual").cases:
        for model in ("sft", "aligned"):
            rows.append(
                {"model": model, "id": case.id, "kind": case.intervention or "factual", "findings": case.findings,
                 "counterfactual_of": case.counterfactual_of, "correct": case.findings == ("polyp",), **SAID}
            )  # fmt: skip
    return pd.DataFrame(rows)


def sets(painted: Path) -> tuple:
    return read_case_set(painted / "data"), read_case_set(painted / "counterfactual")


def test_pairs_show_every_kind_and_every_model(painted: Path, predictions: pd.DataFrame) -> None:
    pairs = gallery(predictions, *sets(painted), count=4)
    assert len(pairs) == 4
    for pair in pairs:
        assert [picture.kind for picture in pair.pictures] == list(KINDS)
        assert all(picture.address.startswith("data:image/jpeg;base64,") for picture in pair.pictures)
        assert all([answer.model for answer in picture.answers] == ["sft", "aligned"] for picture in pair.pictures)
        assert pair.pictures[1].truth == "Normal"


def test_the_choice_of_pairs_does_not_depend_on_what_was_said(painted: Path, predictions: pd.DataFrame) -> None:
    before = [pair.id for pair in gallery(predictions, *sets(painted), count=5)]
    flipped = predictions.assign(correct=~predictions["correct"])
    assert [pair.id for pair in gallery(flipped, *sets(painted), count=5)] == before
    truths = {gallery(predictions, *sets(painted), count=5)[index].pictures[0].truth for index in range(5)}
    assert len(truths) >= 3


def test_a_run_without_counterfactuals_has_no_pairs(painted: Path, predictions: pd.DataFrame) -> None:
    assert gallery(predictions[predictions["kind"] == "factual"], *sets(painted)) == []


def test_answers_read_as_names_and_unknown_words_in_quotation_marks() -> None:
    assert names(["polyp", "ulcer"], ["gremlin"]) == "Polyp, Ulcer, “gremlin”"
    assert names([]) == "no diagnosis"
