"""Images with lesions of different findings: which part of the mask belongs to which."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from cogalign.counterfactual.masks import Mask, lesions, pixels_in
from cogalign.data.case import Box


def split_mask(mask: Mask, boxes: Sequence[Box], findings: Collection[str]) -> tuple[Mask, Mask] | None:
    """The part of a mask that shows some findings, and the rest.

    Each connected part goes to the box that holds most of it.

    Args:
        mask: H x W, all lesions.
        boxes: one box a lesion, with its finding.
        findings: those of the first part.

    Returns:
        Two masks H x W that do not overlap and make up the whole; None where the boxes do not tell the lesions apart
        (lesions of different findings touch, or a part lies in no box).
    """
    chosen, rest = np.zeros_like(mask), np.zeros_like(mask)
    seen: set[str] = set()
    for part in lesions(mask, boxes):
        held = pixels_in(part, boxes)
        if not held or max(held) == 0:
            return None
        finding = boxes[int(np.argmax(held))].finding
        seen.add(finding)
        target = chosen if finding in findings else rest
        target |= part
    if seen != {box.finding for box in boxes}:
        return None
    return chosen, rest
