"""When a layer's gradient is computed and its optimizer steps: strategies of one training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from rayff.kernels.cuda_graph import SideStream
from rayff.learning.local_layer import LocalLayer
from rayff.learning.optimizers import LayerOptimizer, step_together

Optimizers = Mapping[int, LayerOptimizer]
"""By number of the layer."""

AllReduce = Callable[[nn.Parameter], Callable[[], None]]
"""Starts to sum a parameter's gradient over the replicas of a stage; the result waits for it.

All replicas start the same parameters in the same order and end with the same bits."""

_GROUPED_WEIGHTS = 2_000_000
"""Weights from which on one optimizer kernel fills a GPU."""


class Updates(Protocol):
    """Called for each layer of a step, in order, once its features are known."""

    def add(self, layer: LocalLayer, backward: Callable[[], Tensor], losses: list[Tensor]) -> None:
        """Compute the layer's gradient, append its loss, and step sooner or later."""
        ...

    def finish(self) -> None:
        """Complete the step of all layers."""
        ...


def _step(layer: LocalLayer, optimizer: LayerOptimizer) -> None:
    optimizer.step()
    layer.zero_grad()


class ImmediateUpdates:
    """Each layer steps at once, and its gradient is freed."""

    def __init__(self, optimizers: Optimizers) -> None:
        self.optimizers = optimizers

    def add(self, layer: LocalLayer, backward: Callable[[], Tensor], losses: list[Tensor]) -> None:
        """Compute the gradient and step."""
        losses.append(backward())
        _step(layer, self.optimizers[layer.spec.index])

    def finish(self) -> None:
        """Nothing is left to do."""


class AllReducedUpdates:
    """Replicas sum a layer's gradient while the layers behind it compute; all step at the end.

    A layer needs its new weights at the next batch only.
    """

    def __init__(self, optimizers: Optimizers, all_reduce: AllReduce) -> None:
        self.optimizers = optimizers
        self.all_reduce = all_reduce
        self.waiting: list[tuple[LocalLayer, list[Callable[[], None]]]] = []

    def add(self, layer: LocalLayer, backward: Callable[[], Tensor], losses: list[Tensor]) -> None:
        """Compute the gradient and start to sum it."""
        losses.append(backward())
        learned = (p for p in layer.parameters() if p.requires_grad)
        self.waiting.append((layer, [self.all_reduce(p) for p in learned]))

    def finish(self) -> None:
        """Wait for each layer's sum, and step."""
        for layer, waits in self.waiting:
            for wait in waits:
                wait()
            _step(layer, self.optimizers[layer.spec.index])
        self.waiting = []


class SideStreamUpdates:
    """Gradients and optimizers run on a side stream; small layers step together."""

    def __init__(self, optimizers: Optimizers, device: torch.device) -> None:
        self.optimizers = optimizers
        self.side_stream = SideStream(device)
        self.ready: list[LocalLayer] = []

    def add(self, layer: LocalLayer, backward: Callable[[], Tensor], losses: list[Tensor]) -> None:
        """Enqueue the gradient, and the step of the layers that are ready if they are enough."""

        def work() -> None:
            losses.append(backward())
            self.ready.append(layer)
            if sum(each.spec.num_weights for each in self.ready) >= _GROUPED_WEIGHTS:
                self._step_ready()

        self.side_stream.run(work)

    def finish(self) -> None:
        """Step the layers that are left, and wait for the side stream."""
        self.side_stream.run(self._step_ready)
        self.side_stream.wait()

    def _step_ready(self) -> None:
        if self.ready:
            step_together([self.optimizers[layer.spec.index] for layer in self.ready])
        for layer in self.ready:
            layer.zero_grad()
        self.ready = []
