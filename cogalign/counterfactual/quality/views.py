"""What the encoder is shown of a case, its counterfactuals and of normals: whole pictures and crops. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cogalign.counterfactual.interventions import Operator
from cogalign.counterfactual.masks import Image, Mask, lesion_radius, visible_mucosa
from cogalign.counterfactual.placement import move_pieces
from cogalign.counterfactual.quality.patches import Square, lesion_and_free, square_around
from cogalign.counterfactual.quality.seam import seam_visibility

Role = Literal["image", "crop", "before", "free", "normal", "place", "filled", "filled_place"]
"""What a picture shows.

Of a counterfactual: `image` whole, `crop` around the edit, `before` the same crop before the edit (of a source case: of
its lesions), `free` lesion-free mucosa of the source. Of a normal: `normal` whole, `place` a crop, `filled` and
`filled_place` the same two after a fill of a lesion's shape.
"""
UNSEEN = 0.05
"""A segmenter whose mean response to the lesion is lower did not see it: what is left of it says nothing."""


class SegmenterLike(Protocol):
    """What is needed of `cogalign.models.segmenter.Segmenter`."""

    def probabilities(self, images: Sequence[Image]) -> list[NDArray[np.float32]]:
        """Probability of a lesion, H x W each."""
        ...


@dataclass
class Views:
    """Pictures with their role and the id of their case, and numbers by id."""

    pictures: list[tuple[Role, str, Image]] = field(default_factory=list)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def show(self, role: Role, case_id: str, picture: Image) -> None:
        """Add a picture."""
        self.pictures.append((role, case_id, picture))

    def note(self, case_id: str, **values: Any) -> None:
        """Add numbers."""
        self.numbers.setdefault(case_id, {}).update(values)

    def add(self, other: Views) -> None:
        """Add all of another's."""
        self.pictures += other.pictures
        self.numbers.update(other.numbers)


@dataclass(frozen=True)
class Edit:
    """A counterfactual with its pixels.

    Attributes:
        id: of the counterfactual.
        intervention: what was done.
        image: H x W x 3 uint8.
        ground: H x W x 3 uint8, the image before the edit (transplant: the background).
        touched: H x W.
        focus: H x W, where the lesion lies now (transplant), or None: what was touched.
        partial: whether other lesions of the source stay.
    """

    id: str
    intervention: str
    image: Image
    ground: Image
    touched: Mask
    focus: Mask | None = None
    partial: bool = False


def source_views(case_id: str, image: Image, lesion: Mask, rng: np.random.Generator) -> tuple[Views, int]:
    """Crops of the lesions (`before`) and of free mucosa (`free`, where there is some) and their side in pixels.

    Args:
        case_id: id of the source case.
        image: H x W x 3 uint8.
        lesion: H x W, what the removal touches, at least one pixel.
        rng: draws the free place.
    """
    views = Views()
    around, free = lesion_and_free(image, lesion, rng)
    views.show("before", case_id, around.cut(image))
    if free is not None:
        views.show("free", case_id, free.cut(image))
    return views, around.side


def edit_views(edit: Edit, side: int | None) -> Views:
    """The seam of a counterfactual, its crop of the case's side, and for a removal of all lesions the whole image."""
    views = Views()
    views.note(edit.id, seam=seam_visibility(edit.image, edit.ground, edit.touched))
    if edit.intervention == "background" or side is None:
        return views
    focus = edit.touched if edit.focus is None else edit.focus
    square = square_around(focus, min(side, *edit.image.shape[:2]))
    views.show("crop", edit.id, square.cut(edit.image))
    if edit.partial:
        views.show("before", edit.id, square.cut(edit.ground))
    elif edit.intervention == "removal":
        views.show("image", edit.id, edit.image)
    return views


def residual(after: NDArray[np.float32], before: NDArray[np.float32], touched: Mask) -> float | None:
    """Mean response of a segmenter inside the mask, after over before; None if it did not see the lesion before.

    Args:
        after: H x W, probabilities on the counterfactual.
        before: H x W, on the source.
        touched: H x W.
    """
    if not touched.any() or float(before[touched].mean()) < UNSEEN:
        return None
    return float(after[touched].mean()) / float(before[touched].mean())


def residuals(edits: Sequence[Edit], segmenter: SegmenterLike) -> Views:
    """`residual_segmenter` of the removals among the edits of one source."""
    views = Views()
    removals = [edit for edit in edits if edit.intervention == "removal"]
    if not removals:
        return views
    before, *after = segmenter.probabilities([removals[0].ground, *(edit.image for edit in removals)])
    for edit, response in zip(removals, after, strict=True):
        views.note(edit.id, residual_segmenter=residual(response, before, edit.touched))
    return views


def without_edge(touched: Mask, operator: Operator) -> Mask:
    """The mask that an operator had grown and feathered into `touched` (H x W), nearly; never empty."""
    growth = operator.dilate + operator.feather
    radius = lesion_radius(touched) / (1.0 + growth)
    padded = np.pad(touched, 1)
    depth = cv2.distanceTransform(padded.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    inner: Mask = depth > growth * radius
    return inner if inner.any() else touched


def fill_normal(image: Image, shape: Mask, operator: Operator, rng: np.random.Generator) -> tuple[Image, Square] | None:
    """A normal image with the fill on a free place of a lesion's shape, and a square around it; None if it fits nowhere.

    Args:
        image: H x W x 3 uint8, without lesions.
        shape: h x w, the lesions of some other image, of any size; it is brought to this image's.
        operator: fill and widths.
        rng: draws the place.
    """
    height, width = image.shape[:2]
    resized = cv2.resize(shape.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0
    if not resized.any():
        return None
    radius = lesion_radius(resized)
    visible = visible_mucosa(image)
    nothing = np.zeros(visible.shape, dtype=bool)
    alpha = move_pieces([operator.alpha(resized, radius)], visible, nothing, rng)
    if alpha is None:
        return None
    return operator.paint(image, alpha, radius, ~visible, rng), square_around(alpha > 0)


def normal_views(
    case_id: str, image: Image, shapes: Sequence[Mask], operators: Sequence[tuple[str, Operator]], seed: Sequence[int]
) -> Views:
    """Views of a normal: whole, and with each operator's fill at the place of the first shape that fits.

    Args:
        case_id: id of the normal.
        image: H x W x 3 uint8.
        shapes: lesions of other images; they are tried in order.
        operators: suffix of the id of the filled pictures, and operator.
        seed: of the place, the same for all operators.
    """
    views = Views()
    views.show("normal", case_id, image)
    for suffix, operator in operators:
        for number, shape in enumerate(shapes):
            made = fill_normal(image, shape, operator, np.random.default_rng([*seed, number]))
            if made is None:
                continue
            filled, square = made
            views.show("filled", case_id + suffix, filled)
            views.show("filled_place", case_id + suffix, square.cut(filled))
            if not any(role == "place" for role, _, _ in views.pictures):
                views.show("place", case_id, square.cut(image))
            break
    return views
