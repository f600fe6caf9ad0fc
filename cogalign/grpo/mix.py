"""Which prompts make a GRPO step: factual cases and counterfactuals, in configured shares, pairs together.

Everything is a pure function of the settings, the seed and the step's index, so that a resumed run needs the index only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import zip_longest
from math import lcm

import numpy as np

from cogalign.data.case import Case
from cogalign.recipe import PARTS, MixSettings

UNPAIRED = "factual without counterfactual"


class PromptSampler:
    """Draws the cases of a GRPO step.

    Shares: a step has a whole number of cases of each part by largest remainder; what rounding takes from a part, the
    next steps give back, so that the shares hold over time even when a share is less than one case a step.

    Coverage: each part goes through a seeded permutation of its cases, without repetition within an epoch.

    Pairs (`keep_pairs`): counterfactuals are drawn first, and the factual cases that they were made from take the
    step's factual places; places left over go to the next cases of the factual permutation. Cases of which there is no
    counterfactual in the mix (normal ones above all) would never be drawn in this way, so the factual share is divided
    between cases with and without a counterfactual by their numbers, and the latter have a permutation of their own.
    In a step each factual case is followed by its counterfactuals.

    Ranks: a step is cut into contiguous parts of equal size, one a rank.
    """

    def __init__(
        self,
        factual: Sequence[Case],
        counterfactuals: Mapping[str, Sequence[Case]],
        mix: MixSettings,
        prompts_per_step: int,
        seed: int,
        keep_pairs: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Check the arguments and divide the cases into parts.

        Args:
            factual: Cases as they are (the split `train`).
            counterfactuals: Cases by intervention; interventions that the mix does not name are not used.
            mix: Shares of the parts.
            prompts_per_step: Cases of a step over all ranks.
            seed: Seed of the permutations.
            keep_pairs: Whether factual cases come together with their counterfactuals.
            rank: This process.
            world_size: Number of processes.

        Raises:
            ValueError: a part with a share has no cases, `prompts_per_step` cannot be divided over the ranks, or `rank`
                is not one of them.
        """
        _check_ranks(prompts_per_step, rank, world_size)
        self.prompts_per_step = prompts_per_step
        self.rank = rank
        self.world_size = world_size
        self._seed = seed
        self._pools: dict[str, list[Case]] = {"factual": list(factual)}
        self._pools |= {part: list(counterfactuals.get(part, ())) for part in PARTS if part != "factual"}
        shares = {part: Fraction(str(getattr(mix, part))) for part in PARTS}
        _check_parts(shares, self._pools)
        self._used = [part for part in PARTS if part != "factual" and shares[part] > 0]
        self._pairs = keep_pairs and bool(self._used) and shares["factual"] > 0
        if self._pairs:
            self._divide_factual(shares)
        self._shares = _whole_numbers({part: share for part, share in shares.items() if share > 0})
        self._by_id = {case.id: case for case in self._pools["factual"]}
        self._permutations: dict[tuple[str, int], np.ndarray] = {}
        self._starts = [dict.fromkeys(self._shares, 0)]  # cases of each part drawn before step i, as far as known
        self._positions = [0]  # where the factual permutation stands before step i (only with pairs), as far as known

    def step(self, index: int) -> list[Case]:
        """This rank's cases of step `index` (from 0).

        Raises:
            ValueError: `index` is negative.
        """
        size = self.prompts_per_step // self.world_size
        return self.global_step(index)[self.rank * size : (self.rank + 1) * size]

    def global_step(self, index: int) -> list[Case]:
        """The cases of step `index` over all ranks."""
        if index < 0:
            raise ValueError(f"step: found {index}, wanted 0 or more")
        if not self._pairs:
            return [case for part in self._shares for case in self._drawn(part, index)]
        while len(self._positions) <= index:
            self._positions.append(self._draw_pairs(len(self._positions) - 1)[1])
        return self._draw_pairs(index)[0]

    def counts(self, index: int) -> dict[str, int]:
        """How many cases of each part of the mix step `index` has."""
        raw = self._counts(index)
        counts = {part: raw.get(part, 0) for part in PARTS}
        counts["factual"] += raw.get(UNPAIRED, 0)
        return counts

    def _divide_factual(self, shares: dict[str, Fraction]) -> None:
        """Give factual cases without a counterfactual a part of their own, with their fair share."""
        sources = {case.counterfactual_of for part in self._used for case in self._pools[part]}
        every = self._pools["factual"]
        self._pools["factual"] = [case for case in every if case.id in sources]
        self._pools[UNPAIRED] = [case for case in every if case.id not in sources]
        shares[UNPAIRED] = shares["factual"] * Fraction(len(self._pools[UNPAIRED]), len(every))
        shares["factual"] -= shares[UNPAIRED]

    def _counts(self, index: int) -> dict[str, int]:
        """Cases of each part in step `index`."""
        while len(self._starts) <= index + 1:
            before = self._starts[-1]
            added = _largest_remainder(self._shares, self.prompts_per_step, len(self._starts), before)
            self._starts.append({part: before[part] + added[part] for part in added})
        return {part: self._starts[index + 1][part] - start for part, start in self._starts[index].items()}

    def _drawn(self, part: str, index: int) -> list[Case]:
        """The cases of `part` in step `index` from its permutation."""
        count = self._counts(index).get(part, 0)
        start = self._starts[index].get(part, 0)
        return [self._at(part, position) for position in range(start, start + count)]

    def _at(self, part: str, position: int) -> Case:
        """The case at `position` of the endless sequence of a part's permutations."""
        pool = self._pools[part]
        epoch, offset = divmod(position, len(pool))
        key = (part, epoch)
        if key not in self._permutations:
            stream = [self._seed, (*PARTS, UNPAIRED).index(part), epoch]
            self._permutations.pop((part, epoch - 2), None)
            self._permutations[key] = np.random.default_rng(stream).permutation(len(pool))
        return pool[self._permutations[key][offset]]

    def _draw_pairs(self, index: int) -> tuple[list[Case], int]:
        """The cases of a step with pairs, and where the factual permutation stands after it."""
        by_part = [self._drawn(part, index) for part in self._used]
        # One of each intervention in turn, so that none has its factual cases first.
        derived = [case for row in zip_longest(*by_part) for case in row if case is not None]
        places = self._counts(index).get("factual", 0)
        chosen: dict[str, Case] = {}
        for case in derived:
            source = self._by_id.get(case.counterfactual_of or "")
            if source is not None and len(chosen) < places:
                chosen[source.id] = source
        filled, position = self._fill(places - len(chosen), set(chosen), self._positions[index])
        waiting = derived
        together: list[Case] = []
        for source in (*chosen.values(), *filled):
            together += [source, *(case for case in waiting if case.counterfactual_of == source.id)]
            waiting = [case for case in waiting if case.counterfactual_of != source.id]
        return [*together, *waiting, *self._drawn(UNPAIRED, index)], position

    def _fill(self, count: int, taken: set[str], position: int) -> tuple[list[Case], int]:
        """The next `count` cases of the factual permutation that the step does not have, and where it stands then."""
        filled: list[Case] = []
        while len(filled) < count:
            case = self._at("factual", position)
            position += 1
            # A small pool may have nothing new; then repetition is what the share asks for.
            if case.id not in taken or len(taken) >= len(self._by_id):
                taken.add(case.id)
                filled.append(case)
        return filled, position


