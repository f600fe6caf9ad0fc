"""Log-probabilities in chunks are those of the whole, and the whole is never there."""

import pytest
import torch
from torch import Tensor, nn

from cogalign.models import head as file
from cogalign.models.head import allowed_logits, hidden_logps

BANNED = torch.tensor([3, 7])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tokens", [1, 5, 23])
def test_chunks_give_the_log_probabilities_entropies_and_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, temperature: float, tokens: int
) -> None:
    monkeypatch.setattr(file, "CHUNK_NUMBERS", 5 * 50)
    monkeypatch.setattr(file, "LEAST_TOKENS", {"cpu": 1})
    torch.manual_seed(0)
    layer, hidden = nn.Linear(16, 50).double(), torch.randn(tokens, 16, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(8, 50, (tokens,))
    seen: list[int] = []

    def head(part: Tensor) -> Tensor:
        seen.append(len(part))
        out: Tensor = layer(part)
        return out

    logps, entropies = hidden_logps(head, hidden, ids, BANNED, temperature, 50)
    whole = torch.distributions.Categorical(logits=allowed_logits(layer(hidden), BANNED) / temperature)
    kept = torch.ones(50, dtype=torch.bool)
    kept[BANNED] = False
    expected = torch.distributions.Categorical(logits=layer(hidden)[:, kept] / temperature).entropy()
    torch.testing.assert_close(logps, whole.log_prob(ids))
    torch.testing.assert_close(entropies, expected)
    assert not entropies.requires_grad and max(seen) <= 5 and sum(seen) == tokens
    weights = torch.linspace(-1, 1, tokens, dtype=torch.float64)
    inputs = [hidden, *layer.parameters()]
    found = torch.autograd.grad((logps * weights).sum(), inputs)
    assert max(seen) <= 5 and sum(seen) == 2 * tokens  # each chunk once more, for the gradient
    for gradient, wanted in zip(found, torch.autograd.grad((whole.log_prob(ids) * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_a_token_that_cannot_be_drawn_has_no_part_in_the_entropy() -> None:
    layer = nn.Linear(4, 9)
    with torch.no_grad():
        _, entropies = hidden_logps(layer, torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2, 9), 1.0, 9)
        assert entropies.isfinite().all() and (entropies <= torch.tensor(2.0).log() + 1e-6).all()


def test_in_bfloat16_entropy_and_scores_are_those_of_the_rounded_logits() -> None:
    torch.manual_seed(2)
    weight, hidden = torch.randn(300, 16).bfloat16(), torch.randn(70, 16).bfloat16()
    ids, banned = torch.randint(5, 300, (70,)), torch.tensor([0, 3])
    logps, entropies = hidden_logps(lambda x: x @ weight.t(), hidden, ids, banned, 0.7, 300)
    logits = ((hidden @ weight.t()).double() / 0.7).index_fill(1, banned, float("-inf"))
    torch.testing.assert_close(
        logps.double(), logits.log_softmax(1).gather(1, ids[:, None])[:, 0], rtol=1e-5, atol=1e-5
    )
    allowed = logits[:, [i for i in range(300) if i not in (0, 3)]]
    wanted = torch.distributions.Categorical(logits=allowed).entropy()
    torch.testing.assert_close(entropies.double(), wanted, rtol=1e-5, atol=1e-4)
