import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cogalign.counterfactual.fills import fill_function
from cogalign.counterfactual.fills.diffusion import model_size
from cogalign.counterfactual.masks import feathered_alpha


def disc(y: int, x: int, radius: int, size: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_the_models_picture_has_sides_of_multiples_of_eight_and_the_same_shape() -> None:
    assert model_size((300, 600), 512) == (256, 512)
    assert model_size((37, 91), 64) == (24, 64)
    assert model_size((1, 900), 512) == (8, 512)
    assert model_size((2000, 2000), 4096) == (1024, 1024)


def test_without_diffusers_the_extra_is_named() -> None:
    if find_spec("diffusers") is not None:
        pytest.skip("diffusers is installed")
    alpha = feathered_alpha(disc(48, 48, 12), 1, 2)
    with pytest.raises(ValueError, match=r"counterfactual\.fill: .* pip install cogalign\[diffusion\]"):
        fill_function("diffusion", "some/model")(
            np.zeros((96, 96, 3), np.uint8), alpha, 1.0, None, np.random.default_rng(0)
        )


def tiny_pipeline(folder: Path) -> Path:
    """A Stable Diffusion inpainting pipeline with a few thousand random weights, saved as safetensors."""
    diffusers = pytest.importorskip("diffusers")
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *(chr(code) for code in range(33, 127))]
    words += [f"{letter}</w>" for letter in words[2:]]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=9, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder / "pipeline"


def test_a_pipeline_paints_the_region_alone_and_the_same_for_the_same_state(tmp_path: Path) -> None:
    fill = fill_function("diffusion", str(tiny_pipeline(tmp_path)))
    image = np.random.default_rng(1).integers(60, 200, (96, 96, 3), dtype=np.uint8)
    alpha = feathered_alpha(disc(40, 50, 12), 1, 2)
    first, second, other = (fill(image, alpha, 5.0, None, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.array_equal(first[alpha == 0], image[alpha == 0])
    assert np.any(first[alpha == 1] != image[alpha == 1])


def test_a_folder_without_a_pipeline_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    alpha = feathered_alpha(disc(48, 48, 12), 1, 2)
    with pytest.raises(ValueError, match="diffusion_model"):
        fill_function("diffusion", str(tmp_path))(
            np.zeros((96, 96, 3), np.uint8), alpha, 1.0, None, np.random.default_rng(0)
        )
