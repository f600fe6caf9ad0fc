"""Stage 1 made before, or gone on with: what is checked, what is told, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cogalign.models.load import load_model
from cogalign.pipeline import run_recipe
from cogalign.recipe import LoraSettings, ModelSettings, Recipe
from cogalign.sft.module import SftModule
from cogalign.sft.stage import prepare_model, run
from tests.sft.test_stage import context, rows, stop_at

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, phantom_set: Path) -> Recipe:
    """A finished run of stage 1 with an adapter, in which each step has all cases and validates on none."""
    recipe = context(tmp_path_factory.mktemp("made"), phantom_set, steps=2, validate_every=0).recipe
    run_recipe(recipe, ["sft"])
    return recipe


@pytest.fixture
def adapter(made: Recipe, tmp_path: Path) -> Path:
    """A copy of its adapter, which a test may damage."""
    return Path(shutil.copytree(made.run_dir / "sft/adapter", tmp_path / "copied/adapter"))


def test_a_checkpoint_is_used_as_it_is_and_tells_where_it_is_from(
    made: Recipe, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.run_dir / "sft/adapter"
    new = context(tmp_path, phantom_set, checkpoint=str(folder))
    monkeypatch.setattr(SftModule, "training_step", None)  # nothing is trained
    found = run_recipe(new.recipe, ["sft"])["stages"]["sft"]["metrics"]
    told = json.loads((made.run_dir / "sft/stage.json").read_text())
    assert found["checkpoint"] == str(folder) and found["kind"] == "adapter"
    assert found["trained_parameters"] == told["metrics"]["trainable_parameters"]
    assert found["made_by"]["digest"] == told["digest"] and found["made_by"]["loss"] == told["metrics"]["loss"]
    assert found["made_by"]["seeds"] == {"run": 1} and found["made_by"]["steps"] == 2
    assert new.checkpoint("sft") == folder and not (tmp_path / "sft/adapter").exists()


def test_a_whole_model_is_a_checkpoint_too(phantom_set: Path, tmp_path: Path) -> None:
    run(context(tmp_path / "made", phantom_set, steps=1, lora=None, validate_every=0))
    folder = tmp_path / "made/sft/model"
    found = run(context(tmp_path / "new", phantom_set, checkpoint=str(folder)))
    base = load_model(ModelSettings(name="tiny-random", dtype="float32"), device="cpu").model
    assert found["kind"] == "model" and found["parameters"] == sum(p.numel() for p in base.parameters())
    assert "made_by" not in found  # no stage.json tells
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    weights[name][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"sft.checkpoint: .*weight '.*mlp.*' is not finite"):
        run(context(tmp_path / "new", phantom_set, checkpoint=str(folder)))
    again = context(tmp_path / "further", phantom_set, start=str(folder), lora=LoraSettings())
    with pytest.raises(ValueError, match=r"sft.start: .* is a whole model, but sft.lora is set; set sft.lora to null"):
        run(again)
    assert config["model_type"] == base.config.model_type


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        ("missing", r"of the weights of .*, 1 are missing, first '.*lora_A.*'; wanted the \d+ of an adapter"),
        ("unknown", r", 1 fit nowhere, first '.*other.*'; wanted"),
        ("nan", r"the weight '.*' is not finite"),
        ("shape", r"could not be opened on .*another model than model.name"),
        ("cut", r"could not be opened on .*it is damaged"),
        ("gone", r"adapter_config.json but no weights"),
    ],
)
def test_a_damaged_adapter_is_refused(
    phantom_set: Path, adapter: Path, tmp_path: Path, damage: str, wanted: str
) -> None:
    file = adapter / WEIGHTS
    weights = load_file(file)
    first = min(weights)
    if damage == "missing":
        del weights[first]
    elif damage == "unknown":
        weights["base_model.model.other.lora_A.weight"] = torch.ones(2, 2)
    elif damage == "nan":
        weights[first][0] = float("nan")
    elif damage == "shape":
        weights[first] = weights[first][:, :-1].contiguous()
    save_file(weights, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "gone":
        file.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=wanted):
        run(context(tmp_path / "new", phantom_set, checkpoint=str(adapter)))


def test_a_folder_that_is_no_checkpoint_names_the_one_below(made: Recipe, phantom_set: Path, tmp_path: Path) -> None:
    new = context(tmp_path, phantom_set, checkpoint=str(made.run_dir))
    near = rf"sft.checkpoint: found '{made.run_dir}'.*such as '{made.run_dir}/sft/adapter'"
    for ask in (lambda: run_recipe(new.recipe, ["sft"]), lambda: new.checkpoint("sft")):
        with pytest.raises(FileNotFoundError, match=near):
            ask()  # type: ignore[no-untyped-call]


def further(out: Path, data: Path, start: Path, **fields: Any) -> Any:
    return context(out, data, start=str(start), steps=2, validate_every=0, **fields)


def test_training_goes_on_from_the_start_s_weights(made: Recipe, phantom_set: Path, tmp_path: Path) -> None:
    folder = made.run_dir / "sft/adapter"
    before, bytes_before = load_file(folder / WEIGHTS), (folder / WEIGHTS).read_bytes()
    new = further(tmp_path, phantom_set, folder)
    opened = prepare_model(new.recipe)
    trained = {name: p for name, p in opened.model.named_parameters() if p.requires_grad}
    assert {name.replace(".default", "") for name in trained} == before.keys()
    assert all(torch.equal(p, before[name.replace(".default", "")]) for name, p in trained.items())
    metrics = run(new)
    assert metrics["trainable_parameters"] == sum(value.numel() for value in before.values())
    assert metrics["start"]["checkpoint"] == str(folder) and metrics["start"]["made_by"]["steps"] == 2
    after = load_file(tmp_path / "sft/adapter" / WEIGHTS)
    changed = sum(not torch.equal(after[name], before[name]) for name in before)
    assert changed > 0.9 * len(before) and (folder / WEIGHTS).read_bytes() == bytes_before
    # the same cases in the same order, with what the first run has learnt
    assert float(rows(tmp_path)[0]["loss"]) < float(rows(made.run_dir)[0]["loss"])
    load_model(new.recipe.model, new.checkpoint("sft"), device="cpu")


def test_a_training_that_goes_on_can_be_stopped_and_gone_on_with(
    made: Recipe, phantom_set: Path, tmp_path: Path
) -> None:
    folder = made.run_dir / "sft/adapter"
    whole, stopped = (
        further(tmp_path / name, phantom_set, folder, checkpoint_every=1) for name in ("whole", "stopped")
    )
    metrics = run(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, "crash")
        with pytest.raises(RuntimeError, match="power"):
            run(stopped)
    assert run(stopped) == metrics
    one, other = (made.folder / "adapter" / WEIGHTS for made in (whole, stopped))
    assert one.read_bytes() == other.read_bytes()


def test_a_projector_beside_the_adapter_is_trained_further_or_kept_as_asked(phantom_set: Path, tmp_path: Path) -> None:
    first = context(tmp_path / "made", phantom_set, steps=1, validate_every=0, freeze_projector=False)
    run(first)
    folder = tmp_path / "made/sft/adapter"
    before = load_file(folder / WEIGHTS)
    projector = {name for name in before if "lora_" not in name}
    assert projector and run(context(tmp_path / "new", phantom_set, checkpoint=str(folder)))["kind"] == "adapter"
    for frozen in (False, True):
        out = tmp_path / f"frozen-{frozen}"
        metrics = run(further(out, phantom_set, folder, freeze_projector=frozen))
        after = load_file(out / "sft/adapter" / WEIGHTS)
        assert after.keys() == before.keys()
        changed = {name for name in before if not torch.equal(after[name], before[name])}
        assert changed & projector == (set() if frozen else projector) and changed - projector
        trained = sum(value.numel() for name, value in before.items() if not (frozen and name in projector))
        assert metrics["trainable_parameters"] == trained


def test_a_start_whose_weights_do_not_fit_is_refused(phantom_set: Path, adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    del weights[min(weights)]
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"sft.start: of the weights of .*, 1 are missing"):
        run(further(tmp_path / "new", phantom_set, adapter))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"lora": LoraSettings(r=8, alpha=8, dropout=0.1)}, r"has r 4, but sft.lora.r is 8; set sft.lora.r to 4"),
        ({"lora": LoraSettings(r=4, alpha=16, dropout=0.1)}, r"has alpha 8, but sft.lora.alpha is 16"),
        ({"lora": None}, r"is an adapter, but sft.lora is null"),
        ({"freeze_projector": False}, r"holds no projector, but sft.freeze_projector is false; set it to true"),
    ],
)
def test_a_start_of_another_form_names_the_setting(
    made: Recipe, phantom_set: Path, tmp_path: Path, fields: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"sft.start: .*{wanted}"):
        run(further(tmp_path, phantom_set, made.run_dir / "sft/adapter", **fields))


def test_all_weights_go_on_from_a_whole_model(phantom_set: Path, tmp_path: Path) -> None:
    run(context(tmp_path / "made", phantom_set, steps=1, lora=None, validate_every=0))
    new = further(tmp_path / "new", phantom_set, tmp_path / "made/sft/model", lora=None)
    trained = dict(load_model(new.recipe.model, tmp_path / "made/sft/model", device="cpu").model.named_parameters())
    opened = dict(prepare_model(new.recipe).model.named_parameters())
    assert all(torch.equal(opened[name], value) for name, value in trained.items())
    assert {name for name, p in opened.items() if not p.requires_grad} == {name for name in opened if "visual" in name}
    run(new)
    assert float(rows(tmp_path / "new")[0]["loss"]) < float(rows(tmp_path / "made")[0]["loss"])


def test_checkpoint_and_start_are_not_given_together(phantom_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sft.start.*sft.checkpoint is given"):
        replace(context(tmp_path, phantom_set).recipe.sft, checkpoint="a", start="b")
