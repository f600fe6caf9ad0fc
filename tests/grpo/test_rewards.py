"""The paper's rewards and the weighted sum."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.cognition.keywords import extract
from cogalign.cognition.report import HEADINGS, Report, render
from cogalign.grpo.rewards import (
    REWARDS,
    cognition_reward,
    completion_text,
    diagnosis_reward,
    format_reward,
    score,
    total_rewards,
)
from cogalign.grpo.rewards.total import reward_table
from cogalign.recipe import RewardWeights

REPORT = Report(
    location="Sigmoid colon, white light, clean lumen",
    morphology="Sessile elevated lesion with sharp border, Paris Is",
    microvasculature="Villous pits, dilated capillaries, demarcation line",
    diagnosis=("polyp", "erosion"),
)
TEXT = render(REPORT)
KEYWORDS = extract(REPORT)
PAPER = RewardWeights()


def as_chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def as_parts(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "image"}]}]


@pytest.mark.parametrize("wrap", [str, as_chat, as_parts])
def test_the_gold_report_earns_every_reward(wrap: Any) -> None:
    columns = {"findings": [["erosion", "polyp"]], "keywords": [KEYWORDS]}
    total, single = score([wrap(TEXT)], columns, PAPER)
    assert single.tolist() == [[1.0, 1.0, 1.0]]
    assert total.tolist() == [4.0]


@given(text=st.text(max_size=200), findings=st.lists(st.sampled_from(["polyp", "ulcer", "normal"]), max_size=2))
@settings(max_examples=60, deadline=None)
def test_any_text_earns_between_zero_and_one(text: str, findings: list[str]) -> None:
    _, single = score([text, TEXT + text], {"findings": [findings] * 2, "keywords": [KEYWORDS, KEYWORDS]}, PAPER)
    known = single[~single.isnan()]
    assert ((known >= 0) & (known <= 1)).all()
    assert bool(single[:, 2].isnan().all()) == (not findings)


@given(kept=st.sets(st.sampled_from(sorted(HEADINGS))))
@settings(max_examples=8, deadline=None)
def test_format_needs_all_three_headings(kept: set[str]) -> None:
    text = "\n".join(HEADINGS[name] for name in kept)
    assert format_reward(completions=[text]) == [float(len(kept) == 3)]


@given(found=st.sets(st.integers(0, 8)))
@settings(max_examples=40, deadline=None)
def test_cognition_is_the_share_of_keywords_found(found: set[int]) -> None:
    words = [f"word{index}x" for index in range(9)]
    keywords = {"location": words[:3], "morphology": words[3:6], "microvasculature": words[6:]}
    text = " ".join(words[index].upper() for index in found)
    assert cognition_reward(completions=[text], keywords=[keywords]) == [len(found) / 9]


@pytest.mark.parametrize("keywords", [None, {}, {"location": [], "morphology": None}])
def test_cognition_does_not_judge_a_case_without_keywords(keywords: Any) -> None:
    assert cognition_reward(completions=[TEXT], keywords=[keywords]) == [None]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Polyp, Erosion", 1.0),
        ("Erosion, Polyp", 1.0),
        ("Polyp", 0.0),
        ("Polyp, Erosion, Ulcer", 0.0),
        ("Polyp, Erosion, Unicorn", 0.0),
        ("Normal", 0.0),
    ],
)
def test_diagnosis_wants_the_exact_set(line: str, expected: float) -> None:
    text = f"The diagnosis result is {line}."
    assert diagnosis_reward(completions=[text], findings=[["polyp", "erosion"]]) == [expected]


def test_a_finding_outside_of_the_diagnosis_earns_nothing() -> None:
    assert diagnosis_reward(completions=["There is a polyp."], findings=[("polyp",)]) == [0.0]


@pytest.mark.parametrize("findings", [None, [], ()])
def test_diagnosis_does_not_judge_a_case_without_findings(findings: Any) -> None:
    assert diagnosis_reward(completions=[TEXT], findings=[findings]) == [None]


def test_messages_without_text_are_empty() -> None:
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert completion_text([*as_chat("a"), *as_parts("b")]) == "a\nb"


def test_rewards_that_do_not_apply_are_left_out_of_the_sum() -> None:
    columns = {"findings": [["polyp"], None], "keywords": [None, None]}
    total, single = score(["The diagnosis result is Polyp.", ""], columns, {"diagnosis": 2.0, "cognition": 1.0})
    assert total[0] == 2.0 and math.isnan(total[1])
    assert single[0, 0] == 1.0 and single[0, 1].isnan() and single[1].isnan().all()


def test_total_is_trls_weighted_sum() -> None:
    def cycle(values: list[float | None]) -> Any:
        return lambda **_: values

    functions = {"a": cycle([1.0, None, 0.5]), "b": cycle([0.0, 2.0, None])}
    total, single = score(["", "", ""], {}, {"b": 3.0, "a": 1.0}, rewards=functions)
    assert single.shape == (3, 2)
    assert torch.equal(total, (single * torch.tensor([3.0, 1.0])).nansum(dim=1))
    assert total.tolist() == [1.0, 6.0, 0.5]


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'diagnose', the nearest is 'diagnosis'"):
        score([""], {}, {"diagnose": 1.0})


def test_columns_and_rewards_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'findings': found 1 values, wanted 2"):
        score(["", ""], {"findings": [["polyp"]]}, PAPER)
    with pytest.raises(ValueError, match=r"reward 'short': returned 1 values, wanted 2"):
        score(["", ""], {}, {"short": 1.0}, rewards={"short": lambda **_: [1.0]})


def test_a_weight_of_zero_is_not_computed() -> None:
    weights = RewardWeights(format=0.0, cognition=0.0, diagnosis=1.0)
    total, single = score(["The diagnosis result is Polyp."], {"findings": [["polyp"]]}, weights)
    assert single.shape == (1, 1) and total.tolist() == [1.0]


def test_totals_leave_out_what_is_missing() -> None:
    nan = math.nan
    totals = total_rewards(torch.tensor([[1.0, 2.0], [nan, 2.0], [nan, nan]]), [1.0, 0.5])
    assert totals[:2].tolist() == [2.0, 1.0] and totals[2].isnan()


def test_rewards_by_name_become_a_table() -> None:
    table = reward_table({"a": [1.0, None], "b": [0.0, 2.0]})
    assert table.shape == (2, 2) and table[0].tolist() == [1.0, 0.0] and table[1, 0].isnan() and table[1, 1] == 2.0


def test_every_weight_of_a_recipe_has_its_reward() -> None:
    assert list(REWARDS) == list(vars(PAPER))


def test_the_rewards_are_imported_without_torch() -> None:
    code = "import sys, cogalign.grpo.rewards, cogalign.grpo.rewards.pool; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
