"""The KV cache of a group: made once from the prompts' cache, then written in place token by token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def selected_cache(cache: Any, rows: Tensor) -> Any:
    """A cache of the prompts `rows` [N], one row for each completion; gradient flows back into `cache`.

    Raises:
        TypeError: a layer of the cache is of a kind whose rows cannot be taken.
    """
    layers = []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer:
            raise TypeError(
                f"cache layer {type(layer).__name__}: shared prompts need layers that keep all keys and values"
            )
        copied = DynamicLayer()
        copied.update(layer.keys[rows], layer.values[rows])
        layers.append(copied)
    return Cache(layers=layers)


class InPlaceLayer(DynamicLayer):
    """Keys and values [N, heads, length, dim] with room for more tokens (no gradient).

    transformers' `DynamicLayer` copies all of them for every new token.
    """

    def __init__(self, keys: Tensor, values: Tensor, group: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        rows, heads, length, _ = keys.shape
        self.buffers = [part.new_empty((rows * group, heads, length + room, part.shape[-1])) for part in (keys, values)]
        for buffer, part in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, :length] = part.repeat_interleave(group, 0)
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens behind the old ones; returns views on all of them."""
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only."""
        length = self.keys.shape[2]
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._show(length)


def in_place_cache(cache: Any, group: int, room: int) -> Any:
    """A cache for sampling: the prompts' rows repeated for the group, with room for `room` tokens.

    Layers of another kind than `DynamicLayer` (sliding windows, recurrent states) are repeated as they are.
    """
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        return Cache(layers=[InPlaceLayer(layer.keys, layer.values, group, room) for layer in cache.layers])
    if group > 1:
        cache.batch_repeat_interleave(group)
    return cache
