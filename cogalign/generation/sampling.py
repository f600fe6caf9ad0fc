"""Sampling G completions for each prompt: the prompt is computed once, its keys and values are those of the group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from cogalign.generation.drafts import Drafts
from cogalign.generation.draw import draw
from cogalign.generation.lookahead import look_ahead
from cogalign.generation.plain import plain_sample
from cogalign.generation.uniforms import Share, Uniforms
from cogalign.models.head import allowed_logits
from cogalign.models.load import LoadedModel
from cogalign.models.merged import sampling_weights
from cogalign.models.prefill import Prefill, prefill
from cogalign.models.prompts import Inputs, pad_completions
from cogalign.models.shared_prefix import DecodeAttention, attention_through
from cogalign.training.heartbeat import beat
from cogalign.training.sharding import is_sharded


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn. Temperature 0 takes the likeliest token."""

    max_completion_length: int
    num_generations: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Rollout:
    """Completions of P prompts, G each, in the order of the prompts.

    `ids` [P * G, T] right padded; `mask` [P * G, T] is 1 up to and with the end-of-sequence token;
    `finished` [P * G] says whether that token came before the length limit; `logps` [P * G, T] are the
    log-probabilities that another engine sampled with (None: this process sampled).
    """

    ids: Tensor
    mask: Tensor
    finished: Tensor
    logps: Tensor | None = None


