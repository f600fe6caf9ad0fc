from collections import Counter
from pathlib import Path

import pytest

from cogalign.counterfactual.backgrounds import Backgrounds, compatible, lesions_of_backgrounds
from cogalign.counterfactual.interventions import stream
from cogalign.counterfactual.located import Located
from cogalign.counterfactual.plan import exclusion, make_plan
from cogalign.data.case import Box, Case
from cogalign.data.caseset import CaseSet
from cogalign.recipe import CounterfactualSettings


def case(number: int, finding: str = "polyp", split: str = "train", **fields: object) -> Case:
    values: dict[str, object] = {
        "id": f"c{number}",
        "file_name": f"images/c{number}.JPG",
        "findings": (finding,),
        "split": split,
        "organ": "colon",
        "group": f"g{number}",
        "mask_file_name": None if finding == "normal" else f"masks/c{number}.png",
    }
    return Case(**{**values, **fields})  # type: ignore[arg-type]


def test_only_focal_findings_with_a_mask_are_used_and_the_rest_is_counted() -> None:
    cases = [
        case(0),
        case(1, "normal"),
        case(2, mask_file_name=None),
        case(3, "ulcerative_colitis"),
        case(4, findings=("polyp", "inflammation")),
        case(5, "wart"),
        case(6, counterfactual_of="c0"),
        case(7, split="validation"),
        case(8, split="test"),
    ]
    plan = make_plan(CaseSet(Path("x"), cases), CounterfactualSettings())
    assert [task.case.id for task in plan.tasks] == ["c0", "c8"]
    assert plan.left_out == {
        "normal: no lesion": 1,
        "no mask": 1,
        "finding not focal: ulcerative_colitis": 1,
        "finding not focal: inflammation": 1,
        "finding not in the taxonomy: wart": 1,
        "is a counterfactual": 1,
    }
    assert exclusion(cases[0], {}) is None


def test_a_mask_that_was_found_makes_a_case_usable_and_one_that_was_not_excludes_it() -> None:
    cases = [case(0, mask_file_name=None), case(1, mask_file_name=None), case(2)]
    located = {
        "c0": Located(Path("located/0.png"), "box+grabcut", 0.8, ""),
        "c1": Located(None, "", 0.0, "segmenter not sure"),
    }
    plan = make_plan(CaseSet(Path("x"), cases), CounterfactualSettings(splits=["train"]), located)
    assert [task.case.id for task in plan.tasks] == ["c0", "c2"]
    assert plan.left_out == {"segmenter not sure": 1}


def test_each_of_several_findings_is_also_removed_alone_where_boxes_tell_them_apart() -> None:
    both = (Box("polyp", 0, 0, 4, 4), Box("ulcer", 6, 6, 9, 9))
    cases = [
        case(0, findings=("polyp", "ulcer"), boxes=both),
        case(1, findings=("polyp", "ulcer"), boxes=both[:1]),
        case(2, boxes=both[:1] * 2),
    ]
    settings = CounterfactualSettings(splits=["train"], interventions=["removal"])
    first, *others = make_plan(CaseSet(Path("x"), cases), settings).tasks
    assert [(edit.id, edit.name, edit.removes) for edit in first.edits] == [
        ("c0-removal", "000000-removal", ()),
        ("c0-removal-polyp", "000000-removal-1", ("polyp",)),
        ("c0-removal-ulcer", "000000-removal-2", ("ulcer",)),
    ]
    assert all(len(task.edits) == 1 for task in others)
    settings.one_of_several = False
    assert all(len(task.edits) == 1 for task in make_plan(CaseSet(Path("x"), cases), settings).tasks)


def test_files_are_named_by_position_and_ids_by_what_was_done() -> None:
    cases = [case(0, "normal"), case(1, id="a/test b")]
    settings = CounterfactualSettings(splits=["train"], per_case=2)
    (task,) = make_plan(CaseSet(Path("x"), cases), settings).tasks
    assert task.source_file_name == "sources/000001.jpg"
    assert [edit.name for edit in task.edits] == [
        "000001-removal",
        "000001-control-0",
        "000001-control-1",
        "000001-transplant-0",
        "000001-transplant-1",
        "000001-background-0",
        "000001-background-1",
    ]
    assert task.edits[1].id == "a/test b-control-0"


def test_limit_is_spread_evenly_and_counted() -> None:
    cases = [case(k) for k in range(10)] + [case(k, split="test") for k in range(10, 20)]
    plan = make_plan(CaseSet(Path("x"), cases), CounterfactualSettings(limit=3))
    assert [task.case.id for task in plan.tasks] == ["c1", "c5", "c8", "c11", "c15", "c18"]
    assert plan.left_out == {"beyond the limit": 14}


