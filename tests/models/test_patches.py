import torch
from torch import nn

from cogalign.models.load import LoadedModel
from cogalign.models.patches import PatchProjection, embed_patches_by_convolution, embed_patches_by_matmul


def test_embedded_patches_and_their_gradients_are_the_convolutions(own_tiny: LoadedModel) -> None:
    embed = own_tiny.model.model.visual.patch_embed
    embed.proj.__class__ = nn.Conv3d
    torch.manual_seed(0)
    patches = torch.randn(6, embed.proj.weight[0].numel())
    results = []
    for _ in range(2):
        out = embed(patches)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), list(embed.parameters()))))
        embed_patches_by_matmul(own_tiny.model)
    assert type(embed.proj) is PatchProjection
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_only_kernels_that_step_by_their_own_size_are_changed() -> None:
    model = nn.Sequential(
        nn.Conv3d(1, 2, 2, stride=2), nn.Conv3d(2, 2, 2, stride=1), nn.Conv3d(2, 2, 2, stride=2, padding=1)
    )
    assert embed_patches_by_matmul(model) == 1
    assert [type(part).__name__ for part in model] == ["PatchProjection", "Conv3d", "Conv3d"]


def test_patches_are_embedded_as_everywhere_else_again(own_tiny: LoadedModel) -> None:
    embed_patches_by_convolution(own_tiny.model)
    assert type(own_tiny.model.model.visual.patch_embed.proj) is nn.Conv3d


def test_an_input_of_many_patches_is_convolved() -> None:
    torch.manual_seed(1)
    convolution = nn.Conv3d(2, 3, 2, stride=2)
    video = torch.randn(1, 2, 4, 4, 4)
    expected = convolution(video)
    embed_patches_by_matmul(convolution)
    assert torch.equal(convolution(video), expected) and expected.shape == (1, 3, 2, 2, 2)
