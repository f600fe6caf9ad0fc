"""Audit sets: other pairs beside the run's own, each image asked once, stopped and gone on, with rates of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cogalign.data.caseset import CaseSetWriter, read_case_set
from cogalign.evaluation import audit_stage, predict
from cogalign.evaluation.audit import audit_model, judgements
from cogalign.evaluation.audit_sets import kind_in, predictions_of, set_names, set_of
from cogalign.evaluation.storage import read_frame
from cogalign.recipe import AuditSet, AuditSettings
from cogalign.training.context import StageContext

Make = Callable[..., StageContext]


def write_set(painted: Path, folder: Path, kinds: Sequence[str], shade: int = 0, **changes: Any) -> AuditSet:
    """The painted run's pairs of some kinds, a little darker, as another set."""
    pairs = read_case_set(painted / "counterfactual")
    with CaseSetWriter(folder) as writer:
        for case in pairs.cases:
            if case.intervention in kinds:
                pixels = np.asarray(pairs.image(case))
                writer.add(replace(case, **changes), np.where(pixels > shade, pixels - shade, 0).astype(np.uint8))
    return AuditSet("other", str(folder))


def settings(*sets: AuditSet, **changes: Any) -> AuditSettings:
    return AuditSettings(
        **{"models": ["sft", "aligned"], "batch_size": 8, "bootstrap": 50, "spots": 4, "sets": list(sets), **changes}
    )


