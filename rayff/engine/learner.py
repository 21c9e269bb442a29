"""How a stage learns: what is between a batch that comes and the losses that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from rayff.config.kernels import Kernels
from rayff.config.recipe import Recipe
from rayff.engine.all_reduce import AllReduce
from rayff.engine.commands import Batch
from rayff.engine.replicas import Replica
from rayff.kernels.precision import DTYPES
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer, layer_state, restore_layer
from rayff.learning.recorded import Record, RecordedEvaluation, RecordedStep, cuda_graph
from rayff.learning.rules import RULES
from rayff.models.architecture import Architecture

States = Mapping[int, NDArray[np.uint8]]
"""Safetensors bytes by global layer number."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a stage is made of."""

    architecture: Architecture
    """The stage's slice of the network."""
    is_last: bool
    recipe: Recipe
    seed: int
    precision: str
    rule: str = "fast"
    """The name of the rule by which it learns."""
    kernels: tuple[Kernels, ...] = ()
    """How each layer of the slice computes its convolution; by default with torch's."""
    replica: Replica = Replica()
    """Which of the stage's actors it is: it sees that share of every batch."""


class Learner(Protocol):
    """The layers of a stage with their optimizers."""

    @property
    def losses(self) -> Sequence[int]:
        """Number of the layer of each loss."""
        ...

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        ...

    def learn(self, batch: Batch, share: Share) -> tuple[Activations, list[Tensor]]:
        """Learn from the stage's share of a batch; return what goes on, and the losses."""
        ...

    def classify(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return what goes on, and what each loss's classifier says, (B, C) each; no dropout."""
        ...

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Return what each layer learns and its optimizer's state, as `layer_state` does."""
        ...


def make_optimizers(layers: Sequence[CWConv], recipe: Recipe) -> dict[int, LayerOptimizer]:
    """Return an optimizer a layer, by global number."""
    return {layer.spec.index: LayerOptimizer(layer, recipe) for layer in layers}


def restore(
    layers: Sequence[CWConv], optimizers: Mapping[int, LayerOptimizer], states: States | None
) -> None:
    """Put the layers where a snapshot stands; None leaves them fresh."""
    if states is None:
        return
    for layer in layers:
        index = layer.spec.index
        restore_layer(layer, optimizers[index], load(states[index].tobytes()))


class LocalLearner:
    """Forward-Forward: every layer learns from a loss of its own.

    Args:
        spec: the slice and how it learns.
        device: where it computes.
        states: to go on from a snapshot.
        all_reduce: adds up the gradients of the stage's replicas; None for a stage of one actor.
    """

    def __init__(
        self,
        spec: StageSpec,
        device: torch.device,
        states: States | None = None,
        all_reduce: AllReduce | None = None,
    ) -> None:
        self.spec = spec
        self.all_reduce = all_reduce
        self.device = device
        self.rules = RULES[spec.rule]
        chain = Chain.build(
            spec.architecture,
            dropout=spec.recipe.dropout,
            seed=spec.seed,
            dtype=DTYPES[spec.precision],
        )
        self.chain = self.rules.arrange(chain.to(device))
        for layer, kernels in zip(self.chain.cwconvs(), spec.kernels, strict=False):
            layer.kernels = kernels
        # A GPU's step is recorded; not the sums of replicas, nor an optimizer whose learning rate
        # is no tensor.
        recordable = spec.rule == "fast" and all_reduce is None and spec.recipe.optimizer != "sgd"
        self.record: Record | None = cuda_graph if recordable and device.type == "cuda" else None
        self.replayed: RecordedStep | None = None
        self.evaluations: dict[int, RecordedEvaluation] = {}  # by the number of images
        self.optimizers = make_optimizers(self.chain.cwconvs(), spec.recipe)
        self.losses = [layer.spec.index for layer in self.chain.cwconvs()]
        restore(self.chain.cwconvs(), self.optimizers, states)
        if all_reduce is not None:
            all_reduce.prepare([layer.weight for layer in self.chain.cwconvs()])

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)

    def learn(self, batch: Batch, share: Share) -> tuple[Activations, list[Tensor]]:
        """Let every layer learn from its share of a batch.

        A layer needs its new weights at the next batch only, so the replicas add up its gradient
        while the layers behind it compute, and the optimizers step at the end. Alone, a layer
        steps at once, and its gradient is gone. A share without images adds nothing to the
        gradients; no kernel sees it.
        """
        if self.record is not None and len(batch.labels) == self.spec.recipe.batch_size:
            if self.replayed is None:
                self.replayed = RecordedStep(
                    self.chain, self.optimizers, batch.activations, batch.labels, self.record
                )
            return self.replayed(batch.activations, batch.labels, share)
        losses: list[Tensor] = []
        waits: list[Callable[[], None]] = []

        def step(layer: CWConv) -> None:
            self.optimizers[layer.spec.index].step()
            layer.weight.grad = None

        def learned(layer: CWConv, loss: Tensor) -> None:
            assert layer.weight.grad is not None, "the rule leaves a gradient"
            losses.append(loss)
            if self.all_reduce is None:
                step(layer)
            else:
                waits.append(self.all_reduce.start(layer.weight))

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            features, loss = self.rules.learn(layer, x, batch.labels, share)
            learned(layer, loss)
            return features

        if len(batch.labels):
            activations = self.chain.walk(batch.activations, visit)
        else:
            activations = batch.activations
            for layer in self.chain.cwconvs():
                layer.weight.grad = torch.zeros_like(layer.weight)
                learned(layer, torch.zeros((), device=self.device))
        for wait, layer in zip(waits, self.chain.cwconvs(), strict=False):
            wait()
            step(layer)
        return activations, losses

    def classify(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return what goes on and each layer's goodness, (B, C) each; no dropout."""
        if self.record is None:
            return self.chain.evaluate(activations, self.rules.classify)
        images = len(activations.features)
        if images not in self.evaluations:
            self.evaluations[images] = RecordedEvaluation(
                self.chain, self.rules.classify, activations, self.record
            )
        return self.evaluations[images](activations)

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Return each layer's weight and its optimizer's state."""
        return {
            layer.spec.index: layer_state(layer, self.optimizers[layer.spec.index])
            for layer in self.chain.cwconvs()
        }
