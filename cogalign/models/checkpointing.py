"""Transformer blocks whose activations are computed again in the backward pass, or that are compiled.

transformers' own checkpointing forbids caches, which shared prompts need, and forgets what was patched in while the
block ran (a fused adapter, attention to a shared prompt). Here the second run of a block finds all of it as the first
run did. Only runs with gradient are changed: sampling and scoring go through the block as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Any]

_CLASSES: dict[type, type] = {}


class Trained:
    """Mixed into a block's class: runs with gradient may be recomputed or compiled."""

    recompute: bool = False
    compiled: Run | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward."""
        run: Run = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        run = self.compiled or run
        return recomputed(self, run, args, kwargs) if self.recompute else run(*args, **kwargs)


def as_trained(block: nn.Module) -> Any:
    """The block itself, with `Trained` mixed into its class; a copy of it is one too."""
    kind = type(block)
    if not issubclass(kind, Trained):
        if kind not in _CLASSES:
            _CLASSES[kind] = type(f"Trained{kind.__name__}", (Trained, kind), {})
        block.__class__ = _CLASSES[kind]
    return block


def compile_block(block: nn.Module) -> None:
    """Compile the block for runs with gradient. It must not be copied afterwards."""
    whole = type(block).forward
    as_trained(block).compiled = torch.compile(MethodType(whole, block), dynamic=True)


def recomputed(block: Any, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A block's output, of which only inputs are kept; its inside is computed again in the backward pass.

    A run that reads keys and values of a cache from before it cannot be repeated, since the cache has grown by then:
    it is not checkpointed.

    Args:
        block: for what is patched in while it runs.
        run: its forward.
        args: of `run`.
        kwargs: of `run`.
    """
    cache = kwargs.get("past_key_values")
    if cache is not None and not _is_empty(block, cache):
        return run(*args, **kwargs)
    ran = False

    def whole(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        if ran and cache is not None:
            kwargs["past_key_values"] = _Replay()
        ran = True
        return run(*args, **kwargs)

    again = partial(_as_it_was, block, _patches(block), _attention(block))
    return checkpoint(whole, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()), **kwargs)


class _Replay:
    """Stands for a cache that was empty: the first run has written into the real one, the second must not."""

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What an empty cache gives back: the new keys and values."""
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        """Nothing lies in it."""
        return 0


def _is_empty(block: nn.Module, cache: Any) -> bool:
    """Whether a cache holds nothing of this block's yet."""
    numbers = {part.layer_idx for part in block.modules() if isinstance(getattr(part, "layer_idx", None), int)}
    return len(numbers) == 1 and not int(cache.get_seq_length(numbers.pop()))


def _patches(block: nn.Module) -> dict[nn.Module, Run]:
    """Parts of a block whose `forward` is another one for the moment."""
    return {part: vars(part)["forward"] for part in block.modules() if "forward" in vars(part)}


def _attention(block: nn.Module) -> dict[int, tuple[Any, str]]:
    """The attention implementation of the moment in every configuration that a block's parts read."""
    configs: list[Any] = [part.config for part in block.modules() if hasattr(part, "config")]
    return {id(config): (config, config._attn_implementation_internal) for config in configs}


@contextmanager
def _as_it_was(
    block: nn.Module, patches: dict[nn.Module, Run], attention: dict[int, tuple[Any, str]]
) -> Iterator[None]:
    """Inside the block its parts are patched as given."""
    patches_now, attention_now = _patches(block), _attention(block)
    _patch(block, patches, attention)
    try:
        yield
    finally:
        _patch(block, patches_now, attention_now)


def _patch(block: nn.Module, patches: dict[nn.Module, Run], attention: dict[int, tuple[Any, str]]) -> None:
    for part in block.modules():
        vars(part).pop("forward", None)
    for part, run in patches.items():
        part.forward = run
    for config, name in attention.values():
        config._attn_implementation_internal = name
