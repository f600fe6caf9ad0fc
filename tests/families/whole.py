"""What the shared path is measured against: each prompt with each completion by itself, in transformers' own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, append_completions, pad_completions
from tests.families import twins

QUESTIONS = ["What?", "Based on the image, what is the diagnosis?", "Describe what is seen in the image.", "Where?"]
Rows = list[list[Image.Image]]


@dataclass
class Batch:
    """Prompts as a batch and each by itself, with ragged completions."""

    prompt: Inputs
    alone: list[Inputs]
    ids: Tensor
    mask: Tensor
    group: int


def batch_of(loaded: LoadedModel, rows: Rows, group: int, side: str = "left", longest: int = 7) -> Batch:
    """Prompts of unequal length with `group` random completions of 1 to `longest` tokens each."""
    generator = torch.Generator().manual_seed(group)
    questions = QUESTIONS[: len(rows)]
    lengths = [1 + int(torch.randint(longest, (1,), generator=generator)) for _ in range(group * len(rows))]
    lengths[0], lengths[-1] = longest, 1
    completions = [torch.randint(8, 890, (length,), generator=generator).tolist() for length in lengths]
    ids, mask = pad_completions(completions, loaded.tokenizer.pad_token_id)
    alone = [twins.encode(loaded, [images], [question]) for images, question in zip(rows, questions, strict=True)]
    return Batch(twins.encode(loaded, rows, questions, side), alone, ids, mask, group)


def whole_logps(loaded: LoadedModel, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N, T] from a forward of each sequence alone, without padding and cache."""
    banned = loaded.family.placeholder_ids(loaded.core, loaded.tokenizer)
    allowed = torch.ones(loaded.core.config.get_text_config().vocab_size, dtype=torch.bool)
    allowed[banned] = False
    logps, entropies = [], []
    for row, (ids, mask) in enumerate(zip(batch.ids, batch.mask, strict=True)):
        own = ids[mask.bool()][None]
        full, _ = append_completions(batch.alone[row // batch.group], own, torch.ones_like(own))
        logits = loaded.model(**full, use_cache=False).logits[0, -own.shape[1] - 1 : -1] / temperature
        likely = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        missing = (0, ids.shape[0] - own.shape[1])
        logps.append(torch.nn.functional.pad(likely.gather(1, own[0][:, None])[:, 0], missing))
        entropy = torch.distributions.Categorical(logits=logits[:, allowed]).entropy()
        entropies.append(torch.nn.functional.pad(entropy, missing))
    return torch.stack(logps), torch.stack(entropies)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error of a tensor as a whole."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def written(loaded: LoadedModel, prompts: Sequence[Inputs], length: int) -> Tensor:
    """Greedy completions [P, length] of transformers' `generate`, each prompt by itself."""
    banned = loaded.family.placeholder_ids(loaded.core, loaded.tokenizer)
    rows = []
    for prompt in prompts:
        ids = loaded.model.generate(**prompt, do_sample=False, max_new_tokens=length, suppress_tokens=banned)
        own = ids[0, prompt["input_ids"].shape[1] :]
        rows.append(torch.nn.functional.pad(own, (0, length - len(own)), value=loaded.tokenizer.pad_token_id))
    return torch.stack(rows)
