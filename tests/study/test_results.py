import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cogalign.data.caseset import read_case_set
from cogalign.evaluation.audit import audit_model
from cogalign.evaluation.storage import read_frame
from cogalign.study.repeats import repeated_kinds
from cogalign.study.results import results, write_results
from cogalign.study.runs import read_runs
from cogalign.study.settings import read_study
from cogalign.training.stage_file import StageFile
from tests.study.judged_study import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "out")


def results_in(out: Path) -> dict[str, Any]:
    settings = read_study(out / "study.yaml")
    return results(settings, *read_runs(out, settings), resamples=300)


@pytest.fixture(scope="module")
def result(study: Path) -> dict[str, Any]:
    return results_in(study)


def values(result: dict[str, Any], key: str) -> dict[str, float]:
    return {arm: round(one["value"], 4) for arm, one in result["table"][key].items()}


def test_a_rate_is_the_mean_over_seeds_and_each_seed_is_told(result: dict[str, Any]) -> None:
    one = result["table"]["unseen_fill/removal_normal_rate"]["ours"]
    assert one["value"] == pytest.approx(0.7) and one["seeds"] == {"1": 0.8, "2": 0.6}
    assert one["n"] == one["groups"] == 10
    assert one["ci"][0] < 0.6 and 0.8 < one["ci"][1] < 1
    assert values(result, "unseen_fill/removal_normal_rate") == {"sft": 0, "longer": 0, "ours": 0.7}


def test_rates_and_score_of_one_run_are_those_of_its_own_audit(study: Path, result: dict[str, Any]) -> None:
    for arm in ("sft", "ours"):
        audit = audit_model(read_frame(study / "arms" / arm / "seed1" / "audit" / "predictions.parquet"), 50)
        for name in ("removal_normal_rate", "control_keep_rate", "transplant_keep_rate", "background_flip_rate",
                     "causal_score"):  # fmt: skip
            assert result["table"][f"audit/{name}"][arm]["seeds"]["1"] == pytest.approx(audit[name])
        assert 100 * result["table"]["audit/spot_drop"][arm]["seeds"]["1"] == pytest.approx(audit["spot_drop"])
    assert values(result, "audit/causal_score")["sft"] == 0.5


def test_a_set_without_all_kinds_has_no_causal_score(result: dict[str, Any]) -> None:
    found = {key for key in result["table"] if key.startswith("unseen_fill/")}
    assert found == {f"unseen_fill/{name}" for name in ("removal_normal_rate", "control_keep_rate", "lesion_read_rate")}


def test_where_all_are_right_the_interval_still_has_a_width(result: dict[str, Any]) -> None:
    low, high = result["table"]["audit/control_keep_rate"]["ours"]["ci"]
    assert high == 1 and 0.6 < low < 0.8  # Wilson's of 10 in 10 groups: two seeds make no more images


def test_recall_is_told_on_the_other_source_only(result: dict[str, Any]) -> None:
    assert values(result, "cross_source/polyp_recall") == {"sft": 0.5, "longer": 0.5, "ours": 1}
    assert values(result, "cross_source/normal_recall")["sft"] == 1
    assert result["table"]["cross_source/polyp_recall"]["ours"]["n"] == 8
    assert values(result, "cross_source/accuracy")["sft"] == pytest.approx(8 / 12, abs=1e-4)
    assert "test/polyp_recall" not in result["table"]


def test_originals_kept_counts_what_the_reference_got_right(result: dict[str, Any]) -> None:
    kept = result["table"]["test/originals_kept"]
    # SFT is wrong on n09, ours on n00 and n09: of 19 that were right one is lost.
    assert "sft" not in kept and kept["ours"]["n"] == 19
    assert values(result, "test/originals_kept") == {"longer": 1, "ours": pytest.approx(18 / 19, abs=1e-4)}
    assert values(result, "test/accuracy") == {"sft": 0.95, "longer": 0.95, "ours": 0.9}


def test_blur_of_the_background_and_spots_are_told(result: dict[str, Any]) -> None:
    assert values(result, "audit/background_blur_keep_rate") == {"sft": 0, "longer": 0, "ours": 1}
    assert values(result, "audit/spot_drop") == {"sft": -0.05, "longer": -0.05, "ours": 0.05}
    assert result["measures"]["audit/spot_drop"]["points"] and result["measures"]["audit/spot_drop"]["lower_is_better"]


