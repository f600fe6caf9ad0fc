"""Causal attention whose backward pass is products of matrices: the gradients of torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cogalign.models.causal import causal_attention, short_attention
from cogalign.models.load import LoadedModel


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shared", [6, 2, 1])
def test_output_and_gradients_are_those_of_plain_attention(dtype: torch.dtype, tolerance: float, shared: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 37, heads, 16, dtype=dtype) for heads in (6, shared, shared))
    mine = [part.transpose(1, 2).requires_grad_() for part in (query, key, value)]
    theirs = [part.transpose(1, 2).double().requires_grad_() for part in (query, key, value)]
    weights = torch.randn(3, 37, 6, 16, dtype=torch.float64)
    out, _ = causal_attention(nn.Module(), *mine, None, scaling=0.3)
    keys, values = (part.repeat_interleave(6 // shared, 1) for part in theirs[1:])
    plain = functional.scaled_dot_product_attention(theirs[0], keys, values, is_causal=True, scale=0.3).transpose(1, 2)
    found = torch.autograd.grad((out.double() * weights).sum(), mine)
    wanted = torch.autograd.grad((plain * weights).sum(), theirs)
    for a, b in zip((out, *found), (plain, *wanted), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert (a - b).detach().norm() <= tolerance * b.detach().norm()


def test_only_bfloat16_with_gradient_and_padding_behind_takes_it(own_tiny: LoadedModel) -> None:
    core, text = own_tiny.core, own_tiny.family.text_model(own_tiny.core)
    behind, before = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    own = text.config._attn_implementation
    with short_attention(core, text, behind) as taken:
        assert not taken and text.config._attn_implementation == own  # float32
    core.bfloat16()
    for mask, grad in ((behind, True), (None, True), (before, True), (behind, False)):
        with torch.set_grad_enabled(grad), short_attention(core, text, mask) as taken:
            assert taken == (grad and mask is not before)
            assert (text.config._attn_implementation != own) == taken
    text.config.attention_dropout = 0.1
    with short_attention(core, text) as taken:
        assert not taken
    assert text.config._attn_implementation == own


def test_layers_that_want_more_than_causal_attention_are_refused() -> None:
    part = torch.zeros(1, 2, 3, 4)
    with pytest.raises(TypeError, match="sliding_window=7"):
        causal_attention(nn.Module(), part, part, part, None, sliding_window=7)
    with pytest.raises(TypeError, match="3 queries and 1 keys"):
        causal_attention(nn.Module(), part, part[:, :, :1], part[:, :, :1], None)
