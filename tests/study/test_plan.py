"""What a study runs: the recipes that follow from it, their order and their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cogalign.recipe_file import read_recipe
from cogalign.study.plan import Plan, make_plan
from cogalign.study.run import listing, runs_of

BASE: dict[str, Any] = {
    "data": {"phantom": {"train": 12}, "image_side": 224},
    "sft": {"steps": 30},
    "counterfactual": {"fill": "surround_blur"},
    "grpo": {"steps": 20, "mix": {"factual": 4, "removal": 2, "control": 1}},
}
STUDY: dict[str, Any] = {
    "name": "small",
    "recipe": "base.yaml",
    "seeds": [1, 2],
    "sets": {"other": {"counterfactual.fill": "telea", "counterfactual.splits": ["test"]}},
    "arms": {
        "grpo": {"title": "GRPO", "trains": "grpo", "after": "sft", "set": {"grpo.mix.control": 0}},
        "sft": {"title": "SFT", "trains": "sft"},
        "longer": {"title": "SFT longer", "trains": "sft", "after": "sft", "set": {"sft.steps": 20}},
    },
}


def planned(folder: Path, base: dict[str, Any] | None = None, overrides: Any = None, **changes: Any) -> Plan:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE if base is None else base))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return make_plan(folder / "study.yaml", folder / "out", overrides)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        planned(folder, **options)
    assert str(folder / "study.yaml") in str(caught.value)
    return str(caught.value)


def test_each_run_comes_after_what_it_needs(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [run.name for run in plan.runs] == [
        "shared", "set-other", "sft-seed1", "grpo-seed1", "longer-seed1", "sft-seed2", "grpo-seed2", "longer-seed2",
    ]  # fmt: skip
    for index, run in enumerate(plan.runs):
        assert set(run.needs) <= {earlier.name for earlier in plan.runs[:index]}
    assert plan.runs[4].needs == ("shared", "set-other", "sft-seed1")


def test_arms_share_cases_and_pairs_and_start_where_another_ended(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    out = tmp_path / "out"
    runs = {run.name: run.recipe for run in plan.runs}
    shared, other = runs["shared"], runs["set-other"]
    assert shared.data.phantom is not None and shared.run_dir == out / "shared"
    assert shared.stages == ["counterfactual"] and shared.counterfactual.fill == "surround_blur"
    assert other.counterfactual.fill == "telea" and other.run_dir == out / "sets" / "other"
    for name in ("sft", "grpo", "longer"):
        recipe = runs[f"{name}-seed2"]
        assert recipe.seed == 2 and recipe.run_dir == out / "arms" / name / "seed2"
        assert recipe.data.phantom is None and recipe.data.case_set == other.data.case_set == str(
            out / "shared" / "data"
        )
        assert recipe.counterfactual.pairs == str(out / "shared" / "counterfactual")
        assert [(item.name, item.pairs) for item in recipe.audit.sets] == [
            ("other", str(out / "sets" / "other" / "counterfactual"))
        ]
        role = "aligned" if name == "grpo" else "sft"
        assert recipe.evaluate.models == recipe.audit.models == [role]
        assert recipe.stages[-2:] == ["evaluate", "audit"] and ("grpo" in recipe.stages) == (name == "grpo")
    adapter = str(out / "arms" / "sft" / "seed2" / "sft" / "adapter")
    assert runs["grpo-seed2"].sft.checkpoint == adapter and runs["grpo-seed2"].sft.start is None
    assert runs["longer-seed2"].sft.start == adapter and runs["longer-seed2"].sft.checkpoint is None
    assert (runs["sft-seed2"].sft.start, runs["sft-seed2"].sft.checkpoint) == (None, None)
    assert (runs["grpo-seed1"].grpo.mix.removal, runs["grpo-seed1"].grpo.mix.control) == (2, 0)
    assert runs["sft-seed1"].grpo.mix.control == 1


def test_an_arm_without_an_adapter_leaves_a_whole_model(tmp_path: Path) -> None:
    runs = {run.name: run.recipe for run in planned(tmp_path, BASE | {"sft": {"steps": 30, "lora": None}}).runs}
    assert str(runs["grpo-seed1"].sft.checkpoint).endswith("arms/sft/seed1/sft/model")


def test_a_named_case_set_and_pairs_are_used_where_they_lie(tmp_path: Path) -> None:
    base = BASE | {"data": {"case_set": "cases"}, "counterfactual": {"pairs": "pairs", "fill": "surround_blur"}}
    runs = {run.name: run.recipe for run in planned(tmp_path, base).runs}
    assert runs["shared"].counterfactual.pairs == runs["sft-seed1"].counterfactual.pairs == "pairs"
    assert runs["set-other"].counterfactual.pairs is None
    assert runs["shared"].data.case_set == runs["set-other"].data.case_set == runs["sft-seed1"].data.case_set == "cases"


def test_the_segmenter_is_trained_once_and_used_by_the_sets(tmp_path: Path) -> None:
    masks = {"evidence": ["expert", "segmenter"], "segmenter": "run"}
    runs = {run.name: run.recipe for run in planned(tmp_path, BASE | {"counterfactual": {"masks": masks}}).runs}
    assert runs["shared"].stages == ["segmenter", "counterfactual"]
    assert runs["set-other"].counterfactual.masks.segmenter == str(tmp_path / "out" / "shared" / "segmenter")
    assert runs["set-other"].stages == ["counterfactual"]


def test_steps_are_counted_with_those_of_the_arms_before(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert {run.name: (run.steps, run.total) for run in plan.runs if run.seed == 1} == {
        "sft-seed1": (30, 30),
        "grpo-seed1": (20, 50),
        "longer-seed1": (20, 50),
    }


def test_unequal_steps_are_refused_unless_allowed(tmp_path: Path) -> None:
    arms = STUDY["arms"] | {"longer": STUDY["arms"]["longer"] | {"set": {"sft.steps": 21}}}
    message = refused(tmp_path, arms=arms)
    assert "arms.longer has 51 optimizer steps" in message and "arms.grpo has 50" in message
    assert len(planned(tmp_path, arms=arms, equal_steps=False).runs) == 8


def test_the_command_line_goes_before_the_study_and_the_resolved_study_says_so(tmp_path: Path) -> None:
    plan = planned(tmp_path, overrides={"sft": {"steps": 2}, "grpo": {"steps": 2}})
    assert {run.steps for run in plan.runs if run.arm} == {2}
    for path, text in plan.files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    again = make_plan(plan.out / "study.yaml", plan.out)
    assert [(run.name, run.recipe, run.needs, run.total) for run in again.runs] == [
        (run.name, run.recipe, run.needs, run.total) for run in plan.runs
    ]
    assert read_recipe(plan.recipe_file(plan.runs[2])) == plan.runs[2].recipe


def test_the_folder_is_spelled_alike_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(tmp_path)
    monkeypatch.chdir(tmp_path)
    one = make_plan(Path("study.yaml"), Path("out"))
    assert one.runs == make_plan(tmp_path / "study.yaml", tmp_path / "out").runs
    assert one.out == Path("out") and make_plan(Path("study.yaml")).out == Path("runs/small")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sets": {"other": {"counterfactual.splits": ["test"]}}}, "sets.other: its counterfactuals would be those"),
        ({"overrides": {"counterfactual": {"fill": "white"}}, "sets": {"other": {"counterfactual.fill": "telea"}}},
         "sets.other: its counterfactuals would be those"),
        ({"sets": {"other": {"data.seed": 4}}}, "sets.other: found `data.seed`, wanted keys of counterfactual"),
        ({"sets": {"other": {"counterfactual.fil": 1}}}, "did you mean `counterfactual.fill`?"),
        ({"sets": {"other": {"counterfactual.fill": "telea", "counterfactual.splits": ["train"]}}}, "wanted 'test' among"),
        ({"arms": {"a": {"title": "A", "trains": "sft", "set": {"sft.step": 1}}}}, "arms.a.set: unknown key `sft.step`"),
        ({"arms": {"a": {"title": "A", "trains": "sft", "set": {"data.seed": 1}}}}, "all arms share their cases"),
        ({"arms": {"a": {"title": "A", "trains": "sft", "set": {"audit.limit": 1}}}}, "all arms share their cases"),
        ({"arms": {"a": {"title": "A", "trains": "sft", "set": {"sft": {"start": "x"}}}}}, "found `sft.start`, which the"),
        ({"arms": {"a": {"title": "A", "trains": "sft", "set": {"sft.steps": "x"}}}}, "arms.a: sft.steps: found 'x'"),
        ({"primary": "other/causal_scor"}, "primary: found 'other/causal_scor', wanted one of audit, other, test, "),
        ({"primary": "nowhere/causal_score"}, "primary: found 'nowhere/causal_score'"),
        ({"base": BASE | {"audit": {"sets": [{"name": "audit", "pairs": "x"}]}}}, "audit.sets: found 'audit', the name of"),
        ({"overrides": {"seed": 3}}, "the command line: found `seed`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, **options)


def test_chosen_arms_bring_what_they_start_from(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    chosen = plan.with_needed(runs_of(plan, ["grpo"], [2]))
    assert [run.name for run in chosen] == ["shared", "set-other", "sft-seed2", "grpo-seed2"]
    lines = listing(plan, {"grpo-seed2"}).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["run", "shared", "set other", "sft seed 2", "grpo seed 2"]
    assert "20     50      sft          factual 4, removal 2 " in lines[-1]
