"""Extensions of a user's own, named by import path in the tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.models.architecture import LayerSpec

POOLED_LINEAR = "tests.helpers.extensions:PooledLinear"
DARKEN = "tests.helpers.extensions:darken"


class PooledLinear(nn.Module):
    """A local loss with parameters: a linear classifier of the pooled activation."""

    def __init__(self, spec: LayerSpec, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(spec.out_channels, num_classes)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.head(h.mean(dim=(2, 3)))
        losses = None if labels is None else F.cross_entropy(logits, labels, reduction="none")
        return logits, losses


def darken(images: Tensor, generator: torch.Generator) -> Tensor:
    """An augmentation: each image is multiplied by a factor of its own."""
    factors = torch.randint(64, 257, (len(images), 1, 1, 1), generator=generator)
    return (images.int() * factors.to(images.device) // 256).to(torch.uint8)
