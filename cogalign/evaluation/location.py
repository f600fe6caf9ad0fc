"""Whether a location section names the right organ.

The rule reads words, not sentences: an organ is named when a word for it or for one of its parts occurs. The words are
those of `cogalign.cognition.anatomy`; "colonoscopy" names no organ.
"""

from __future__ import annotations

import re
from itertools import pairwise

from cogalign.cognition.anatomy import ORGANS, american, organ_in


def organs_named(text: str) -> frozenset[str]:
    """All organs that `text` names (`esophagus`, `stomach`, `small_bowel`, `colon`)."""
    words = re.findall(r"[a-z0-9]+", american(text))
    # No name has more than two words, and `organ_in` gives the first organ: two words at a time miss none.
    pairs = (f"{first} {second}" for first, second in pairwise([*words, ""]))
    return frozenset(organ for pair in dict.fromkeys(pairs) if (organ := organ_in(pair)) is not None)


def location_correct(predicted: str, gold: str, organ: str = "unknown") -> bool | None:
    """Whether a predicted location section names the case's organ and no organ that is not there.

    The case's organ is `organ`; where that is unknown, or the gold section speaks of others only, it is what the gold
    section names. The gold section may name a neighbour ("cardia, seen from the esophagus"): naming it too is no error.
    The gold section itself is always right.

    Args:
        predicted: location section of the completion.
        gold: location section of the case's own report; may be empty.
        organ: the case's organ, `unknown` when nobody said.

    Returns:
        None when neither the case nor its report says where it is: such a case is not counted.
    """
    in_gold = organs_named(gold)
    trusted = organ in ORGANS and (organ in in_gold or not in_gold)
    needed = frozenset({organ}) if trusted else in_gold
    if not needed:
        return None
    said = organs_named(predicted)
    return needed <= said <= (needed | in_gold)
