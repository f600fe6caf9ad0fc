"""In every family each distinct image goes through the vision encoder once, whichever batch it comes in."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torch import Tensor

from cogalign.models.adapt import train_all
from cogalign.models.features import shared_image_features
from cogalign.models.load import LoadedModel
from cogalign.models.prompts import Inputs, encode_prompts
from tests.families.whole import QUESTIONS, Rows


class Counter:
    """Counts what goes through the vision encoder: patches (Qwen-VL) or crops."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.calls, self.seen = 0, 0
        tower = next(part for name, part in loaded.core.model.named_children() if name in loaded.family.vision)
        self.handle = tower.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self.calls += 1
        self.seen += len(args[0] if args else kwargs["pixel_values"])


@pytest.fixture
def frozen(adapted_twin: LoadedModel) -> LoadedModel:
    """A copy whose vision encoder and projector are not trained."""
    own = LoadedModel(copy.deepcopy(adapted_twin.model), adapted_twin.processor, adapted_twin.family)
    return train_all(own, freeze_vision=True, freeze_projector=True)


@pytest.fixture
def counter(frozen: LoadedModel) -> Iterator[Counter]:
    counter = Counter(frozen)
    yield counter
    counter.handle.remove()


@torch.no_grad()
def last(loaded: LoadedModel, prompt: Inputs) -> Tensor:
    logits: Tensor = loaded.model(**prompt).logits[:, -1]
    return logits


def cost(loaded: LoadedModel, counter: Counter, rows: list[list[Image.Image]]) -> int:
    """What passes through the tower for these prompts when nothing is kept."""
    before = counter.seen
    last(loaded, encode_prompts(loaded.processor, rows, QUESTIONS[: len(rows)]))
    return counter.seen - before


def test_images_are_encoded_once_in_all_passes_and_batches(
    frozen: LoadedModel, counter: Counter, image_rows: Rows
) -> None:
    (a,), (b, c), (d,), _ = image_rows
    # one picture twice in a batch, in different prompts, beside others of other sizes
    one = encode_prompts(frozen.processor, [[a], [b, c], [a]], QUESTIONS[:3])
    two = encode_prompts(frozen.processor, [[c, b], [d], [a]], QUESTIONS[:3])
    expected = [last(frozen, prompt) for prompt in (one, two)]
    wanted = sum(cost(frozen, counter, [row]) for row in ([a], [b, c], [d]))
    before, calls = counter.seen, counter.calls
    with shared_image_features(frozen) as features:
        for prompt, logits in zip((one, two), expected, strict=True):
            torch.testing.assert_close(last(frozen, prompt), logits, rtol=1e-4, atol=1e-4)
        assert (counter.seen - before, counter.calls - calls) == (wanted, 2)
        encoded = features.images_encoded
        parts = [frozen.family.split(frozen.core, prompt) for prompt in (one, two)]
        mixed = frozen.family.join([parts[1][1], parts[0][1], parts[0][0]], frozen.tokenizer.pad_token_id)
        logits = last(frozen, mixed)
        torch.testing.assert_close(
            logits, torch.stack([expected[1][1], expected[0][1], expected[0][0]]), rtol=1e-4, atol=1e-4
        )
        for prompt in (one, two):
            last(frozen, prompt)
        assert (counter.seen - before, features.images_encoded) == (wanted, encoded)
    assert features.images_asked > 2 * encoded
    if "pixel_attention_mask" not in one:  # SmolVLM counts crops
        assert encoded == 4
    last(frozen, one)
    assert counter.seen > before + wanted  # nothing is kept after the block


def test_a_picture_alone_and_beside_others_is_not_mixed_up(
    frozen: LoadedModel, counter: Counter, image_rows: Rows
) -> None:
    (a,), (b, c) = image_rows[:2]
    rows = [[b], [a, b], [c], [b, a]]
    prompt = encode_prompts(frozen.processor, rows, QUESTIONS)
    expected = last(frozen, prompt)
    with shared_image_features(frozen) as features:
        alone = last(frozen, encode_prompts(frozen.processor, [[b]], QUESTIONS[:1]))
        torch.testing.assert_close(alone, expected[:1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last(frozen, prompt), expected, rtol=1e-4, atol=1e-4)
        if "batch_num_images" in prompt:  # alone: b, c; beside others: a, b
            assert features.images_encoded == 4
        elif "image_grid_thw" in prompt:
            assert features.images_encoded == 3


def test_kept_features_have_no_gradient_and_the_rest_has(frozen: LoadedModel, image_rows: Rows) -> None:
    prompt = encode_prompts(frozen.processor, image_rows[:2], QUESTIONS[:2])
    trained = [p for p in frozen.model.parameters() if p.requires_grad]

    def gradients() -> list[Tensor]:
        loss = frozen.model(**prompt).logits[:, -1].log_softmax(-1)[:, 20].sum()
        return list(torch.autograd.grad(loss, trained))

    expected = gradients()
    with shared_image_features(frozen) as features:
        found = [gradients(), gradients()]
        assert not any(tensor.requires_grad for kept in features._kept.values() for tensor in kept)
    for each in found:
        for a, b in zip(each, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_nothing_is_kept_for_an_unknown_family(gemma: LoadedModel, image_rows: Rows) -> None:
    own = LoadedModel(copy.deepcopy(gemma.model).requires_grad_(False), gemma.processor, gemma.family)
    counter = Counter(own)
    prompt = encode_prompts(own.processor, image_rows[:1], QUESTIONS[:1])
    with shared_image_features(own) as features:
        last(own, prompt), last(own, prompt)
    assert (counter.calls, features.images_asked, features.images_encoded) == (2, 0, 0)