@pytest.fixture
def pictures(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Model and pixels of each image that is asked about; the report is left out."""
    seen: list[tuple[str, bytes]] = []
    real = predict.generate

    def generate(loaded: Any, images: Sequence[Image.Image], questions: Sequence[str], **options: Any) -> Any:
        found = real(loaded, images, questions, **options)
        seen.extend((loaded, image.tobytes()) for image in images)
        return found

    monkeypatch.setattr(predict, "generate", generate)
    monkeypatch.setattr(audit_stage, "write_report", lambda context: None)
    return seen


def test_a_kind_tells_its_set() -> None:
    assert kind_in("unseen_fill", "removal") == "unseen_fill/removal" and kind_in(None, "removal") == "removal"
    assert set_of("unseen_fill/removal") == ("unseen_fill", "removal") and set_of("factual") == (None, "factual")


def test_the_predictions_of_a_set_come_with_the_unedited_images_and_without_its_name() -> None:
    kinds = ["factual", "removal", "spots", "a/removal", "b/removal", "a/control"]
    frame = pd.DataFrame({"kind": kinds, "id": range(6)}, index=[7, 8, 9, 1, 2, 3])
    assert set_names(frame) == ["a", "b"]
    assert predictions_of(frame, "a")[["kind", "id"]].values.tolist() == [
        ["factual", 0],
        ["removal", 3],
        ["control", 5],
    ]
    assert predictions_of(frame, None)["kind"].tolist() == ["factual", "removal", "spots"]
    assert frame["kind"].tolist() == kinds


def test_a_set_has_rates_of_its_own_and_leaves_those_of_the_run_as_they_are(
    make_context: Make, painted: Path, pictures: list[Any], tmp_path: Path
) -> None:
    alone = audit_stage.run(make_context("audit", audit=settings()))
    other = write_set(painted, tmp_path / "other", ["control", "transplant"], shade=3)
    both = audit_stage.run(make_context("audit", audit=settings(other)))
    for role, values in both["models"].items():
        found = values.pop("sets")["other"]
        assert values == alone["models"][role]
        assert found["control_keep_rate"] == values["control_keep_rate"] and found["control_keep_rate_n"] == 24
        assert not any(name.startswith(("removal", "background", "causal", "remaining")) for name in found)
    assert both["models"]["sft"].keys() == alone["models"]["sft"].keys()
    assert [note for note in both["notes"] if "other" in note] == [
        "audit set other: no counterfactual of kind removal, background: that rate and the causal score are left out"
    ]
    frame = read_frame(make_context("audit").folder / "predictions.parquet")
    assert set(frame["kind"]) > {"other/control", "other/transplant", "factual", "control"}
    assert (frame.groupby(["model", "kind"])["id"].nunique() == frame.groupby(["model", "kind"]).size()).all()
    aligned = frame[frame["model"] == "aligned"]
    assert judgements(predictions_of(aligned, "other"))["kind"].value_counts().to_dict() == {
        "control": 24, "transplant": 24
    }  # fmt: skip


def test_a_set_with_all_kinds_has_a_causal_score_from_its_own_pairs(
    make_context: Make, painted: Path, pictures: list[Any], tmp_path: Path
) -> None:
    kinds = ["removal", "control", "transplant", "background"]
    context = make_context("audit", audit=settings(write_set(painted, tmp_path / "other", kinds, shade=2)))
    models = audit_stage.run(context)["models"]
    assert models["aligned"]["sets"]["other"]["causal_score"] == 1
    assert models["sft"]["sets"]["other"]["removal_normal_rate"] == 0
    frame = read_frame(context.folder / "predictions.parquet").query("model == 'aligned'").copy()
    hit = (frame["kind"] == "other/removal").to_numpy()
    frame.loc[hit, "diagnosis"] = pd.Series([["polyp"]] * int(hit.sum()), index=frame.index[hit])
    changed = audit_model(frame, resamples=50)
    assert changed["sets"]["other"]["removal_normal_rate"] == 0 and changed["sets"]["other"]["causal_score"] == 0.75
    assert changed["removal_normal_rate"] == 1 and changed["causal_score"] == 1


def test_every_model_is_asked_once_about_an_image_that_lies_in_several_sets(
    make_context: Make, painted: Path, pictures: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    kinds = ["removal", "control", "transplant", "background"]
    copy = write_set(painted, tmp_path / "copy", kinds)
    mixed = replace(write_set(painted, tmp_path / "mixed", ["removal"], shade=2), name="mixed")
    again = replace(mixed, name="again")
    audit_stage.run(make_context("audit", audit=settings()))
    alone = Counter(pictures)
    pictures.clear()
    context = make_context("audit", audit=settings(copy, mixed, again))
    models = audit_stage.run(context)["models"]
    more = Counter(pictures) - alone
    assert alone - Counter(pictures) == Counter() and set(more.values()) == {1}
    assert Counter(role for role, _ in more) == dict.fromkeys(("sft", "aligned"), 24)
    for values in models.values():
        assert {name: values[name] for name in values["sets"]["other"]} == values["sets"]["other"]
        assert values["sets"]["again"] == values["sets"]["mixed"]
    frame = read_frame(context.folder / "predictions.parquet").query("model == 'sft'")
    said = frame.set_index(["kind", "id"])["completion"]
    assert (said["other/background"] == said["background"]).all()
    ids = [case.id for case in read_case_set(copy.pairs).cases if case.intervention == "removal"]
    assert frame[frame["kind"] == "other/removal"]["id"].tolist() == ids


@pytest.mark.parametrize("kill_at", [60, 110, 140])
def test_an_audit_with_sets_that_was_killed_asks_only_what_is_missing(
    make_context: Make, painted: Path, pictures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:  # fmt: skip
    kinds = ["removal", "control"]
    sets = [write_set(painted, tmp_path / "copy", kinds),
            replace(write_set(painted, tmp_path / "dark", kinds, shade=2), name="dark")]  # fmt: skip
    context = make_context("audit", audit=settings(*sets, models=["aligned"], background_blur=0.2))
    audit_stage.run(context)
    results = [context.folder / name for name in ("predictions.parquet", "metrics.json")]
    whole, total = [path.read_bytes() for path in results], len(pictures)
    for path in context.folder.rglob("*.*"):
        if path.is_file():
            path.unlink()
    pictures.clear()
    real = predict.generate

    def killed(*arguments: Any, **options: Any) -> Any:
        if len(pictures) >= kill_at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "generate", killed)
        audit_stage.run(context)
    assert kill_at <= len(pictures) < total
    audit_stage.run(context)
    assert len(pictures) == total
    assert [path.read_bytes() for path in results] == whole


def test_a_background_blur_keeps_what_the_lesion_tells(make_context: Make, pictures: list[Any]) -> None:
    result = audit_stage.run(make_context("audit", audit=settings(background_blur=0.5)))
    name = "background_blur_keep_rate"
    aligned, sft = result["models"]["aligned"], result["models"]["sft"]
    assert aligned[name] == aligned[f"{name}_given_correct"] == 1 and aligned[f"{name}_n"] == 24
    assert sft[name] < 0.5 and aligned[f"{name}_ci"][0] > sft[f"{name}_ci"][1]
    plain = audit_stage.run(make_context("audit", audit=settings()))
    assert not any(key.startswith("background_blur") for key in plain["models"]["aligned"])
    assert plain["models"]["aligned"]["causal_score"] == aligned["causal_score"]


def test_a_limit_bounds_the_blurred_images_and_the_sets_and_asks_about_all_they_are_compared_with(
    make_context: Make, painted: Path, pictures: list[Any], tmp_path: Path
) -> None:
    item = write_set(painted, tmp_path / "other", ["removal", "control"], shade=2)
    context = make_context("audit", audit=settings(item, models=["aligned"], background_blur=0.2, limit=7))
    result = audit_stage.run(context)["models"]["aligned"]
    assert result["background_blur_keep_rate_n"] == result["sets"]["other"]["removal_normal_rate_n"] == 7
    frame = read_frame(context.folder / "predictions.parquet")
    unedited = set(frame[frame["kind"] == "factual"]["id"])
    blurred = frame[frame["kind"] == "background_blur"]["id"]
    plain = frame[frame["kind"] == "spots"]["id"]
    assert set(blurred) <= unedited and not set(blurred) <= set(plain)


def test_a_set_that_is_not_there_is_an_error_that_names_it(make_context: Make, tmp_path: Path) -> None:
    item = AuditSet("unseen_fill", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"audit\.sets, 'unseen_fill'.*nowhere has no metadata\.jsonl"):
        audit_stage.run(make_context("audit", audit=settings(item)))


def test_a_set_without_the_split_or_of_other_cases_is_refused(
    make_context: Make, painted: Path, tmp_path: Path
) -> None:
    item = write_set(painted, tmp_path / "train", ["removal"], split="train")
    with pytest.raises(ValueError, match=r"has counterfactuals of train only.*of the run that made audit set 'other'"):
        audit_stage.run(make_context("audit", audit=settings(item)))
    item = write_set(painted, tmp_path / "strange", ["removal"], counterfactual_of="zzz")
    with pytest.raises(ValueError, match=r"'zzz' is not in .* audit set 'other' is of another case set"):
        audit_stage.run(make_context("audit", audit=settings(item)))


def test_a_set_that_lost_an_image_is_an_error_before_any_model_is_asked(
    make_context: Make, painted: Path, pictures: list[Any], tmp_path: Path
) -> None:
    item = write_set(painted, tmp_path / "other", ["removal"])
    next((tmp_path / "other" / "images").glob("*.png")).unlink()
    with pytest.raises(FileNotFoundError, match="no such image"):
        audit_stage.run(make_context("audit", audit=settings(item)))
    assert pictures == []
