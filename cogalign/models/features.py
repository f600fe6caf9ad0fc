"""Encode each image once: while the vision encoder is frozen, its output is kept for the passes that follow."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cogalign.models.content import Distinct
from cogalign.models.families import Family
from cogalign.models.inputs import Inputs
from cogalign.models.load import LoadedModel

Encoder = Callable[..., Any]
"""`get_image_features` of a model."""


def vision_is_frozen(loaded: LoadedModel) -> bool:
    """Whether no parameter of the vision encoder and the projector is trained."""
    family = loaded.family
    named = loaded.core.named_parameters()
    return not any(p.requires_grad and (family.is_vision(name) or family.is_projector(name)) for name, p in named)


@dataclass
class ImageFeatures:
    """Features by the content of the images, and what they have cost so far.

    `images_asked` counts the pieces (an image; in SmolVLM a crop of one) that passes have asked for, `images_encoded`
    those that went through the vision encoder. While nothing is shared both stay 0.
    """

    images_asked: int = 0
    images_encoded: int = 0
    _distinct: Distinct = field(default_factory=Distinct)
    _kept: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    _seen: dict[int, tuple[list[weakref.ref[Tensor]], list[int], list[int]]] = field(default_factory=dict)
    _kind: Any = None
    _stacked: bool = False
    """Whether the encoder gives one tensor for all pieces, and no list."""

    def get(self, family: Family, core: Any, encoder: Encoder, images: Inputs, others: dict[str, Any]) -> Any:
        """The model's own output for `images`, of which only the missing pieces are computed, in one call.

        Args:
            family: of the model.
            core: the transformers model.
            encoder: its `get_image_features`.
            images: tensors of the images.
            others: further arguments of `encoder`.

        Raises:
            TypeError: the encoder does not give features for each piece.
        """
        places = self._places(family, core, images)
        if not places:
            return encoder(**images, **others)
        self.images_asked += len(places)
        missing = sorted(set(places) - self._kept.keys())
        if missing:
            self._encode(family, encoder, missing, others)
        pooled, *deeper = zip(*(self._kept[place] for place in places), strict=True)
        whole = torch.stack(pooled) if self._stacked else list(pooled)
        found = {"last_hidden_state": None, "pooler_output": whole}  # the first has no default in every class
        return self._kind(**found, **({"deepstack_features": [list(layer) for layer in deeper]} if deeper else {}))

    def _places(self, family: Family, core: Any, images: Inputs) -> list[int]:
        """Where the features of each piece are kept, or will be."""
        values = list(images.values())
        versions = [0 if value.is_inference() else value._version for value in values]  # changed in place?
        seen = self._seen.get(id(values[0]))
        if seen is not None and (len(seen[0]), seen[1]) == (len(values), versions):
            same = [known() is value for known, value in zip(seen[0], values, strict=True)]
            if all(same):
                return seen[2]
        places = self._distinct.add(family.pieces(core, images))
        self._seen[id(values[0])] = ([weakref.ref(value) for value in values], versions, places)
        return places

    def _encode(self, family: Family, encoder: Encoder, places: Sequence[int], others: dict[str, Any]) -> None:
        pieces = [self._distinct.known[place] for place in places]
        together, order = family.together(pieces)
        with torch.no_grad():
            out = encoder(**together, **others)
        layers = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        if any(len(layer) != len(pieces) for layer in layers):
            raise TypeError(
                f"{type(family).__name__}: asked for features of {len(pieces)} images, found "
                f"{[len(layer) for layer in layers]}"
            )
        features = list(zip(*layers, strict=True))
        self._kept |= {place: features[order.index(i)] for i, place in enumerate(places)}
        self._kind, self._stacked = type(out), isinstance(out.pooler_output, Tensor)
        self.images_encoded += len(pieces)


@contextmanager
def shared_image_features(loaded: LoadedModel, also: Sequence[Any] = ()) -> Iterator[ImageFeatures]:
    """Inside the block each distinct image goes through the vision encoder once, whichever batch it comes in.

    A batch of prompts is sampled, then scored under the reference and under the policy: passes over the same images,
    whose features cannot differ while the encoder is frozen. Images are told apart by their pixels. With a trained
    encoder, or a family without a class of its own, nothing is shared.

    Args:
        loaded: the model.
        also: further transformers models with the very same vision encoder, such as a frozen copy of the whole model.

    Yields:
        The features, for those who want to count them.
    """
    features = ImageFeatures()
    owners = [core.model for core in (loaded.core, *also)] if _can_share(loaded) else []
    before = [vars(owner).get("get_image_features") for owner in owners]
    for owner, core in zip(owners, (loaded.core, *also), strict=False):
        owner.get_image_features = _kept_by(features, loaded.family, core, owner.get_image_features)
    try:
        yield features
    finally:
        for owner, original in zip(owners, before, strict=True):
            del owner.get_image_features
            if original is not None:
                owner.get_image_features = original


def _can_share(loaded: LoadedModel) -> bool:
    return bool(loaded.family.image_names) and vision_is_frozen(loaded)


def _kept_by(features: ImageFeatures, family: Family, core: Any, encoder: Encoder) -> Encoder:
    """`encoder` with a memory."""

    def once(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(family.image_names, args, strict=False)), **kwargs}
        images = {name: given.pop(name) for name in family.image_names if given.get(name) is not None}
        given = {name: value for name, value in given.items() if name not in family.image_names}
        return features.get(family, core, encoder, images, given)

    return once
