from dataclasses import replace

import numpy as np
import pytest

from cogalign.cognition.keywords import count_found, extract
from cogalign.cognition.report import parse, render
from cogalign.cognition.templates import template_report
from cogalign.counterfactual.interventions import Edited, Move
from cogalign.counterfactual.pairs import counterfactual_case
from cogalign.counterfactual.plan import Edit, Task
from cogalign.data.case import Box, Case
from cogalign.data.sources import datasets_of

TOUCHED = np.arange(100).reshape(10, 10) < 25
IMAGE = np.zeros((10, 10, 3), np.uint8)


def factual(name: str, findings: tuple[str, ...], organ: str, **fields: object) -> Case:
    report = template_report(findings, organ)
    return Case(name, f"images/{name}.jpg", findings, "train", organ, f"group-{name}", "set", "licence",
                f"masks/{name}.png", answer=render(report), keywords=extract(report), attributes={"spec": 1},
                **fields)  # type: ignore[arg-type]  # fmt: skip


SOURCE = factual("a", ("polyp", "ulcer"), "colon", boxes=(Box("polyp", 0, 0, 4, 4), Box("ulcer", 5, 5, 9, 9)))
BACKGROUND = factual("b", ("erosion",), "stomach")


def make(intervention: str, edited: Edited, background: Case | None = None) -> Case:
    edit = Edit(f"a-{intervention}", f"000000-{intervention}", intervention, 0)  # type: ignore[arg-type]
    return counterfactual_case(Task(SOURCE, "sources/000000.jpg", (edit,)), edit, edited, "white", background)


def test_every_counterfactual_names_its_source_and_files() -> None:
    for intervention in ("removal", "control", "transplant", "background"):
        made = make(intervention, Edited(IMAGE, TOUCHED), BACKGROUND)
        assert (made.counterfactual_of, made.intervention) == ("a", intervention)
        assert made.file_name == f"images/000000-{intervention}.png"
        assert made.mask_file_name == f"masks/000000-{intervention}.png"
        assert made.source_file_name == "sources/000000.jpg"
        assert made.split == "train" and made.group == "group-a" and made.licence == "licence"
        assert made.attributes["touched_share"] == 0.25 and "spec" not in made.attributes
        assert made.fill == (None if intervention == "background" else "white")
        assert count_found(made.answer, made.keywords) == 9
        assert Case.from_row(made.to_row()) == made


def test_removal_is_normal_and_keeps_the_location() -> None:
    made = make("removal", Edited(IMAGE, TOUCHED))
    report = parse(made.answer)
    assert made.findings == report.diagnosis == ("normal",) and made.boxes == ()
    assert report.location == parse(SOURCE.answer).location
    assert "polyp" not in made.answer.lower() and "no focal lesion" in made.answer


def test_removal_of_one_of_two_findings_leaves_the_other_in_label_boxes_and_report() -> None:
    edit = Edit("a-removal-polyp", "000000-removal-1", "removal", 1, removes=("polyp",))
    known_by = {"provenance": "box+grabcut", "confidence": 0.8}
    task = Task(SOURCE, "sources/000000.jpg", (edit,))
    made = counterfactual_case(task, edit, Edited(IMAGE, TOUCHED), "white", None, known_by)
    report = parse(made.answer)
    assert made.findings == report.diagnosis == ("ulcer",) and [box.finding for box in made.boxes] == ["ulcer"]
    assert made.attributes["removed"] == ["polyp"] and made.attributes["mask"] == known_by
    assert "polyp" not in made.answer.lower() and report.location == parse(SOURCE.answer).location


@pytest.mark.parametrize("intervention", ["control", "background"])
def test_control_and_background_keep_report_and_label(intervention: str) -> None:
    made = make(intervention, Edited(IMAGE, TOUCHED, changed=("hue",)))
    assert (made.findings, made.answer, made.keywords, made.boxes) == (
        SOURCE.findings,
        SOURCE.answer,
        SOURCE.keywords,
        SOURCE.boxes,
    )
    assert made.attributes["changed"] == ["hue"]


def test_transplant_has_the_lesions_diagnosis_and_the_backgrounds_location() -> None:
    moves = (Move((5, 5, 9, 9), (1, 2, 5, 6)), Move((0, 0, 4, 4), (6, 6, 10, 10)))
    made = make("transplant", Edited(IMAGE, TOUCHED, moves), BACKGROUND)
    report = parse(made.answer)
    assert made.findings == report.diagnosis == ("polyp", "ulcer")
    assert made.organ == "stomach" and report.location == parse(BACKGROUND.answer).location
    assert report.morphology == parse(SOURCE.answer).morphology
    assert made.boxes == (Box("ulcer", 1, 2, 5, 6), Box("polyp", 6, 6, 10, 10))
    assert made.background_of == "b" and made.attributes["background_findings"] == ["erosion"]


def test_a_transplant_says_of_which_data_set_its_background_is_and_both_licences_bind() -> None:
    other = replace(BACKGROUND, dataset="Kvasir-SEG", licence="research only")
    made = make("transplant", Edited(IMAGE, TOUCHED), other)
    assert datasets_of(made) == ("set", "Kvasir-SEG") and made.licence == "licence; research only"
    same = make("transplant", Edited(IMAGE, TOUCHED), BACKGROUND)
    assert datasets_of(same) == ("set",) and same.licence == "licence"
    unknown = make("transplant", Edited(IMAGE, TOUCHED), replace(BACKGROUND, dataset="", licence=""))
    assert datasets_of(unknown) == ("set", "")


def test_the_lenders_of_overlays_of_both_images_are_named_and_each_licence_once() -> None:
    lent = replace(BACKGROUND, attributes={"overlays_dataset": "B"}, licence="licence; of B")
    assert datasets_of(make("transplant", Edited(IMAGE, TOUCHED), lent)) == ("set", "B")
    source = replace(SOURCE, attributes={"overlays_dataset": "A"}, licence="licence; of A")
    edit = Edit("a-1", "000000-1", "transplant", 0)
    made = counterfactual_case(Task(source, "s.jpg", (edit,)), edit, Edited(IMAGE, TOUCHED), "white", lent)
    assert datasets_of(made) == ("set", "A", "B") and made.licence == "licence; of A; of B"
    removed = replace(edit, intervention="removal")
    alone = counterfactual_case(Task(source, "s.jpg", (removed,)), removed, Edited(IMAGE, TOUCHED), "white", None)
    assert datasets_of(alone) == ("set", "A")


def test_transplant_without_background_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a background"):
        make("transplant", Edited(IMAGE, TOUCHED))
