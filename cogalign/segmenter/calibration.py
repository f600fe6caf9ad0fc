"""What the validation images teach about the net's certainty: a temperature, and the Dice to expect of a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

RANGE = (0.2, 5.0)
"""Temperatures that are tried."""
PIXELS = 4096
"""Pixels an image that the temperature is fitted on; neighbours tell the same."""

Floats = NDArray[np.float32]


def sample_pixels(logits: Floats, truth: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """At most `PIXELS` logits of an image [H, W] and their truth (0 or 1), drawn without replacement."""
    count = min(PIXELS, logits.size)
    chosen = rng.choice(logits.size, count, replace=False)
    return logits.ravel()[chosen].astype(np.float32), truth.ravel()[chosen].astype(np.float32)


def cross_entropy(logits: Floats, truth: Floats, temperature: float = 1.0) -> float:
    """Mean negative log likelihood (nats) of the truth under logits over the temperature."""
    scaled = logits.astype(np.float64) / temperature
    return float(np.mean(np.logaddexp(0.0, scaled) - truth * scaled))


def fit_temperature(logits: Floats, truth: Floats) -> float:
    """The temperature in `RANGE` with the least cross-entropy (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    Args:
        logits: [n], of pixels.
        truth: [n], 0 or 1.
    """
    if len(logits) == 0 or truth.min() == truth.max():
        return 1.0  # one class alone says nothing of the certainty
    found = minimize_scalar(
        lambda log: cross_entropy(logits, truth, float(np.exp(log))),
        bounds=(float(np.log(RANGE[0])), float(np.log(RANGE[1]))),
        method="bounded",
    )
    return float(np.exp(found.x))


def fit_confidence(probability: Sequence[float], dice: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of the monotone map from the mean probability inside a mask to its expected Dice (isotonic regression).

    Args:
        probability: mean probability inside each mask of validation.
        dice: the Dice that it reached.

    Returns:
        Rising probabilities, and Dice; with fewer than three masks the map is the identity.
    """
    if len(probability) < 3:
        return (0.0, 1.0), (0.0, 1.0)
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(probability, dice)
    return tuple(float(x) for x in model.X_thresholds_), tuple(float(y) for y in model.y_thresholds_)
