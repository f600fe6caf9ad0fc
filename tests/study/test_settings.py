"""The file of a study: what it may say, and the errors for what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cogalign.study.settings import read_study

SMALL: dict[str, Any] = {
    "name": "small",
    "recipe": "base.yaml",
    "seeds": [1, 2],
    "arms": {
        "grpo": {"title": "GRPO", "trains": "grpo", "after": "longer", "set": {"grpo.mix.removal": 1}},
        "sft": {"title": "SFT", "trains": "sft"},
        "longer": {"title": "SFT longer", "trains": "sft", "after": "sft"},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return path


def test_a_study_is_read_and_its_arms_are_ordered_by_what_they_start_from(tmp_path: Path) -> None:
    study = read_study(written(tmp_path, sets={"other": {"counterfactual.fill": "telea"}}))
    assert study.before("grpo") == ["sft", "longer"] and study.before("sft") == []
    assert study.ordered == ["sft", "longer", "grpo"]
    assert study.arms["grpo"].set == {"grpo.mix.removal": 1} and study.arms["sft"].after is None
    assert study.sets == {"other": {"counterfactual.fill": "telea"}}
    assert study.equal_steps and study.reference is None and study.compare == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": [1]}, "unknown key `seed`; did you mean `seeds`?"),
        ({"seeds": []}, "seeds: found [], wanted each seed once"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1], wanted each seed once"),
        ({"arms": {}}, "arms: found {}, wanted at least one arm"),
        ({"arms": {"a-b": {"title": "A", "trains": "sft"}}}, "arms: found 'a-b', wanted a name of letters"),
        ({"arms": {"shared": {"title": "A", "trains": "sft"}}}, "arms: found 'shared'"),
        ({"arms": {"a": {"title": "A", "trains": "rl"}}}, "arms.a.trains: found 'rl' (a text), wanted one of sft, grpo"),
        ({"arms": {"a": {"title": "A", "trains": "sft", "afer": "b"}}}, "`arms.a.afer`; did you mean `arms.a.after`?"),
        ({"arms": {"a": {"title": "A", "trains": "grpo"}}}, "arms.a.after: found None, wanted an arm"),
        ({"arms": {name: {"title": "A", "trains": "sft"} for name in "ab"}}, "arms.a.title: found 'A', wanted a title that"),
        ({"sets": {"a b": {}}}, "sets: found 'a b'"),
        ({"sets": {"audit": {}}}, "sets: found 'audit', wanted a name of letters, digits, - and _, but not audit"),
        ({"reference": "stf"}, "reference: found 'stf', wanted one of the arms grpo, sft, longer; did you mean sft?"),
        ({"compare": [["sft", "grpa"]]}, "compare: found 'grpa'"),
        ({"compare": [["sft", "sft"]]}, "compare: found ['sft', 'sft'], wanted two arms"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        read_study(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_arms_that_start_from_each_other_are_refused(tmp_path: Path) -> None:
    circle = {name: {"title": name, "trains": "sft", "after": after} for name, after in (("a", "b"), ("b", "a"))}
    with pytest.raises(ValueError, match=r"arms\.a\.after: found 'b', wanted an arm that does not itself start"):
        read_study(written(tmp_path, arms=circle))


def test_a_file_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such study; did you mean .*study\.yaml"):
        read_study(tmp_path / "studi.yaml")
