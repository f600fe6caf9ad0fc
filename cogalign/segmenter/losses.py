"""Dice and cross-entropy of masks, the same on one rank and on many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def dice_sums(logits: Tensor, truth: Tensor) -> Tensor:
    """The sums of which `dice_loss` is made, over all pixels of a batch.

    Args:
        logits: [n, 1, H, W].
        truth: same shape, zeros and ones.

    Returns:
        [2]: probability where there is a lesion; probability and lesion anywhere.
    """
    probability = torch.sigmoid(logits.float())
    return torch.stack([(probability * truth).sum(), probability.sum() + truth.sum()])


def dice_loss(sums: Tensor) -> Tensor:
    """1 - soft Dice (Milletari et al. 2016, arXiv:1606.04797, with sums in place of squares) of `dice_sums`.

    The sums run over the whole batch, of all ranks: an image without a lesion has no Dice of its own.
    """
    return 1 - (2 * sums[0] + 1.0) / (sums[1] + 1.0)


def segmentation_loss(
    logits: Tensor, truth: Tensor, bce_weight: float, over_ranks: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Weighted sum of binary cross-entropy (a mean over pixels) and `dice_loss`.

    Args:
        logits: [n, 1, H, W].
        truth: same shape, zeros and ones.
        bce_weight: of the cross-entropy; Dice has 1 minus it.
        over_ranks: `summed_over_ranks` in training on several ranks, so that the mean of their gradients is that of
            the loss of all their images; Dice is that of all images then, the cross-entropy that of this rank's.
    """
    bce = functional.binary_cross_entropy_with_logits(logits.float(), truth)
    sums = dice_sums(logits, truth)
    return bce_weight * bce + (1 - bce_weight) * dice_loss(over_ranks(sums) if over_ranks else sums)


def summed_over_ranks(values: Tensor, ranks: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums over all ranks, through which each rank's gradient is `ranks` times that of its own part.

    A strategy averages the ranks' gradients, so that what is left is the gradient of the sum.

    Args:
        values: of this rank.
        ranks: their number.
        reduce: gives the sum over all ranks; needs no gradient.
    """
    return reduce(values.detach().clone()) + ranks * (values - values.detach())
