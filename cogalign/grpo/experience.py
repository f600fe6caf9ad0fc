"""What one generation leaves behind for its updates, and how it is written into a checkpoint and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cogalign.data.case import Case
from cogalign.generation.sampling import Rollout
from cogalign.models.inputs import Inputs
from cogalign.models.prefill import Prefill

Origin = tuple[int, int, int]
"""Where a case comes from: stream (0 the mix, 1 replacements), step of the stream, place in the step."""


@dataclass(frozen=True)
class Draw:
    """A case and where it was drawn."""

    case: Case
    origin: Origin


@dataclass
class Prompts:
    """Tensors of the distinct prompts among P, and which of them each of the P is [P]."""

    inputs: Inputs
    place: Tensor
    start: Prefill | None = None
    """The distinct prompts as the policy left them, with gradient, for one use."""


@dataclass
class MicroBatch:
    """Prompts that are sampled and scored together, and what is known of their completions."""

    draws: list[Draw]
    rollout: Rollout
    prompts: Prompts | None
    """None after a checkpoint was read, and after a group was replaced: they are encoded again."""
    mask: Tensor | None = None
    """[N, T], 1 for tokens that count in the loss."""
    advantages: Tensor | None = None
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    importance: Tensor | None = None

    def __len__(self) -> int:
        """Number of completions."""
        return len(self.rollout.ids)


@dataclass
class Slice:
    """The micro-batches of one optimizer step, and what is logged of them."""

    micros: list[MicroBatch]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Experience:
    """A generation: `slices` optimizer steps' worth of completions, each used `iterations` times."""

    slices: list[Slice]
    iterations: int
    used: int = 0
    """Optimizer steps that were taken on it."""

    @property
    def current(self) -> Slice:
        """The slice of the next optimizer step: all slices once, then all of them again."""
        return self.slices[self.used % len(self.slices)]

    @property
    def finished(self) -> bool:
        """Whether every slice was used as often as it should be."""
        return self.used >= len(self.slices) * self.iterations


ROLLOUT = ("ids", "mask", "finished", "logps")
LEARNED = ("mask", "advantages", "old_logps", "ref_logps", "importance")


def save(experience: Experience) -> dict[str, Any]:
    """Plain values and tensors on the CPU; prompts are left out: they are encoded again from their cases."""
    return {
        "iterations": experience.iterations,
        "used": experience.used,
        "slices": [
            {"metrics": dict(part.metrics), "micros": [_save_micro(micro) for micro in part.micros]}
            for part in experience.slices
        ],
    }


def load(state: dict[str, Any], find: Callable[[Origin], Case], device: torch.device) -> Experience:
    """What `save` wrote, on `device`; `find` gives the case of an origin."""
    slices = []
    for part in state["slices"]:
        micros = [_load_micro(micro, find, device) for micro in part["micros"]]
        slices.append(Slice(micros, dict(part["metrics"])))
    return Experience(slices, int(state["iterations"]), int(state["used"]))


def _save_micro(micro: MicroBatch) -> dict[str, Any]:
    values = {f"rollout.{name}": getattr(micro.rollout, name) for name in ROLLOUT}
    values |= {name: getattr(micro, name) for name in LEARNED}
    saved: dict[str, Any] = {name: None if value is None else value.cpu() for name, value in values.items()}
    return {"origins": [list(draw.origin) for draw in micro.draws], **saved}


def _load_micro(state: dict[str, Any], find: Callable[[Origin], Case], device: torch.device) -> MicroBatch:
    def moved(name: str) -> Tensor | None:
        return None if state[name] is None else state[name].to(device)

    draws = []
    for stream, step, place in state["origins"]:
        origin = (int(stream), int(step), int(place))
        draws.append(Draw(find(origin), origin))
    ids, mask, finished, logps = (moved(f"rollout.{name}") for name in ROLLOUT)
    assert ids is not None and mask is not None and finished is not None
    learned = {name: moved(name) for name in LEARNED}
    return MicroBatch(draws, Rollout(ids, mask, finished, logps), None, **learned)


def joined(rollouts: Sequence[Rollout], pad: int) -> Rollout:
    """Rollouts one after the other, padded on the right to the longest."""
    longest = max(rollout.ids.shape[1] for rollout in rollouts)

    def wide(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, longest - values.shape[1]), value=fill)

    logps = [r.logps for r in rollouts]
    known = [wide(x, 0.0) for x in logps if x is not None]
    return Rollout(
        torch.cat([wide(r.ids, pad) for r in rollouts]),
        torch.cat([wide(r.mask, 0) for r in rollouts]),
        torch.cat([r.finished for r in rollouts]),
        torch.cat(known) if len(known) == len(rollouts) else None,
    )


def rows_of(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some completions of a rollout."""
    logps = None if rollout.logps is None else rollout.logps[rows]
    return Rollout(rollout.ids[rows], rollout.mask[rows], rollout.finished[rows], logps)
