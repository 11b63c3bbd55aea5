"""The contextual similarity of two sets of features."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-5


def contextual_distance(fake: Tensor, real: Tensor, bandwidth: float) -> Tensor:
    """-log of the contextual similarity, mean over the batch.

    Args:
        fake: features of generated pictures, (B, C, H, W).
        real: features of true pictures, same shape.
        bandwidth: h.

    Returns:
        Scalar, at least 0.

    Source: Mechrez et al., "The Contextual Loss for Image Transformation with Non-Aligned Data", ECCV 2018, eq. 2 to 5.
    """
    x, y = fake.flatten(2), real.flatten(2)
    centre = y.mean(2, keepdim=True)
    x, y = F.normalize(x - centre, dim=1), F.normalize(y - centre, dim=1)
    distances = (1 - x.mT @ y).clamp_min(0)  # (B, places of fake, places of real)
    relative = distances / (distances.amin(2, keepdim=True) + _EPS)
    similarity = ((1 - relative) / bandwidth).softmax(2)  # exp(..) over their sum
    return -similarity.amax(1).mean(1).clamp_min(_EPS).log().mean()