def _whole_numbers(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Shares as whole numbers in the same proportions, so that nothing is lost by rounding."""
    scale = lcm(*(share.denominator for share in shares.values()))
    return {part: int(share * scale) for part, share in shares.items()}


def _largest_remainder(shares: Mapping[str, int], size: int, steps: int, given: Mapping[str, int]) -> dict[str, int]:
    """Divide `size` places so that after `steps` steps each part is as near as can be to its share of all places.

    Args:
        shares: Whole-number shares.
        size: Places of this step.
        steps: Steps up to this one, this one included.
        given: Places each part had before.
    """
    whole = sum(shares.values())
    due = {part: share * size * steps - whole * given[part] for part, share in shares.items()}  # in 1/whole places
    counts = {part: max(0, value // whole) for part, value in due.items()}
    while (left := size - sum(counts.values())) != 0:
        remainder = {part: due[part] - whole * counts[part] for part in shares}
        if left > 0:
            counts[max(remainder, key=remainder.__getitem__)] += 1
        else:
            counts[min((part for part in shares if counts[part]), key=remainder.__getitem__)] -= 1
    return counts


def _check_parts(shares: Mapping[str, Fraction], pools: Mapping[str, Sequence[Case]]) -> None:
    """Raise when a part with a share has no cases."""
    for part, share in shares.items():
        if share <= 0 or pools[part]:
            continue
        if part == "factual":
            raise ValueError("grpo.mix.factual: found no factual cases, wanted at least one in the split 'train'")
        others = ", ".join(f"{name} ({len(pools[name])})" for name in PARTS if name != "factual" and pools[name])
        raise ValueError(
            f"grpo.mix.{part}: found a share of {float(share):g} but no {part} counterfactuals (there are: "
            f"{others or 'none'}); put '{part}' into counterfactual.interventions and 'train' into "
            f"counterfactual.splits, or set grpo.mix.{part} to 0"
        )


def _check_ranks(prompts_per_step: int, rank: int, world_size: int) -> None:
    """Raise when a step cannot be divided over the ranks."""
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank: found {rank} of {world_size}, wanted one of 0 ... world_size - 1")
    if prompts_per_step < 1 or prompts_per_step % world_size:
        below = prompts_per_step // world_size * world_size
        nearest = [value for value in (below, below + world_size) if value > 0]
        fitting = [count for count in range(1, prompts_per_step + 1) if prompts_per_step % count == 0]
        fewer, more = [n for n in fitting if n < world_size][-1:], [n for n in fitting if n > world_size][:1]
        raise ValueError(
            f"grpo.prompts_per_step: found {prompts_per_step}, which {world_size} devices cannot share equally; "
            f"the nearest valid values are {' and '.join(map(str, nearest))}; the nearest numbers of devices "
            f"(trainer.devices x trainer.num_nodes) are {' and '.join(map(str, fewer + more)) or 'none'}"
        )
