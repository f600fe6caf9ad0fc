"""The temperature and the map from probability to expected Dice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.segmenter.calibration import PIXELS, cross_entropy, fit_confidence, fit_temperature, sample_pixels


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_finds_the_temperature_by_which_logits_are_too_sharp(true: float) -> None:
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, 40_000)
    truth = (rng.random(40_000) < 1 / (1 + np.exp(-honest))).astype(np.float32)
    assert fit_temperature((honest * true).astype(np.float32), truth) == pytest.approx(true, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_temperature_never_makes_the_likelihood_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.uniform(0.5, 6), 500).astype(np.float32)
    truth = (rng.random(500) < 0.4).astype(np.float32)
    assert cross_entropy(logits, truth, fit_temperature(logits, truth)) <= cross_entropy(logits, truth) + 1e-6


def test_pixels_of_one_class_teach_no_temperature() -> None:
    assert fit_temperature(np.ones(5, np.float32), np.zeros(5, np.float32)) == 1.0
    assert fit_temperature(np.ones(0, np.float32), np.zeros(0, np.float32)) == 1.0


def test_the_map_rises_and_is_a_mean_of_what_was_seen() -> None:
    rng = np.random.default_rng(2)
    probability = rng.uniform(0.5, 1, 200)
    dice = np.clip(probability**2 + rng.normal(0, 0.1, 200), 0, 1)
    x, y = fit_confidence(probability.tolist(), dice.tolist())
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) >= 0).all()
    fitted = np.interp(probability, x, y)
    assert fitted.mean() == pytest.approx(dice.mean(), abs=1e-6)
    assert np.abs(fitted - probability**2).mean() < 0.05


def test_too_few_masks_leave_the_probability_as_it_is() -> None:
    assert fit_confidence([0.5, 0.9], [0.1, 0.2]) == ((0.0, 1.0), (0.0, 1.0))


def test_sampled_pixels_keep_their_truth_and_come_once() -> None:
    logits = np.arange(100 * 100, dtype=np.float32).reshape(100, 100)
    values, truth = sample_pixels(logits, logits > 5000, np.random.default_rng(0))
    assert len(values) == len(set(values.tolist())) == PIXELS
    assert ((values > 5000) == (truth > 0)).all()
