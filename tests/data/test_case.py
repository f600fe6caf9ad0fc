from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cogalign.data.case import Case
from cogalign.data.caseset import CaseSet
from cogalign.data.collator import SftCollator, question_of
from cogalign.models.load import LoadedModel

ROW = {"id": "q", "file_name": "q.png", "split": "train", "question": "Where is it?", "answer": "cecum"}


@pytest.mark.parametrize("findings", [[], None, "absent"])
def test_a_case_without_findings_is_a_question_case_when_it_asks_and_answers(findings: object) -> None:
    row = ROW if findings == "absent" else ROW | {"findings": findings}
    case = Case.from_row(row)
    assert case.findings == () and case.is_question and not case.is_normal
    assert Case.from_row(json.loads(json.dumps(case.to_row()))) == case
    assert question_of(case, "the recipe's") == "Where is it?"


@pytest.mark.parametrize("missing", ["question", "answer"])
def test_without_question_or_answer_findings_are_needed(missing: str) -> None:
    for row in (ROW | {missing: ""}, {name: value for name, value in ROW.items() if name != missing}):
        with pytest.raises(ValueError, match="field 'findings': found None, wanted a list of findings"):
            Case.from_row(row)
        assert not Case.from_row(row | {"findings": ["polyp"]}).is_question


@pytest.mark.parametrize("findings", ["polyp", [1], {"a": 1}, 7])
def test_findings_of_another_type_are_refused_for_questions_too(findings: object) -> None:
    with pytest.raises(ValueError, match="field 'findings'"):
        Case.from_row(ROW | {"findings": findings})


def test_a_question_case_trains_on_its_own_question_and_answer(tiny: LoadedModel, pictures: list[Image.Image]) -> None:
    case = Case.from_row(ROW)
    batch = SftCollator(tiny.processor, "the recipe's question", 4096)([(case, pictures[0])])
    learnt = batch["labels"][0] != -100
    assert tiny.tokenizer.decode(batch["input_ids"][0][learnt], skip_special_tokens=True).strip() == "cecum"
    asked = tiny.tokenizer.decode(batch["input_ids"][0][~learnt], skip_special_tokens=True)
    assert "Where is it?" in asked and "recipe" not in asked


def test_stages_that_need_findings_leave_question_cases_out_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    from cogalign.counterfactual.plan import unsuitable
    from cogalign.grpo.rewards.diagnosis import diagnosis_f1_reward
    from cogalign.grpo.rewards.paper import diagnosis_reward
    from cogalign.grpo.stage import with_findings

    question, polyp = Case.from_row(ROW), Case("p", "p.png", ("polyp",), "train")
    assert unsuitable(question) == "question case: no findings" and unsuitable(polyp) is None
    for reward in (diagnosis_reward, diagnosis_f1_reward):
        assert reward(["The diagnosis result is Polyp."] * 2, [question.findings, polyp.findings]) == [None, 1.0]
    assert with_findings(CaseSet(Path("x"), [question, polyp])).cases == [polyp]
    assert "1 question cases have no findings: left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the split train has question cases only"):
        with_findings(CaseSet(Path("x"), [question]))
