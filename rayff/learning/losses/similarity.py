"""Similarity of images in a batch, and how far it is from that of their labels.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(rows: Tensor) -> Tensor:
    """Return the cosine of each pair of rows (B, N), each centred around its own mean, (B, B)."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    unit = F.normalize(centred, dim=1, eps=1e-8)
    return unit @ unit.T


def label_cosines(labels: Tensor, num_classes: int) -> Tensor:
    """Return the `cosines` of one-hot labels (B,): 1 within a class, else -1 / (C - 1), (B, B)."""
    same = labels[:, None] == labels[None, :]
    return torch.where(same, 1.0, -1.0 / (num_classes - 1))


def similarity_losses(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the mean squared error of each image's cosines against those of the labels, (B,)."""
    return (cosines(rows) - label_cosines(labels, num_classes)).square().mean(dim=1)
