"""Times of layers, transfers and sums, and the costs of a batch that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rayff.models.architecture import Architecture
from rayff.partition.boundaries import Costs


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds that a training batch takes in one layer."""

    forward_s: float
    """The convolution, pool and unfolding included; but for goodness with the fast rule all that
    the features need."""
    pointwise_s: float
    """Dropout, ReLU, goodness, loss, normalisation and the gradient of all that; part of the
    other two for other losses and rules."""
    gradient_s: float
    """The gradient of the weights."""
    optimizer_s: float
    """The optimizer's step, whose time does not depend on the images."""

    @property
    def images_s(self) -> float:
        """Seconds that grow with the images."""
        return self.forward_s + self.pointwise_s + self.gradient_s

    @property
    def total_s(self) -> float:
        """Seconds of the whole step."""
        return self.images_s + self.optimizer_s


@dataclass(frozen=True, kw_only=True)
class AllReduceTime:
    """Seconds to send a gradient once between replicas; a sum of r sends it 2(r - 1)/r times."""

    call_s: float
    """Seconds of a gradient however small."""
    byte_s: float
    """Seconds of each byte."""


def costs(
    architecture: Architecture,
    times: Sequence[LayerTime],
    *,
    frozen: Collection[int] = (),
    batch_size: int,
    bytes_per_element: int,
    seconds_per_byte: float,
    all_reduce: AllReduceTime,
) -> Costs:
    """Return the costs of a batch.

    Args:
        architecture: all layers.
        times: of each layer, as measured.
        frozen: numbers of the layers that only run forward.
        batch_size: images of a batch.
        bytes_per_element: of features.
        seconds_per_byte: of a transfer between stages.
        all_reduce: of gradients between replicas; a weight's has 4 bytes.
    """
    activations = [
        architecture.boundary_elements(cut) * batch_size * bytes_per_element * seconds_per_byte
        for cut in range(1, len(architecture))
    ]
    learns = [layer.index not in frozen for layer in architecture.layers]
    return Costs(
        layer_s=[
            time.forward_s + time.pointwise_s + learning * time.gradient_s
            for time, learning in zip(times, learns, strict=True)
        ],
        boundary_s=[0.0, *activations],
        step_s=[t.optimizer_s * learning for t, learning in zip(times, learns, strict=True)],
        all_reduce_s=[
            learning * (all_reduce.call_s + 4 * layer.num_weights * all_reduce.byte_s)
            for layer, learning in zip(architecture.layers, learns, strict=True)
        ],
    )
