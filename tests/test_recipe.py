"""Recipes: YAML to typed settings, and errors that help."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.recipe import USUAL_STAGES, Recipe
from cogalign.recipe_file import build_recipe, nearest_key, read_recipe, recipe_keys, recipe_yaml

ROOT = Path(__file__).resolve().parents[1]


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_gives_typed_settings_and_defaults_for_the_rest(tmp_path: Path) -> None:
    recipe = read_recipe(
        write(tmp_path, "name: mine\ndata:\n  phantom: {train: 10}\nsft: {learning_rate: 1e-4, lora: null}\n")
    )
    assert recipe.name == "mine"
    assert recipe.data.phantom is not None
    assert (recipe.data.phantom.train, recipe.data.phantom.size) == (10, 128)
    assert recipe.sft.learning_rate == 1e-4
    assert recipe.sft.lora is None
    assert recipe.stages == list(USUAL_STAGES)


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "")) == Recipe()


def test_a_resolved_recipe_is_read_back_as_it_was(tmp_path: Path) -> None:
    recipe = build_recipe(
        {"data": {"imports": [{"card": "kvasir-seg", "path": "Kvasir-SEG"}]}, "grpo": {"mix": {"removal": 0.5}}}, "x"
    )
    assert read_recipe(write(tmp_path, recipe_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft: {stepz: 3}", "unknown key `sft.stepz`; did you mean `sft.steps`?"),
        ("grop: {steps: 3}", "unknown key `grop`; did you mean `grpo`?"),
        ("learning_rate: 1e-4", "unknown key `learning_rate`; did you mean `sft.learning_rate`?"),
        ("sft: {lora: {rank: 3, alhpa: 3}}", "unknown key `sft.lora.rank`"),
        ("data: {phantom: {confuonding: 0.5}}", "did you mean `data.phantom.confounding`?"),
        ("sft: {steps: ten}", "sft.steps: found 'ten' (a text), wanted a whole number"),
        ("sft: {steps: 1.5}", "sft.steps: found 1.5 (a number), wanted a whole number"),
        ("sft: {freeze_vision: 1}", "sft.freeze_vision: found 1 (a number), wanted true or false"),
        ("seed: true", "seed: found True (true or false), wanted a whole number"),
        ("sft: 3", "sft: found 3 (a number), wanted keys and values"),
        ("sft:", "sft: found nothing (null), wanted keys and values"),
        ("counterfactual: {fill: gausian_blur}", "did you mean gaussian_blur?"),
        ("counterfactual: {quality: {batch_size: 0}}", "counterfactual.quality.batch_size: found 0"),
        ("counterfactual: {feather: -0.1}", "counterfactual.feather: found -0.1"),
        ("counterfactual: {masks: {evidence: [box, expert]}}", "in this order"),
        ("counterfactual: {interventions: [removal, 3]}", "counterfactual.interventions[1]: found 3"),
        ("sft: {steps: 0}", "sft.steps: found 0, wanted at least 1"),
        (
            "sft: {projector_learning_rate: 1e-3}",
            "sft.projector_learning_rate: found 0.001, wanted null, as sft.freeze",
        ),
        ("grpo: {projector_learning_rate: 0.0}", "grpo.projector_learning_rate: found 0.0, wanted null or a positive"),
        ("grpo: {drafts: true, sampler: vllm}", "grpo.drafts: found True, wanted false with sampler vllm"),
        ("stages: [grpo, sft]", "stages: found ['grpo', 'sft'], wanted the order ['sft', 'grpo']"),
        ("stages: [sfft]", "stages: found ['sfft']"),
        ("data: {imports: [{card: kvasir-seg}]}", "data.imports[0].path is missing"),
        ("- a\n- b", "found a list, wanted keys such as"),
        ("sft: {steps: 3", "not valid YAML"),
        ("seed: 1\nseed: 2", "the key 'seed' is there twice"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_an_error_names_file_key_and_the_nearest_valid_thing(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=r"recipes\.yaml: no such recipe; did you mean .*recipe\.yaml\?"):
        read_recipe(tmp_path / "recipes.yaml")


def test_a_folder_or_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder"):
        read_recipe(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize("key", ["sft.steps", "sft.lora.r", "data.phantom.size", "grpo.mix.removal", "tracking.wandb"])
def test_keys_of_all_levels_are_known(key: str) -> None:
    assert key in recipe_keys()


@settings(max_examples=50, deadline=None)
@given(key=st.sampled_from(recipe_keys()), place=st.integers(0, 40))
def test_a_key_with_a_letter_too_few_finds_a_key(key: str, place: int) -> None:
    place %= len(key)
    assert nearest_key(key[:place] + key[place + 1 :], recipe_keys()) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["steps", "lora", "r", "x"]), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(sorted(asdict(Recipe()))), value=JSON)
def test_any_value_gives_a_recipe_or_one_clear_error(key: str, value: object) -> None:
    try:
        assert isinstance(build_recipe({key: value}, "file"), Recipe)
    except ValueError as error:
        assert str(error).startswith("file: ")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_packaged_recipes_are_valid_and_say_their_name(path: Path) -> None:
    assert read_recipe(path).name
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_waiting_for_a_vllm_server_is_shorter_than_what_counts_as_a_hang() -> None:
    build_recipe({"trainer": {"timeout": 60}}, "r.yaml")
    with pytest.raises(ValueError, match=r"trainer.timeout: found 60.*request_timeout and start_timeout \(600\)"):
        build_recipe({"trainer": {"timeout": 60}, "grpo": {"sampler": "vllm"}}, "r.yaml")
