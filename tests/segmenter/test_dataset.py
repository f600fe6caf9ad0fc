"""The loaders of the segmenter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cogalign.data.caseset import CaseSet, read_case_set
from cogalign.recipe import SegmenterSettings
from cogalign.segmenter.dataset import DrawSampler, PlainImages, Split, TrainImages, cases_of, read_small

SETTINGS = SegmenterSettings(side=32, batch_size=3, negatives=0.5)


@pytest.fixture
def case_set(phantom_set: Path) -> CaseSet:
    return read_case_set(phantom_set)


def test_a_split_has_cases_with_masks_and_normal_ones(case_set: CaseSet) -> None:
    split = cases_of(case_set, "train", SETTINGS)
    assert split.lesions
    assert split.normals
    assert all(case.mask_file_name and not case.is_normal for case in split.lesions)
    assert all(case.is_normal for case in split.normals)
    assert len(cases_of(case_set, "train", replace(SETTINGS, limit=3)).lesions) == 3


def test_a_split_without_masks_of_the_data_set_is_refused(case_set: CaseSet) -> None:
    with pytest.raises(ValueError, match="'train' has no image with a mask of the data sets Other"):
        cases_of(case_set, "train", replace(SETTINGS, datasets=["Other"]))
    with pytest.raises(ValueError, match="no split 'holdout'"):
        cases_of(case_set, "holdout", SETTINGS)


def test_a_counterfactual_is_no_training_image(case_set: CaseSet) -> None:
    marked = CaseSet(case_set.root, [replace(case, counterfactual_of="x") for case in case_set.cases])
    with pytest.raises(ValueError, match="no image with a mask"):
        cases_of(marked, "train", SETTINGS)


def test_the_mask_of_a_normal_image_is_empty(case_set: CaseSet) -> None:
    split = cases_of(case_set, "train", SETTINGS)
    image, mask = read_small(case_set, split.normals[0], 40)
    assert (image.shape, mask.shape) == ((40, 40, 3), (40, 40))
    assert not mask.any()
    assert read_small(case_set, split.lesions[0], 40)[1].any()


def test_all_normal_images_have_their_turn_before_one_comes_again(case_set: CaseSet) -> None:
    split = cases_of(case_set, "train", SETTINGS)
    images = TrainImages(case_set, Split(split.lesions, split.normals), replace(SETTINGS, negatives=0.2), seed=1)
    assert images.negatives == round(0.2 * len(split.lesions))
    first = len(split.lesions)
    seen = [images.case(first + place, epoch).id for epoch in range(40) for place in range(images.negatives)]
    count = len(split.normals)
    for start in range(0, len(seen) - count, count):
        assert set(seen[start : start + count]) == {case.id for case in split.normals}


def test_an_epoch_has_every_lesion_once(case_set: CaseSet) -> None:
    split = cases_of(case_set, "train", SETTINGS)
    images = TrainImages(case_set, split, SETTINGS, seed=1)
    draws = [draw for batch in DrawSampler(len(images), 1, len(images), seed=4) for draw in batch]
    assert sorted(item for item, _ in draws) == list(range(len(images)))
    assert [place for _, place in draws] == list(range(len(images)))


def test_ranks_share_the_draws_and_a_later_start_goes_on() -> None:
    whole = [draw for batch in DrawSampler(10, 4, 6, seed=2) for draw in batch]
    ranks = [list(DrawSampler(10, 2, 6, seed=2, rank=rank, world_size=2)) for rank in range(2)]
    assert [draw for pair in zip(*ranks, strict=True) for batch in pair for draw in batch] == whole
    assert [draw for batch in DrawSampler(10, 4, 6, seed=2, start=16) for draw in batch] == whole[16:]


def test_a_draw_depends_on_nothing_but_itself(case_set: CaseSet) -> None:
    split = cases_of(case_set, "train", SETTINGS)
    first, second = (TrainImages(case_set, split, SETTINGS, seed=1) for _ in range(2))
    assert first[0, 0][0].shape == (3, 32, 32)
    for draw in ((0, 5), (2, 9), (0, 40)):
        assert all(torch.equal(one, other) for one, other in zip(first[draw], second[draw], strict=True))
    assert not torch.equal(first[0, 5][0], first[0, 40][0])


def test_plain_images_are_the_files_resized(case_set: CaseSet) -> None:
    split = cases_of(case_set, "validation", SETTINGS)
    image, mask = PlainImages(case_set, split.lesions, 64)[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(case_set.image(split.lesions[0])))
    np.testing.assert_array_equal(mask[0].numpy() > 0, case_set.mask(split.lesions[0]))
