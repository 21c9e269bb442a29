"""Where the first stage takes its images from: memory, or files that are read as it goes."""

from __future__ import annotations

import time
import warnings
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rayff.data.images import ImageSet
from rayff.data.order import Indices
from rayff.data.streaming import Feed, StreamedSet, Window


class Images(Protocol):
    """The images of a split."""

    waited_s: float
    """Seconds in which images were waited for."""

    def fetch(self, rows: Indices, epoch: int) -> tuple[Tensor, Tensor]:
        """Return images, uint8 (B, K, S, S), and labels, (B,), on the stage's device.

        Args:
            rows: of the split, in the order of the epoch.
            epoch: from 0.
        """


class StoredImages:
    """Images in memory.

    On a GPU they are copied to it. On a CPU they stay where they are, which may be the object
    store's memory, and are only read.
    """

    waited_s = 0.0

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        with warnings.catch_warnings():  # nothing writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.images = torch.from_numpy(np.ascontiguousarray(images.images)).to(device)
            self.labels = torch.from_numpy(np.ascontiguousarray(images.labels)).to(device)

    def fetch(self, rows: Indices, epoch: int) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        where = torch.from_numpy(rows).to(self.images.device, non_blocking=True)
        return self.images[where], self.labels[where]


class StreamedImages:
    """Images in files.

    Args:
        images: the split.
        device: where they are used.
        seed: of the run, where they are trained on; None where they are evaluated.
        epochs: of the run.
        feed: decodes blocks.
    """

    def __init__(
        self,
        images: StreamedSet,
        device: torch.device,
        seed: int | None,
        epochs: int,
        feed: Feed,
    ) -> None:
        self.data = images
        self.device = device
        self.waited_s = 0.0
        self._window = Window(images, seed, epochs, feed)

    def fetch(self, rows: Indices, epoch: int) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        start = time.perf_counter()
        images = torch.from_numpy(self._window.images(rows, epoch))
        self.waited_s += time.perf_counter() - start
        labels = torch.from_numpy(self.data.labels[rows])
        return images.to(self.device), labels.to(self.device)


def open_images(
    images: ImageSet | StreamedSet,
    device: torch.device,
    seed: int | None,
    epochs: int,
    feed: Feed,
) -> Images:
    """Return the images of a split; see StoredImages and StreamedImages."""
    if isinstance(images, ImageSet):
        return StoredImages(images, device)
    return StreamedImages(images, device, seed, epochs, feed)
