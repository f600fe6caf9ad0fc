"""Demonstrations: in each group some completions are the case's own report instead of the policy's.

A group whose completions are all wrong has no spread, so it teaches nothing; where the policy is sure of a shortcut, that is
every group that contradicts it. A demonstration is right by construction: its advantage is positive exactly where the
policy's own completions fall short, and zero where all of them are right. It was not sampled by the policy; its ratio starts
at 1 like that of every completion, as in the off-policy half of LUFFY (arXiv 2504.14945) without its reshaping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cogalign.generation.sampling import Rollout
from cogalign.grpo.experience import joined, rows_of
from cogalign.models.prompts import pad_completions


def with_demonstrations(rollout: Rollout, answers: Sequence[Sequence[int]], count: int, pad: int) -> Rollout:
    """The completions with `count` demonstrations behind those of each prompt.

    Args:
        rollout: of P prompts, S completions each, sampled by this process.
        answers: token ids of the P reports, closed by the end-of-sequence token.
        count: demonstrations a prompt.
        pad: token id of the padding.

    Returns:
        P * (S + count) completions, in the order of the prompts.

    Raises:
        ValueError: numbers do not fit, or another engine sampled (it gives no log-probability of a demonstration).
    """
    prompts, device = len(answers), rollout.ids.device
    if prompts == 0 or len(rollout.ids) % prompts:
        raise ValueError(f"found {len(rollout.ids)} completions and {prompts} reports, wanted as many for each report")
    if rollout.logps is not None:
        raise ValueError("grpo.demonstrations: found completions of another engine, wanted sampler hf")
    sampled = len(rollout.ids) // prompts
    ids, mask = pad_completions([answer for answer in answers for _ in range(count)], pad)
    told = Rollout(ids.to(device), mask.to(rollout.mask), torch.ones(len(ids), dtype=torch.bool, device=device))
    places = torch.arange(len(rollout.ids) + len(ids), device=device)
    own, given = places[: len(rollout.ids)].view(prompts, sampled), places[len(rollout.ids) :].view(prompts, count)
    return rows_of(joined([rollout, told], pad), torch.cat([own, given], 1).flatten())


def without_demonstrations(values: Tensor, size: int, count: int) -> Tensor:
    """The rows of the policy's own completions.

    Args:
        values: [groups * size, ...], a row a completion.
        size: G, completions of a group, demonstrations included.
        count: demonstrations of a group; they are its last.
    """
    return values.unflatten(0, (-1, size))[:, : size - count].flatten(0, 1)
