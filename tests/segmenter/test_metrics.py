"""Dice, IoU, boundary F1 and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.segmenter.metrics import boundary_f1, interval_by_group, overlap, summary


def disc(side: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - y, columns - x) < radius


def of(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    dice, iou = overlap(torch.from_numpy(predicted)[None, None], torch.from_numpy(truth)[None, None])
    return float(dice[0]), float(iou[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_dice_and_iou_are_what_their_definitions_say(seed: int, first: float, second: float) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random((9, 11)) < first, rng.random((9, 11)) < second
    both, either = (predicted & truth).sum(), (predicted | truth).sum()
    dice, iou = of(predicted, truth)
    total = predicted.sum() + truth.sum()
    assert dice == pytest.approx(2 * both / total if total else 1.0, abs=1e-6)
    assert iou == pytest.approx(both / either if either else 1.0, abs=1e-6)


def test_each_image_of_a_batch_has_its_own_dice() -> None:
    predicted = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    truth = predicted.clone()
    predicted[0, 0, :2] = truth[0, 0, :2] = True
    predicted[1, 0, :2] = truth[1, 0, 1:3] = True
    assert overlap(predicted, truth)[0].tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_boundary_f1_of_like_masks_is_1_and_of_far_ones_0() -> None:
    mask = disc(80, 40, 40, 15)
    assert boundary_f1(mask, mask) == 1.0
    assert boundary_f1(disc(80, 15, 15, 8), disc(80, 62, 62, 8)) == 0.0


def test_boundary_f1_forgives_what_lies_within_the_tolerance() -> None:
    truth, shifted = disc(200, 100, 100, 40), disc(200, 100, 102, 40)  # 0.0075 of the diagonal are 2.1 pixels
    assert boundary_f1(shifted, truth) == 1.0
    assert boundary_f1(disc(200, 100, 106, 40), truth) < 0.7
    assert boundary_f1(disc(200, 100, 106, 40), truth, tolerance=0.03) == 1.0


def test_boundary_f1_of_empty_masks() -> None:
    empty, some = np.zeros((20, 20), bool), disc(20, 10, 10, 4)
    assert boundary_f1(empty, empty) == 1.0
    assert boundary_f1(empty, some) == boundary_f1(some, empty) == 0.0


def test_the_images_border_is_no_boundary_of_a_lesion_cut_by_it() -> None:
    left, wider = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    left[:, :20], wider[:, :21] = True, True
    assert boundary_f1(left, wider) == 1.0


def test_an_interval_resamples_groups_and_not_images() -> None:
    rng = np.random.default_rng(0)
    per_group = rng.random(20)
    values = np.repeat(per_group, 10).tolist()
    groups = np.repeat([f"g{i}" for i in range(20)], 10).tolist()
    wide = interval_by_group(values, groups, 400)
    narrow = interval_by_group(values, [str(i) for i in range(200)], 400)
    assert wide is not None
    assert narrow is not None
    assert wide[0] < per_group.mean() < wide[1]
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert interval_by_group(values, groups, 400) == wide


def test_one_group_has_no_interval() -> None:
    assert interval_by_group([0.1, 0.9], ["a", "a"], 50) is None


def test_a_summary_keeps_lesions_and_normal_images_apart() -> None:
    lesion = {"normal": False, "iou": 0.5, "boundary_f1": 0.4, "confidence": 0.7}
    rows = [
        {**lesion, "group": "a", "dice": 0.0},
        {**lesion, "group": "b", "dice": 0.8},
        {"normal": True, "group": "c", "false_positive": True, "confidence": 0.2},
        {"normal": True, "group": "d", "false_positive": False, "confidence": 0.0},
    ]
    found = summary(rows, 100)
    assert (found["n"], found["missed"], found["dice"]) == (2, 1, pytest.approx(0.4))
    assert (found["normal_n"], found["normal_false_positive"]) == (2, 0.5)
    assert "normal_false_positive" not in summary(rows[:2], 100)
