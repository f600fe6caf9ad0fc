"""The random numbers of sampling, drawn for a whole step: what a prompt gets does not depend on who samples it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which prompts of a larger set are sampled here: a micro-batch's, a rank's, or all of them.

    Attributes:
        places: place of each of the P prompts in the set.
        whole: prompts of the set.
    """

    places: Sequence[int]
    whole: int

    @classmethod
    def of_all(cls, prompts: int) -> Share:
        """All prompts of a set that is not divided."""
        return cls(range(prompts), prompts)


class Uniforms:
    """One number in [0, 1) for each completion of a set of prompts and each token, in the order of the tokens.

    Whoever samples a part of the set draws the numbers of all of it from a generator with the same seed and takes its
    own, so that completions depend neither on the number of ranks nor on the size of the micro-batches.
    """

    def __init__(self, generator: torch.Generator | None, device: torch.device, share: Share, group: int) -> None:
        """Begin with the first token.

        Args:
            generator: on `device`; None for torch's own.
            device: where the numbers are drawn.
            share: the prompts that are sampled here.
            group: completions of a prompt.
        """
        self._generator, self._device, self._total = generator, device, share.whole * group
        first = torch.tensor(list(share.places), device=device)[:, None] * group
        self._rows = (first + torch.arange(group, device=device)).flatten()

    def next(self) -> Tensor:
        """Numbers [P * G] of the next token, float64, those of a prompt side by side."""
        drawn = torch.rand(self._total, generator=self._generator, device=self._device, dtype=torch.float64)
        return drawn[self._rows]
