from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogalign.models.pixel_codec import LARGEST, PixelCodec, decode

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in type, shape and every bit (NaN and signed zeros too)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numel() == 0 or bytes(a.contiguous().view(torch.uint8).numpy()) == bytes(b.view(torch.uint8).numpy())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(TYPES), st.integers(1, 3000), st.sampled_from([0, 1, 70, 6000]))
def test_every_tensor_comes_back_bit_for_bit(seed: int, dtype: torch.dtype, levels: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    codec = PixelCodec()
    for shape in ((length,), (2, length // 2, 1), (0, 3)):  # the second time its palette is known, or grows
        values = torch.from_numpy(rng.normal(size=levels))[torch.from_numpy(rng.integers(0, levels, shape))].to(dtype)
        found = decode(codec.encode({"pixel_values": values}))["pixel_values"].tensor()
        assert same(values, found)


def test_numbers_that_are_not_equal_to_themselves_or_are_equal_with_other_bits_are_kept() -> None:
    values = torch.tensor([float("nan"), -0.0, 0.0, float("inf")]).repeat(LARGEST)
    assert same(values, decode(PixelCodec().encode({"a": values}))["a"].tensor())


def test_images_take_a_quarter_or_half_of_their_floats_and_noise_what_it_has() -> None:
    rng = np.random.default_rng(0)
    levels = torch.linspace(-1, 1, 256)
    grey = levels[torch.from_numpy(rng.integers(0, 256, (100, 300)))]
    means = torch.tensor([0.48, 0.46, 0.41])[:, None, None]
    coloured = levels[torch.from_numpy(rng.integers(0, 256, (3, 100, 100)))] - means
    noise = torch.from_numpy(rng.normal(size=(100, 300)).astype(np.float32))
    codec = PixelCodec()
    sizes = [len(codec.encode({name: value})) / value.nbytes for name, value in
             (("grey", grey), ("coloured", coloured), ("noise", noise), ("grey", grey))]  # fmt: skip
    assert sizes[0] == sizes[3] < 0.27 and 0.5 < sizes[1] < 0.54 and 1 < sizes[2] < 1.01


def test_plain_values_and_the_order_of_names_are_kept() -> None:
    fields: dict[str, Any] = {"rows": [[2, 1]], "pixel_values": torch.ones(2), "num_crops": [0]}
    found = decode(PixelCodec().encode(fields))
    assert list(found) == list(fields) and found["rows"] == [[2, 1]] and found["num_crops"] == [0]


@pytest.mark.parametrize("value", [(1, 2), object(), torch.ones(2, dtype=torch.complex64)])
def test_what_would_not_come_back_as_it_was_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        PixelCodec().encode({"a": value})


def test_damaged_bytes_are_noticed() -> None:
    content = PixelCodec().encode({"a": torch.arange(6000) % 7, "b": [1]})
    for broken in (b"", b"x" * 100, content[:-1], content[:20], content[:300] + b"\0\1" + content[302:]):
        with pytest.raises(ValueError):
            decode(broken)