class _Suffix(DynamicLayer):
    """Keys and values [N, heads, length, dim] of completions so far, written in place (no gradient)."""

    def __init__(self, rows: int, room: int) -> None:
        super().__init__()
        self.rows, self.room, self.length = rows, room, 0
        self.buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one token behind the others; returns views on all of them."""
        if not self.buffers:
            self.buffers = [
                x.new_empty((self.rows, x.shape[1], self.room, x.shape[3])) for x in (key_states, value_states)
            ]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length] = new[:, :, 0]
        self.length += 1
        return self.buffers[0][:, :, : self.length], self.buffers[1][:, :, : self.length]

    def keep(self, indices: Tensor) -> None:
        """Go on with some rows only."""
        self.rows = len(indices)
        old, self.buffers = self.buffers, []
        for buffer in old:
            new = buffer.new_empty((self.rows, *buffer.shape[1:]))
            new[:, :, : self.length] = buffer[indices, :, : self.length]
            self.buffers.append(new)


class _Rows:
    """The completions that still go on: what the model needs of them, and where they belong in the result."""

    def __init__(self, start: Prefill, owner: Tensor, places: Tensor, room: int) -> None:
        self.places = places
        self.position = start.position[owner]
        self.attention = DecodeAttention(start.prefix, owner)
        self.layers = [_Suffix(len(owner), room) for _ in start.prefix.keys]
        self.cache = Cache(layers=self.layers)

    def keep(self, going: Tensor) -> None:
        """Drop the rows that are not `going` [N]."""
        indices = going.nonzero()[:, 0]
        self.places, self.position = self.places[indices], self.position[indices]
        self.attention.keep(indices)
        for layer in self.layers:
            layer.keep(indices)


class _Result:
    """The completions as they grow."""

    def __init__(self, total: int, limit: int, pad: int, device: torch.device) -> None:
        self.ids = torch.full((total, limit), pad, device=device)
        self.lengths = torch.full((total,), limit, device=device)
        self.finished = torch.zeros(total, dtype=torch.bool, device=device)

    def add(self, step: int, places: Tensor, token: Tensor, ended: Tensor) -> None:
        """Note the token of each row, and which rows ended with it."""
        self.ids[places, step] = token
        self.finished[places[ended]] = True
        self.lengths[places[ended]] = step + 1

    def rollout(self) -> Rollout:
        """What was sampled, cut to the longest completion."""
        longest = int(self.lengths.max())
        kept = torch.arange(longest, device=self.ids.device)[None] < self.lengths[:, None]
        return Rollout(self.ids[:, :longest], kept.long(), self.finished)


def end_ids(loaded: LoadedModel) -> list[int]:
    """Tokens that end a completion."""
    ends = getattr(loaded.core.generation_config, "eos_token_id", None)
    ids = [ends] if isinstance(ends, int) else list(ends or [])
    return sorted({*ids, loaded.tokenizer.eos_token_id})


def banned_ids(loaded: LoadedModel, device: torch.device) -> Tensor:
    """Tokens that are never sampled: image placeholders, and rows of the vocabulary that have no text."""
    family, core, tokenizer = loaded.family, loaded.core, loaded.tokenizer
    ids = {*family.placeholder_ids(core, tokenizer), *family.textless_ids(core, tokenizer)}
    return torch.tensor(sorted(ids), dtype=torch.long, device=device)


@torch.no_grad()
def sample(
    loaded: LoadedModel,
    prompt: Inputs,
    settings: SamplingSettings,
    generator: torch.Generator | None = None,
    start: Prefill | None = None,
    place: Tensor | None = None,
    share: Share | None = None,
    drafts: Drafts | None = None,
) -> Rollout:
    """Draw `settings.num_generations` completions for each of P prompts.

    Each distinct prompt runs once; finished completions leave the batch while the rest go on.

    Args:
        loaded: the model; all of it is put to eval while sampling.
        prompt: tensors of `encode_prompts` on the model's device.
        settings: how tokens are drawn.
        generator: source of randomness on the model's device.
        start: the prompts as this model left them, if they ran before.
        place: [P], which of the distinct prompts in `prompt` each of the P prompts is; None: they are the same.
        share: which prompts of a larger set the P prompts are: each gets the completions that it would get if the
            whole set were sampled at once; None: they are the set.
        drafts: texts like those that will be sampled; completions are guessed from them and guesses checked many tokens
            at once, for the same completions but for rounding (`cogalign.generation.lookahead`). Those that end are added.
            None, and sharded or unshared models: token by token.
    """
    family, core = loaded.family, loaded.core
    if place is None:
        place = torch.arange(len(prompt["input_ids"]), device=loaded.device)
    uniforms = None
    if settings.temperature > 0:
        whole = Share.of_all(len(place)) if share is None else share
        uniforms = Uniforms(generator, loaded.device, whole, settings.num_generations)
    training = [part for part in loaded.model.modules() if part.training]  # a frozen encoder is not among them
    loaded.model.eval()
    try:
        if not family.shares_prompts(core):
            banned, pad = banned_ids(loaded, loaded.device), loaded.tokenizer.pad_token_id
            return Rollout(*plain_sample(core, prompt, settings, end_ids(loaded), banned, pad, uniforms))
        with sampling_weights(loaded.model, (family.text_model(core), family.head(core))):
            begun = prefill(family, loaded.model, prompt) if start is None else start.detach()
            if drafts and not is_sharded(family.text_model(core)):
                return _with_drafts(loaded, begun, place, settings, uniforms, drafts)
            rollout = _sample(loaded, begun, place, settings, uniforms)
        if drafts is not None:
            for ids, mask in zip(rollout.ids, rollout.mask, strict=True):
                drafts.learn(ids[mask.bool()].tolist())
        return rollout
    finally:
        for part in training:
            part.training = True


def _with_drafts(
    loaded: LoadedModel,
    start: Prefill,
    place: Tensor,
    settings: SamplingSettings,
    uniforms: Uniforms | None,
    drafts: Drafts,
) -> Rollout:
    limit, device = settings.max_completion_length, start.last.device
    head, banned = loaded.family.head(loaded.core), banned_ids(loaded, device)
    owner, places = place.repeat_interleave(settings.num_generations).sort(stable=True)
    # of all places, since each completion gets to them in its own pass
    numbers = None if uniforms is None else torch.stack([uniforms.next()[places] for _ in range(limit)], 1)

    def draw_tokens(hidden: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        uniform = None if numbers is None else numbers[rows, steps]
        logits = allowed_logits(head(hidden), banned)
        return draw(logits, settings.temperature, settings.top_p, settings.top_k, uniform)

    grown = look_ahead(loaded, start, owner, limit, end_ids(loaded), draw_tokens, drafts)
    grown = [grown[number] for number in places.argsort().tolist()]
    ids, mask = pad_completions([one.ids for one in grown], loaded.tokenizer.pad_token_id)
    finished = torch.tensor([one.ended for one in grown], device=device)
    return Rollout(ids.to(device), mask.to(device), finished)


def _sample(
    loaded: LoadedModel, start: Prefill, place: Tensor, settings: SamplingSettings, uniforms: Uniforms | None
) -> Rollout:
    family, core, limit = loaded.family, loaded.core, settings.max_completion_length
    text, head, device = family.text_model(core), family.head(core), start.last.device
    total = len(place) * settings.num_generations
    owner, places = place.repeat_interleave(settings.num_generations).sort(stable=True)
    rows = _Rows(start, owner, places, limit)
    result = _Result(total, limit, loaded.tokenizer.pad_token_id, device)
    banned = banned_ids(loaded, device)
    ends = torch.tensor(end_ids(loaded), device=device)
    hidden = start.last[owner]
    with attention_through(text):
        for step in range(limit):
            beat()  # long completions of many rows may take longer than the watchdog waits
            # drawn for all, so that a row's numbers do not depend on the others' ends
            uniform = None if uniforms is None else uniforms.next()[rows.places]
            logits = allowed_logits(head(hidden), banned)
            token = draw(logits, settings.temperature, settings.top_p, settings.top_k, uniform)
            ended = torch.isin(token, ends)
            result.add(step, rows.places, token, ended)
            if bool(ended.any()):
                if bool(ended.all()):
                    break
                rows.keep(~ended)
                token = token[~ended]
            if step + 1 == limit:
                break
            hidden = text(
                input_ids=token[:, None],
                position_ids=family.position_ids(rows.position, step, 1),
                past_key_values=rows.cache,
                shared_prefix=rows.attention,
            ).last_hidden_state[:, -1]
    return result.rollout()
