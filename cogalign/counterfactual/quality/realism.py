"""How far counterfactuals lie from real normal pictures in a frozen encoder's space. Pure on arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.quality.probes import FARTHEST, Estimate, Features

NEIGHBOURS = 5
RARE = 0.95
"""Quantile of the normals' own distances that is 1."""
SUBSETS = 50
SUBSET_SIZE = 100
BLOCKS = 20
"""Blocks of groups of which one is left out in turn for the interval of KID."""
Z = 1.959964


@dataclass(frozen=True)
class Scale:
    """Means and deviations (d) by which features are standardised."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, reference: Features) -> Scale:
        """From a reference set, n x d."""
        values = np.asarray(reference, dtype=np.float32)
        return cls(values.mean(axis=0), values.std(axis=0) + np.float32(1e-6))

    def apply(self, features: Features) -> NDArray[np.float32]:
        """Standardised features, cut at `FARTHEST` deviations: one that hardly varies must not decide alone."""
        standard = (np.asarray(features, dtype=np.float32) - self.mean) / self.deviation
        cut: NDArray[np.float32] = np.clip(standard, -FARTHEST, FARTHEST)
        return cut


class Normals:
    """Real normal pictures as a reference: distances to them in units of what they have among themselves.

    A picture's distance is the mean Euclidean distance to its `NEIGHBOURS` nearest normals of other groups, on features
    standardised over the normals. The unit is the 95 % quantile of the normals' own distances, their own group left out.
    Cosines would hide what lies far off in its own direction: in a thousand dimensions all are nearly orthogonal.

    Args:
        features: n x d.
        groups: n.
    """

    def __init__(self, features: Features, groups: Sequence[str]) -> None:
        values = np.asarray(features, dtype=np.float32)
        self._groups = np.asarray(groups, dtype=str)
        self._scale = Scale.of(values)
        self._points = self._scale.apply(values)
        self.own = self._distances(self._points, self._groups)
        self.unit = float(np.quantile(self.own, RARE)) or 1e-6

    @classmethod
    def of(cls, features: Features, groups: Sequence[str]) -> Normals | None:
        """The reference, or None where there are too few normals of different groups for one."""
        return cls(features, groups) if len(set(groups)) > 2 * NEIGHBOURS else None

    def distance(self, features: Features, groups: Sequence[str]) -> NDArray[np.float64]:
        """Distances of pictures (n x d) to the normals of other groups: 1 is like a rare normal."""
        if not len(features):
            return np.zeros(0)
        values = self._scale.apply(features)
        return self._distances(values, np.asarray(groups, dtype=str)) / self.unit

    def _distances(self, points: NDArray[np.float32], groups: NDArray[Any]) -> NDArray[np.float64]:
        result = np.empty(len(points))
        squares = (self._points**2).sum(axis=1)
        for start in range(0, len(points), 512):
            rows = slice(start, start + 512)
            own = (points[rows] ** 2).sum(axis=1)
            apart = np.sqrt(np.maximum(own[:, None] + squares[None] - 2.0 * points[rows] @ self._points.T, 0.0))
            apart[groups[rows, None] == self._groups[None]] = np.inf
            nearest = np.partition(apart, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
            # A group may hold nearly all normals: the mean is then over those of other groups that are there.
            there = np.isfinite(nearest)
            total = np.where(there, nearest, 0.0).sum(axis=1)
            result[rows] = total / np.maximum(there.sum(axis=1), 1)
        return result


def kid(
    fakes: Features, reals: Features, fake_groups: Sequence[str], real_groups: Sequence[str], *, seed: int = 0
) -> Estimate | None:
    """Kernel inception distance of two sets of features, by torchmetrics: 0 for two samples of one distribution.

    Binkowski et al. 2018: squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, unbiased, the mean over
    random subsets; here on standardised features (mean and deviation of the reals) of the encoder of the recipe. The 95 %
    interval is a jackknife over blocks of groups, since subsets that overlap say nothing of the sample's own chance.

    Args:
        fakes: n x d.
        reals: m x d.
        fake_groups: n.
        real_groups: m.
        seed: of the subsets.

    Returns:
        None with fewer than 20 pictures in one of the sets.
    """
    if min(len(fakes), len(reals)) < 20:
        return None
    scale = Scale.of(reals)
    real, fake = scale.apply(reals), scale.apply(fakes)
    value = _kid(fake, real, seed)
    left_out = []
    blocks = [_blocks(groups, seed) for groups in (fake_groups, real_groups)]
    for block in range(BLOCKS):
        rest = [part[which != block] for part, which in zip((fake, real), blocks, strict=True)]
        if min(len(part) for part in rest) >= 10:
            left_out.append(_mmd(rest[0], rest[1]))
    spread = np.asarray(left_out)
    error = float(np.sqrt((len(spread) - 1) / len(spread) * ((spread - spread.mean()) ** 2).sum()))
    return Estimate(value, value - Z * error, value + Z * error, len(fakes))


def _kid(fake: NDArray[np.float32], real: NDArray[np.float32], seed: int) -> float:
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        size = min(SUBSET_SIZE, len(fake), len(real))
        metric = KernelInceptionDistance(torch.nn.Identity(), subsets=SUBSETS, subset_size=size)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(fake), real=False)
        return float(metric.compute()[0])


def _mmd(fake: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    """The same unbiased estimate on all rows, for sets of different sizes."""
    degree = fake.shape[1]
    own = []
    for part in (fake, real):
        kernel = (part @ part.T / degree + 1.0) ** 3
        own.append((float(kernel.sum()) - float(np.trace(kernel))) / (len(part) * (len(part) - 1)))
    return own[0] + own[1] - 2.0 * float(((fake @ real.T / degree + 1.0) ** 3).mean())


def _blocks(groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A block for each row: groups dealt to `BLOCKS` blocks at random."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(len(names)) % BLOCKS
    blocks: NDArray[np.int64] = dealt[index]
    return blocks
