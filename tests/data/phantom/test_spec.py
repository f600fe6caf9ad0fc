from collections import Counter

import numpy as np
import pytest

from cogalign.cognition.taxonomy import FINDINGS as TAXONOMY
from cogalign.data.phantom.spec import FINDINGS, ORGANS, RADII, VARIANTS, PhantomSpec, draw_cue, draw_spec

N = 4000


def specs(confounding: float, multi: float = 0.12, seed: int = 0, count: int = N) -> list[PhantomSpec]:
    rng = np.random.default_rng(seed)
    return [draw_spec(rng, confounding, multi) for _ in range(count)]


def tells(spec: PhantomSpec) -> bool:
    return FINDINGS[spec.cue] in spec.findings


def within(share: float, expected: float, count: int = N) -> bool:
    return abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / count) + 1 / count


def test_the_background_tells_the_finding_as_often_as_it_is_told_to() -> None:
    for confounding in (0.0, 0.5, 0.95, 1.0):
        drawn = [spec for spec in specs(confounding, multi=0.0)]
        by_chance = 1 / len(FINDINGS)
        expected = confounding + (1 - confounding) * by_chance
        assert within(float(np.mean([tells(spec) for spec in drawn])), expected)


def test_at_full_shift_the_background_never_tells_an_own_finding() -> None:
    drawn = specs(-1.0, multi=0.5)
    assert not any(tells(spec) for spec in drawn)
    for finding in FINDINGS:
        cues = Counter(spec.cue for spec in drawn if spec.findings == (finding,))
        others = [cues[k] for k in range(len(FINDINGS)) if FINDINGS[k] != finding]
        assert min(others) > 0.4 * max(others)


def test_an_image_with_two_findings_is_told_by_either() -> None:
    rng = np.random.default_rng(0)
    cues = Counter(draw_cue(rng, ("polyp", "tumor"), 1.0) for _ in range(1000))
    assert set(cues) == {FINDINGS.index("polyp"), FINDINGS.index("tumor")} and min(cues.values()) > 400


def test_findings_are_uniform_and_organ_surface_and_view_tell_nothing_of_them() -> None:
    drawn = specs(0.95, multi=0.0)
    assert all(within(count / N, 1 / 7) for count in Counter(spec.findings for spec in drawn).values())
    for organ in ORGANS:
        here = [spec for spec in drawn if spec.organ == organ]
        assert within(len(here) / N, 1 / 4)
        normal = float(np.mean([spec.findings == ("normal",) for spec in here]))
        assert within(normal, 1 / 7, len(here))
    assert len({(spec.surface, spec.view) for spec in drawn}) == 6


@pytest.mark.parametrize("multi", [0.0, 0.12, 0.3, 1.0])
def test_as_many_images_have_two_findings_as_asked(multi: float) -> None:
    drawn = specs(0.95, multi)
    assert within(float(np.mean([len(spec.findings) == 2 for spec in drawn])), multi)
    assert all(len(set(spec.findings)) == len(spec.lesions) for spec in drawn if spec.lesions)


def test_lesions_lie_inside_the_field_and_apart() -> None:
    for spec in specs(0.95, multi=0.5, count=800):
        for lesion in spec.lesions:
            assert abs(lesion.y - 0.5) <= 0.26 and abs(lesion.x - 0.5) <= 0.26
            assert RADII[lesion.finding][0] <= lesion.radius <= RADII[lesion.finding][1]
            assert lesion.variant in VARIANTS[lesion.finding]
        if len(spec.lesions) == 2:
            a, b = spec.lesions
            assert np.hypot(a.y - b.y, a.x - b.x) > 0.8 * (a.radius + b.radius)


def test_the_same_seed_draws_the_same_and_the_findings_are_the_taxonomys() -> None:
    assert specs(0.95, seed=4, count=50) == specs(0.95, seed=4, count=50) != specs(0.95, seed=5, count=50)
    assert all(finding in TAXONOMY for finding in FINDINGS) and set(FINDINGS[1:]) == set(VARIANTS)
    assert all(TAXONOMY[finding].focal for finding in FINDINGS[1:])
