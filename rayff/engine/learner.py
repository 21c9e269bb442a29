"""How a stage learns and evaluates: the layers of a stage with their optimizers."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from rayff.config.recipe import Method, Recipe
from rayff.config.resolved import ResolvedConfig
from rayff.engine.commands import Batch
from rayff.engine.replicas import Replica
from rayff.kernels.cuda_graph import Record, cuda_graph
from rayff.kernels.precision import DTYPES
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer import ConvLayer, CWConv
from rayff.learning.layer_state import layer_state, learned_parameters, restore_layer
from rayff.learning.local_layer import LocalLayer
from rayff.learning.lr_schedule import layer_factor
from rayff.learning.optimizers import LayerOptimizer, optimizer_class
from rayff.learning.recorded import RecordedEvaluation, RecordedStep
from rayff.learning.rules import RULES, memory_format
from rayff.learning.step import ChainStep
from rayff.learning.updates import (
    AllReduce,
    AllReducedUpdates,
    ImmediateUpdates,
    SideStreamUpdates,
    Updates,
)
from rayff.models.architecture import Architecture

States = Mapping[int, NDArray[np.uint8]]
"""Bytes of each layer's safetensors file, by global layer number."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """The layers of a stage, and how they learn."""

    architecture: Architecture
    """The stage's slice of the network."""
    is_last: bool
    config: ResolvedConfig
    replica: Replica = Replica()
    """Which of the stage's actors it is: it processes that share of every batch."""


LEARNERS: dict[Method, str] = {
    "ff": "rayff.engine.learner:LocalLearner",
    "bp": "rayff.baselines.learner:EndToEndLearner",
    "bp-deepsup": "rayff.baselines.learner:EndToEndLearner",
}
"""Import path of the learner of each method."""


class Learner(Protocol):
    """The layers of a stage with their optimizers."""

    @property
    def loss_layers(self) -> Sequence[int]:
        """Number of the layer of each loss."""
        ...

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come, of the first layer where they differ."""
        ...

    def learn(self, batch: Batch, share: Share) -> tuple[Activations, list[Tensor]]:
        """Learn from the stage's share of a batch; return what goes on, and the losses."""
        ...

    def classify(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return what goes on, and the logits of each classifier, (B, C) each; no dropout."""
        ...

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Return each layer's parameters and optimizer state, as `layer_state` does."""
        ...


def make_learner(
    spec: StageSpec, device: torch.device, states: States | None = None, **options: Any
) -> Learner:
    """Return the learner of a stage's method.

    Args:
        spec: the stage.
        device: where it computes.
        states: to go on from a snapshot.
        options: what only one learner takes, such as `all_reduce`.
    """
    kind: Any = pkgutil.resolve_name(LEARNERS[spec.config.method])
    learner: Learner = kind(spec, device, states, **options)
    return learner


Layers = Sequence[ConvLayer | LocalLayer]


def make_optimizers(layers: Layers, recipe: Recipe, num_layers: int) -> dict[int, LayerOptimizer]:
    """Return an optimizer a layer, by global number.

    Args:
        layers: of a stage.
        recipe: their settings.
        num_layers: of the whole network.
    """
    kind = optimizer_class(recipe.optimizer)
    made: dict[int, LayerOptimizer] = {}
    for layer in layers:
        factor = layer_factor(recipe.lr_scale, layer.spec.index, num_layers)
        made[layer.spec.index] = kind(learned_parameters(layer).values(), recipe, factor)
    return made


def restore(
    layers: Layers, optimizers: Mapping[int, LayerOptimizer], states: States | None
) -> None:
    """Load the layers of a snapshot; None leaves them as they are."""
    if states is None:
        return
    for layer in layers:
        index = layer.spec.index
        restore_layer(index, layer, optimizers[index], load(states[index].tobytes()))


class LocalLearner:
    """Every layer learns from a loss of its own.

    Args:
        spec: the slice and how it learns.
        device: where it computes.
        states: to go on from a snapshot.
        all_reduce: sums the gradients of the stage's replicas; None for a stage of one actor.
        record: records steps on this device; None runs each step by itself. By default a CUDA
            graph where the step can be recorded.
    """

    def __init__(
        self,
        spec: StageSpec,
        device: torch.device,
        states: States | None = None,
        all_reduce: AllReduce | None = None,
        record: Record | None = None,
    ) -> None:
        config = spec.config
        self.spec = spec
        self.device = device
        self.rule = RULES[config.rule]
        chain = Chain.build(
            spec.architecture,
            dropout=config.recipe.dropout,
            seed=config.seed,
            dtype=DTYPES[config.precision],
            loss=config.loss,
        )
        of_modules = spec.architecture.source is not None
        self.chain = chain.to(device).to(
            memory_format=memory_format(config.rule, device, of_modules=of_modules)
        )
        for layer in self.chain.parts():
            layer.frozen = layer.spec.index in config.frozen
            if config.kernels and isinstance(layer, CWConv):
                layer.kernels = config.kernels[layer.spec.index]
        self.loss_layers = [layer.spec.index for layer in self.chain.parts()]
        self.optimizers = make_optimizers(self.chain.parts(), config.recipe, config.num_layers)
        restore(self.chain.parts(), self.optimizers, states)
        capturable = optimizer_class(config.recipe.optimizer).capturable
        recordable = config.rule == "fast" and all_reduce is None and capturable
        if record is None and recordable and device.type == "cuda":
            record = cuda_graph
        self.record = record if recordable else None
        updates: Updates
        if all_reduce is not None:
            updates = AllReducedUpdates(self.optimizers, all_reduce)
        elif self.record is not None:
            updates = SideStreamUpdates(self.optimizers, device)
        else:
            updates = ImmediateUpdates(self.optimizers)
        self.step = ChainStep(self.chain, self.rule.step, updates)
        self._recorded_step: RecordedStep | None = None
        self._recorded_evaluations: dict[int, RecordedEvaluation] = {}  # by number of images

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)

    def learn(self, batch: Batch, share: Share) -> tuple[Activations, list[Tensor]]:
        """Let every layer learn from its share of a batch; return what goes on, and the losses."""
        activations, labels = batch.activations, batch.labels
        if self.record is not None and len(labels) == self.spec.config.recipe.batch_size:
            if self._recorded_step is None:
                self._recorded_step = RecordedStep(
                    self.step, self.optimizers, activations, labels, self.record
                )
            return self._recorded_step(activations, labels, share)
        drawn = self.chain.dropout_states(share, self.device)
        states = {index: state.to(self.device) for index, state in drawn.items()}
        seeded = share.step if self.spec.config.rule == "plain" else None
        return self.step(activations, labels, share.batch_size, states, seeded)

    def classify(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return what goes on, and each layer's logits, (B, C) each; no dropout."""
        if self.record is None:
            return self.chain.evaluate(activations, self.rule.classify)
        images = len(activations.features)
        if images not in self._recorded_evaluations:
            self._recorded_evaluations[images] = RecordedEvaluation(
                self.chain, self.rule.classify, activations, self.record
            )
        return self._recorded_evaluations[images](activations)

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Return each layer's parameters and its optimizer's state."""
        return {
            layer.spec.index: layer_state(layer, self.optimizers[layer.spec.index])
            for layer in self.chain.parts()
        }
