"""What is logged and kept of a rollout; metrics have TRL's names. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cogalign.data.case import Case
from cogalign.generation.hf import Completion, decode
from cogalign.grpo.experience import LEARNED, Slice
from cogalign.models.load import LoadedModel


def length_metrics(lengths: Tensor, finished: Tensor) -> dict[str, float]:
    """Lengths of the completions in tokens [N], and the share that was cut off at the length limit.

    Args:
        lengths: [N].
        finished: [N], whether a completion ended by itself.
    """
    ended = lengths[finished] if bool(finished.any()) else torch.zeros(1)
    return {
        "completions/mean_length": float(lengths.double().mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/mean_terminated_length": float(ended.double().mean()),
        "completions/min_terminated_length": float(ended.min()),
        "completions/max_terminated_length": float(ended.max()),
        "completions/clipped_ratio": float((~finished).double().mean()),
    }


def reward_metrics(
    grouped: Tensor, single: Tensor, names: Sequence[str], seconds: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Mean reward, mean spread within the groups [P, G], and of each reward [N, R] mean, spread, missing share and time.

    A NaN is a reward that is not known; it is left out of means and spreads, and `missing` is the share of them.

    Args:
        grouped: Total rewards [P, G].
        single: Single rewards [N, R].
        names: R names.
        seconds: Time that each reward took; one that is not named here has no `time`.
    """
    squares = (grouped - grouped.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    spread = (squares / ((~grouped.isnan()).sum(dim=1) - 1).clamp(min=0)).sqrt()  # 0 / 0, so NaN, with one known
    metrics = {"reward": float(grouped.nanmean()), "reward_std": float(spread.nanmean())}
    for index, name in enumerate(names):
        values = single[:, index]
        known = values[~values.isnan()]
        metrics[f"rewards/{name}/mean"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"rewards/{name}/std"] = float(known.std()) if len(known) > 1 else 0.0
        metrics[f"rewards/{name}/missing"] = float(values.isnan().float().mean())
        if seconds is not None and name in seconds:
            metrics[f"rewards/{name}/time"] = seconds[name]
    return metrics


def sample_rows(
    cases: Sequence[Case], images: Sequence[Image.Image], completions: Sequence[Completion], group: int, limit: int = 8
) -> list[dict[str, Any]]:
    """Rows of a table of samples: the first completion of at most `limit` prompts, spread over the step."""
    stride = max(1, -(-len(cases) // limit))
    return [
        {
            "image": images[index],
            "id": cases[index].id,
            "intervention": cases[index].intervention or "factual",
            "findings": ", ".join(cases[index].findings),
            "completion": completions[index * group].text,
        }
        for index in range(0, len(cases), stride)
    ]


def batch_of(loaded: LoadedModel, part: Slice) -> dict[str, Any]:
    """An optimizer step's completions with all that the loss was made of, to look at afterwards.

    Returns:
        `micros.<number>.<name>`: ids of the cases and texts of the completions (G a case, side by side), and tensors.
    """
    micros = {}
    for number, micro in enumerate(part.micros):
        tensors = {name: getattr(micro, name) for name in LEARNED} | {"ids": micro.rollout.ids}
        micros[str(number)] = {
            "cases": [draw.case.id for draw in micro.draws],
            "completions": [completion.text for completion in decode(loaded, micro.rollout)],
            **{name: value for name, value in tensors.items() if value is not None},
        }
    return {"micros": micros, "metrics": dict(part.metrics)}
