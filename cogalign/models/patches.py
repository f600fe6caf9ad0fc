"""Patch embeddings as matrix products: a convolution whose kernel covers its whole input is one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PatchProjection(nn.Conv3d):
    """A `Conv3d` that computes inputs of exactly its kernel's size [N, C, *kernel] as one matrix product.

    The same sum in the same weights; the convolution's own kernels are several times slower at it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Embeddings [N, out, 1, 1, 1] of patches."""
        if tuple(input.shape[2:]) != tuple(self.kernel_size):
            return super().forward(input)
        out = functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return out[:, :, None, None, None]


def embed_patches_by_matmul(model: nn.Module) -> int:
    """Let every patch convolution of `model` compute as a product, in place; returns how many there are."""
    found = [part for part in model.modules() if type(part) is nn.Conv3d and _covers(part)]
    for part in found:
        part.__class__ = PatchProjection
    return len(found)


def embed_patches_by_convolution(model: nn.Module) -> None:
    """Undo `embed_patches_by_matmul`: the model computes as it does where cogalign is not."""
    found: list[nn.Module] = [part for part in model.modules() if type(part) is PatchProjection]
    for part in found:
        part.__class__ = nn.Conv3d


def _covers(part: nn.Conv3d) -> bool:
    """Whether the kernel steps by its own size, so that an input of its size is one product."""
    return part.kernel_size == part.stride and part.groups == 1 and part.padding == (0, 0, 0)
