"""Backpropagation as the learner of a stage: one autograd graph and the losses of all heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.baselines.model import Backpropagation
from rayff.engine.commands import Batch
from rayff.engine.learner import StageSpec, States, make_optimizers, restore
from rayff.learning.chain import Activations
from rayff.learning.generators import Share
from rayff.learning.layer_state import layer_state


class EndToEndLearner:
    """A network that learns from the sum of its heads' losses.

    Args:
        spec: the whole network and how it learns; rule and kernels are not used.
        device: where it computes.
        states: to go on from a snapshot.
        distribute: wraps the network, such as so that its gradients are the mean over all workers.
        checkpointing: keep the inputs of blocks alone, and compute the rest again.
        accumulation: parts of a batch whose gradients are added up, one after the other.
    """

    def __init__(
        self,
        spec: StageSpec,
        device: torch.device,
        states: States | None = None,
        distribute: Callable[[nn.Module], Callable[..., Tensor]] = lambda network: network,
        *,
        checkpointing: bool = False,
        accumulation: int = 1,
    ) -> None:
        self.workers = spec.replica.count
        self.label_smoothing = spec.config.loss.label_smoothing
        weights = spec.config.loss.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=device)
        network = Backpropagation(
            spec.architecture,
            dropout=spec.config.recipe.dropout,
            seed=spec.config.seed,
            deep_supervision=spec.config.method == "bp-deepsup",
            checkpointing=checkpointing,
        )
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.layers = self.network.parts()
        self.loss_layers = [layer.spec.index for layer in self.layers if layer.head is not None]
        recipe = spec.config.recipe
        self.accumulation = accumulation
        self.clip_norm = recipe.clip_norm
        by_layer = replace(recipe, clip_norm=None)  # one loss trains all layers
        self.optimizers = make_optimizers(self.layers, by_layer, len(self.layers))
        restore(self.layers, self.optimizers, states)
        self.distributed = distribute(self.network)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)

    def learn(self, batch: Batch, share: Share) -> tuple[Activations, list[Tensor]]:
        """Take one step on the share of a batch; return its part of each head's loss.

        A part is the sum over the share's images by the images of the batch, so that parts add
        up to the batch's loss. The gradients of the workers are averaged, hence the factor.
        """
        losses = self.find_gradients(batch, share)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        for layer in self.layers:
            self.optimizers[layer.spec.index].step()
        self.network.zero_grad()
        return batch.activations, list(losses)

    def find_gradients(self, batch: Batch, share: Share) -> Tensor:
        """Leave the gradients of the share of a batch in the network; return what `learn` does."""
        self.network.train()
        images, first, parts = batch.activations.features, share.first, []
        chunks = (each.chunk(self.accumulation) for each in (images, batch.labels))
        for some, labels in zip(*chunks, strict=True):
            parts.append(self._add_gradients(some, labels, replace(share, first=first)))
            first += len(labels)
        return torch.stack(parts).sum(dim=0)

    def _add_gradients(self, images: Tensor, labels: Tensor, share: Share) -> Tensor:
        logits = self.distributed(_image_format(images), share)
        targets = labels.expand(len(logits), -1)
        by_image = F.cross_entropy(
            *(logits.transpose(1, 2), targets, self.class_weights),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        losses: Tensor = by_image.sum(dim=1) / share.batch_size
        (losses.sum() * self.workers).backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    @torch.no_grad()
    def classify(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return the images as they came and each head's logits, (B, C) each; no dropout."""
        self.network.eval()
        return activations, list(self.network(_image_format(activations.features)))

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Return each layer's weight and head with their optimizer's state."""
        return {
            layer.spec.index: layer_state(layer, self.optimizers[layer.spec.index])
            for layer in self.layers
        }


def _image_format(images: Tensor) -> Tensor:
    return images.to(memory_format=torch.channels_last)