def test_steps_and_seconds_hold_those_of_the_arms_before(result: dict[str, Any]) -> None:
    assert {arm: one["steps"] for arm, one in result["arms"].items()} == {
        "sft": {"1": 60, "2": 60}, "longer": {"1": 100, "2": 100}, "ours": {"1": 100, "2": 100},
    }  # fmt: skip
    assert result["arms"]["ours"]["seconds"] == {"1": 200.0, "2": 400.0}


def test_the_same_runs_give_the_same_files(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "moved"
    shutil.copytree(study, other)
    write_results(study)
    write_results(other)
    for name in ("study.json", "study.md", "study.html", "study.png"):
        assert (other / name).read_bytes() == (study / name).read_bytes(), name


def test_unfinished_runs_are_named_and_the_others_are_told(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part"
    shutil.copytree(study, out)
    StageFile(stage="audit", digest="d", status="running").write(out / "arms" / "ours" / "seed2" / "audit")
    shutil.rmtree(out / "arms" / "longer")
    write_results(out)
    told = capsys.readouterr().err
    assert "ours, seed 2: audit has not finished" in told and "longer, seed 1: sft has not finished" in told
    result = json.loads((out / "study.json").read_text())
    assert result["table"]["unseen_fill/removal_normal_rate"]["ours"]["seeds"] == {"1": 0.8}
    assert set(result["table"]["audit/causal_score"]) == {"sft", "ours"}
    assert any("without seed 2" in note for note in result["notes"])
    assert any("SFT longer: no run is finished" in note for note in result["notes"])
    assert {(row["arm"], row["against"]) for row in result["comparisons"]} == {("ours", "sft")}
    assert all(set(row["seeds"]) == {"1"} for row in result["comparisons"])
    assert "ours, seed 2: audit has not finished" in (out / "study.html").read_text()


def test_rates_of_a_set_on_the_studys_own_images_are_left_out_and_named(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "part"
    shutil.copytree(study, out)
    own, other = (read_case_set(folder / "counterfactual") for folder in (out / "shared", out / "sets" / "unseen_fill"))
    for case in other.cases:
        if case.intervention == "control":
            shutil.copy(own.path(own.by_id[case.id].file_name), other.path(case.file_name))
    audited = read_frame(out / "arms" / "ours" / "seed1" / "audit" / "predictions.parquet")
    assert repeated_kinds(study, ["unseen_fill"], audited) == {}
    repeated = repeated_kinds(out, ["unseen_fill"], audited)
    assert repeated == {"unseen_fill": ["control"]}
    settings = read_study(out / "study.yaml")
    result = results(settings, *read_runs(out, settings), repeated=repeated, resamples=20)
    assert {key for key in result["table"] if key.startswith("unseen_fill/")} == {
        "unseen_fill/removal_normal_rate",
        "unseen_fill/lesion_read_rate",
    }
    assert any(
        note.startswith("unseen_fill: its images of kind control are those of the study's own")
        for note in result["notes"]
    )


def test_runs_with_other_settings_are_shown_and_named(study: Path) -> None:
    settings = read_study(study / "study.yaml")
    result = results(settings, *read_runs(study, settings), ["ours-seed2", "shared"], resamples=20)
    assert result["doubtful"] == ["ours-seed2"] and set(result["table"]["test/accuracy"]["ours"]["seeds"]) == {"1", "2"}
    assert "ours-seed2: finished with other settings or inputs than those of this study" in result["notes"]


def test_without_the_reference_there_are_no_differences(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "part"
    shutil.copytree(study, out)
    shutil.rmtree(out / "arms" / "sft")
    result = results_in(out)
    assert result["differences"] == [] and "test/originals_kept" not in result["table"]
    assert result["arms"]["ours"]["steps"] == {"1": None, "2": None}  # the arm before it is not there


def test_a_study_without_a_finished_run_says_what_to_start(study: Path, tmp_path: Path) -> None:
    shutil.copy(study / "study.yaml", tmp_path / "study.yaml")
    with pytest.raises(ValueError, match="no run of this study is finished; start `cogalign study`"):
        write_results(tmp_path)
