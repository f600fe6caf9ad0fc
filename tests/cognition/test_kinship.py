from itertools import product

from cogalign.cognition.kinship import KINDS, SAME_KIND, SAME_LABEL, nearness
from cogalign.cognition.taxonomy import FINDINGS, SINGLE_LABELS


def test_kinds_hold_single_labels_once_and_never_normal() -> None:
    members = [finding for kind in KINDS.values() for finding in kind]
    assert len(members) == len(set(members)) and set(members) <= set(SINGLE_LABELS) - {"normal"}


def test_nearness_is_symmetric_and_one_only_for_the_same() -> None:
    for one, other in product(FINDINGS, FINDINGS):
        assert nearness(one, other) == nearness(other, one)
        assert (nearness(one, other) == 1) == (one == other)


def test_normal_is_near_to_nothing() -> None:
    assert all(nearness("normal", other) == 0 for other in FINDINGS if other != "normal")


def test_relatives() -> None:
    assert nearness("aphthoid_ulcer", "ulcer") == SAME_LABEL
    assert nearness("hemorrhoids", "venous_lesion") == SAME_LABEL
    assert nearness("erosion", "ulcer") == nearness("erosion", "aphthoid_ulcer") == SAME_KIND
    assert nearness("polyp", "ulcer") == nearness("instrument", "stenosis") == 0
    assert nearness("unicorn", "unicorn") == 1 and nearness("unicorn", "polyp") == 0