def test_a_case_set_without_usable_cases_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match=r"no case of the splits train.*normal: no lesion \(2\)"):
        make_plan(CaseSet(Path("x"), [case(0, "normal"), case(1, "normal")]), CounterfactualSettings(splits=["train"]))
    with pytest.raises(ValueError, match="no split 'test'"):
        make_plan(CaseSet(Path("x"), [case(0)]), CounterfactualSettings())


def test_partners_are_of_another_group_and_a_fitting_organ() -> None:
    pool = [
        case(0, group="p"),
        case(1, "normal", group="p"),
        case(2, "normal", organ="stomach"),
        case(3, "normal", organ="esophagus"),
        case(4, "normal"),
    ]
    for seed in range(20):
        drawn = Backgrounds(pool).draw(pool[0], stream(seed, "c0", "partner"))
        assert {partner.id for partner in drawn} == {"c2", "c4"}
    assert compatible(case(0, organ="esophagus"), "esophagus")
    assert not compatible(case(0, findings=("polyp", "lymphangiectasia")), "stomach")


def test_backgrounds_tell_nothing_of_the_finding() -> None:
    kinds = ["polyp"] * 60 + ["ulcer"] * 10 + ["normal"] * 30
    pool = [case(k, kind) for k, kind in enumerate(kinds)]
    for finding in ("polyp", "ulcer"):
        sources = [item for item in pool if item.findings == (finding,)] * (6 if finding == "ulcer" else 1)
        drawn = Counter(
            Backgrounds(pool).draw(source, stream(k, source.id, "partner"), 1)[0].findings[0]
            for k, source in enumerate(sources)
        )
        assert all(0.15 < drawn[kind] / len(sources) < 0.55 for kind in ("polyp", "ulcer", "normal"))


def test_the_plan_of_a_case_does_not_depend_on_the_limit() -> None:
    case_set = CaseSet(Path("x"), [case(k) for k in range(9)] + [case(k, "normal") for k in range(9, 20)])
    whole = make_plan(case_set, CounterfactualSettings(splits=["train"]))
    part = make_plan(case_set, CounterfactualSettings(splits=["train"], limit=3))
    assert len(part.tasks) == 3 and all(task in whole.tasks for task in part.tasks)


def transplants(cases: list[Case], **settings: object) -> dict[str, set[str]]:
    """Ids of the partners of each transplant, by source case."""
    wanted = CounterfactualSettings(interventions=["transplant"], **settings)  # type: ignore[arg-type]
    tasks = make_plan(CaseSet(Path("x"), cases), wanted).tasks
    return {task.case.id: {one.id for edit in task.edits for one in edit.backgrounds} for task in tasks}


MIXED = [
    case(0, dataset="seg"),
    case(1, dataset="seg"),
    case(2, "normal", dataset="seg"),
    case(3, "normal", dataset="hyper"),
    case(4, dataset="hyper"),
    case(5, "normal", "cross_source", dataset="gastro"),
    case(6, split="cross_source", dataset="gastro"),
]


def test_backgrounds_are_normal_or_of_another_data_set_where_the_recipe_says_so() -> None:
    assert transplants(MIXED, splits=["train"], per_case=6)["c0"] == {"c1", "c2", "c3", "c4"}
    assert transplants(MIXED, splits=["train"], per_case=6, backgrounds="normal")["c0"] == {"c2", "c3"}
    other = transplants(MIXED, splits=["train"], per_case=6, backgrounds="other_source")
    assert other == {"c0": {"c3"}, "c1": {"c3"}, "c4": {"c2"}}


def test_another_split_lends_the_backgrounds_of_cases_that_are_not_trained_on() -> None:
    cases = [*MIXED, case(7, split="test", dataset="seg")]
    lent = {"splits": ["test"], "background_split": "cross_source"}
    assert transplants(cases, **lent) == {"c7": {"c5", "c6"}}
    assert transplants(cases, **lent, backgrounds="other_source") == {"c7": {"c5"}}
    with pytest.raises(
        ValueError, match=r"background_split: found 'cross_source', but counterfactual\.splits has 'train'"
    ):
        transplants(cases, splits=["train", "test"], background_split="cross_source")
    with pytest.raises(
        ValueError, match=r"background_split: found 'cross', wanted null or a split of x: train, cross_so"
    ):
        transplants(cases, splits=["test"], background_split="cross")


def test_lesions_are_looked_for_on_backgrounds_that_are_to_be_cleared() -> None:
    settings = CounterfactualSettings(splits=["test"], background_split="cross_source")
    assert lesions_of_backgrounds(settings) == ["cross_source"]
    settings.backgrounds = "normal"
    assert lesions_of_backgrounds(settings) == []
