"""One training step of a chain: every layer learns from the batch that passes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from rayff.learning.autograd import LayerStep
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import seeded_generators
from rayff.learning.local_layer import LocalLayer
from rayff.learning.updates import Updates


class ChainStep:
    """The step of all layers of a chain.

    Args:
        chain: the layers.
        layer_step: how one layer finds its features and its gradient.
        updates: when gradients are computed and optimizers step.
    """

    def __init__(self, chain: Chain, layer_step: LayerStep, updates: Updates) -> None:
        self.chain = chain
        self.layer_step = layer_step
        self.updates = updates

    def __call__(
        self,
        activations: Activations,
        labels: Tensor,
        batch_size: int,
        dropout_states: Mapping[int, Tensor],
        step: int | None = None,
    ) -> tuple[Activations, list[Tensor]]:
        """Let every layer learn from a batch, or a replica's share of one.

        Args:
            activations: input of the first layer.
            labels: (B,). Without images all gradients are zero and no kernel runs: the other
                replicas sum theirs.
            batch_size: images of the whole batch.
            dropout_states: by number of the layer, on the device; layers without dropout lack one.
            step: number of the batch over the whole run, which seeds torch's own generators for
                each layer; None leaves them.

        Returns:
            what leaves the chain, computed from the weights before the step, and each layer's
            loss.
        """
        losses: list[Tensor] = []
        self.chain.train()

        def visit(layer: LocalLayer, x: Tensor) -> Tensor:
            index = layer.spec.index
            state = dropout_states.get(index)
            with (
                nullcontext()
                if step is None
                else seeded_generators(layer.seed, index, step, x.device)
            ):
                features, backward = self.layer_step(layer, x, labels, batch_size, state)
            if layer.frozen:
                losses.append(backward())
            else:
                self.updates.add(layer, backward, losses)
            return features

        if len(labels):
            activations = self.chain.walk(activations, visit)
        else:
            for layer in self.chain.parts():
                if layer.frozen:
                    losses.append(torch.zeros((), device=labels.device))
                else:
                    self.updates.add(layer, _no_images(layer), losses)
        self.updates.finish()
        return activations, losses


def _no_images(layer: LocalLayer) -> Callable[[], Tensor]:
    learned = [parameter for parameter in layer.parameters() if parameter.requires_grad]

    def backward() -> Tensor:
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        return torch.zeros((), device=learned[0].device)

    return backward
