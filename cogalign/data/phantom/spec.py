"""What is on a phantom: organ, lesions, and the background cues that confound. Drawn before it is rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ORGANS = ("esophagus", "stomach", "small_bowel", "colon")
FINDINGS = ("normal", "polyp", "ulcer", "erosion", "angiectasia", "bleeding", "tumor")
"""Findings of the phantom, ids of the taxonomy. Their order is also that of the cues."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "polyp": ("sessile", "pedunculated"),
    "ulcer": ("round", "oval"),
    "erosion": ("few", "many"),
    "angiectasia": ("branching", "dotted"),
    "bleeding": ("pool", "streak"),
    "tumor": ("nodular", "depressed"),
}
"""Morphological variants (Paris-like for polyp and tumor) of each lesion."""

RADII = {
    "polyp": (0.10, 0.17),
    "ulcer": (0.10, 0.16),
    "erosion": (0.13, 0.17),
    "angiectasia": (0.09, 0.14),
    "bleeding": (0.10, 0.17),
    "tumor": (0.14, 0.20),
}
"""Radius of a lesion over the side of the image."""

SURFACES = ("smooth", "granular")
VIEWS = ("clear", "reflections", "bubbles")


@dataclass(frozen=True)
class LesionSpec:
    """One lesion; positions and radius are shares of the image's side."""

    finding: str
    variant: str
    y: float
    x: float
    radius: float
    angle: float
    seed: int


@dataclass(frozen=True)
class PhantomSpec:
    """One image. `cue` is the index of the finding that the background tells, right or wrong."""

    organ: str
    lesions: tuple[LesionSpec, ...]
    cue: int
    surface: str
    view: str
    seed: int

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings in the order of `FINDINGS`."""
        found = {lesion.finding for lesion in self.lesions}
        return tuple(f for f in FINDINGS if f in found) or ("normal",)


def _lesion(rng: np.random.Generator, finding: str, taken: list[LesionSpec]) -> LesionSpec:
    """A lesion inside the visible field that keeps away from those already placed."""
    radius = rng.uniform(*RADII[finding])
    if taken:
        radius = min(radius, 0.14)
    best, best_gap = (0.5, 0.5), -np.inf
    for _ in range(24):
        y, x = 0.5 + 0.26 * rng.uniform(-1, 1), 0.5 + 0.26 * rng.uniform(-1, 1)
        gap = min((np.hypot(y - t.y, x - t.x) - t.radius - radius for t in taken), default=1.0)
        if gap > best_gap:
            best, best_gap = (y, x), gap
        if gap > 0.06:
            break
    return LesionSpec(
        finding=finding,
        variant=str(rng.choice(VARIANTS[finding])),
        y=float(best[0]),
        x=float(best[1]),
        radius=float(radius),
        angle=float(rng.uniform(0, 2 * np.pi)),
        seed=int(rng.integers(2**31)),
    )


def draw_cue(rng: np.random.Generator, findings: tuple[str, ...], confounding: float) -> int:
    """The finding that the background tells.

    With probability `confounding` one of the image's own findings; with a negative `confounding`
    always one that the image does not have; else any, uniformly.
    """
    own = [FINDINGS.index(f) for f in findings]
    if confounding < 0:
        return int(rng.choice([k for k in range(len(FINDINGS)) if k not in own]))
    if rng.random() < confounding:
        return int(rng.choice(own))
    return int(rng.integers(len(FINDINGS)))


def draw_spec(rng: np.random.Generator, confounding: float, multi_share: float = 0.12) -> PhantomSpec:
    """A random image: findings uniform, organ and view independent of them, cue by `draw_cue`."""
    organ = str(rng.choice(ORGANS))
    lesions: list[LesionSpec] = []
    if rng.random() < multi_share:
        names = rng.choice(FINDINGS[1:], size=2, replace=False)
    else:
        names = rng.choice(FINDINGS, size=1)
    for name in names:
        if name != "normal":
            lesions.append(_lesion(rng, str(name), lesions))
    lesions.sort(key=lambda lesion: FINDINGS.index(lesion.finding))
    spec = PhantomSpec(
        organ=organ,
        lesions=tuple(lesions),
        cue=0,
        surface=str(rng.choice(SURFACES)),
        view=str(rng.choice(VIEWS)),
        seed=int(rng.integers(2**31)),
    )
    return PhantomSpec(**{**spec.__dict__, "cue": draw_cue(rng, spec.findings, confounding)})
