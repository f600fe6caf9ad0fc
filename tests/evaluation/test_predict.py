import math
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from cogalign.cognition.report import render
from cogalign.data.case import Case
from cogalign.evaluation.predict import COLUMNS, frame_of, group_of, judge, predict_cases
from cogalign.generation.hf import Completion

FINDINGS = ("polyp", "ulcer")


def case(**changes: object) -> Case:
    keywords = {"location": ["colon", "white light"], "morphology": ["crater"], "microvasculature": []}
    answer = "1. Location & Imaging Environment\nColon, white light\nThe diagnosis result is Polyp, Ulcer."
    values = {"id": "a", "file_name": "images/a.png", "findings": FINDINGS, "split": "test", "organ": "colon"}
    return Case(**{**values, "keywords": keywords, "answer": answer, **changes})  # type: ignore[arg-type]


FULL = (
    "1. Location & Imaging Environment\nColon, white light\n2. Mucosal Morphology & Focal Lesions\nround\n"
    "3. Surface Texture & Microvascular Architecture\nregular\nThe diagnosis result is Ulcer, Polyp."
)


def row(text: str, finished: bool = True, **changes: object) -> dict[str, object]:
    return judge(case(**changes), Completion(text, (), finished), model="sft", kind="factual")


def test_a_right_answer_is_right_in_every_column() -> None:
    found = row(FULL)
    assert set(found) == set(COLUMNS)
    assert found["correct"] and found["format"] and found["location_correct"] is True
    assert found["diagnosis"] == ["ulcer", "polyp"]
    assert found["cognition"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("text", ["", "A pink surface.", "The diagnosis result is ", "1.\n2.\n3.\n", "ｘ" * 50])
def test_whatever_is_written_gives_a_row_that_is_wrong(text: str) -> None:
    found = row(text, finished=False)
    assert not found["correct"] and not found["format"] and not found["finished"]


def test_a_diagnosis_that_no_finding_is_named_is_kept_and_wrong() -> None:
    found = row(FULL.replace("Ulcer, Polyp", "Ulcer, Polyp, Gremlin"))
    assert found["unknown"] == ["Gremlin"] and not found["correct"]


def test_a_case_without_keywords_has_no_share() -> None:
    assert math.isnan(float(str(row(FULL, keywords={})["cognition"])))


def test_the_unit_of_resampling_is_patient_else_source_else_case() -> None:
    assert group_of(case(group="patient 3", counterfactual_of="b")) == "patient 3"
    assert group_of(case(counterfactual_of="b")) == "b"
    assert group_of(case()) == "a"


def test_no_prediction_is_a_frame_with_all_columns() -> None:
    assert list(frame_of([]).columns) == list(COLUMNS)


def test_images_are_opened_a_batch_at_a_time_and_rows_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(id=str(index), findings=("normal",)) for index in range(7)]
    opened: list[str] = []
    seen: list[tuple[int, int]] = []

    def image(one: Case) -> Image.Image:
        opened.append(one.id)
        return Image.fromarray(np.full((4, 4, 3), int(one.id), np.uint8))

    def generate(loaded: object, images: Sequence[Image.Image], questions: Sequence[str], **options: object) -> list:
        seen.append((len(images), len(opened)))
        assert set(questions) == {"What?"} and options["max_completion_length"] == 9
        return [[Completion(f"image {np.asarray(one)[0, 0, 0]}", (), True)] for one in images]

    monkeypatch.setattr("cogalign.evaluation.predict.generate", generate)
    frame = predict_cases(
        object(), cases, image, question="What?", model="sft", kind="spots", batch_size=3, max_completion_length=9
    )
    assert seen == [(3, 3), (3, 6), (1, 7)]
    assert frame["completion"].tolist() == [f"image {index}" for index in range(7)]
    assert set(frame["kind"]) == {"spots"} and set(frame["model"]) == {"sft"}


def test_a_rendered_gold_report_is_judged_right() -> None:
    from cogalign.cognition.templates import template_report

    report = template_report(("polyp",), "colon")
    found = row(render(report), findings=("polyp",), answer=render(report))
    assert found["correct"] and found["format"] and found["location_correct"] is True
