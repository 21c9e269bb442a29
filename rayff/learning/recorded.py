"""Steps and evaluations that are recorded once and replayed, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rayff.kernels import gpu
from rayff.kernels.cuda_graph import Record, cuda_graph
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer_state import (
    fixed_tensors,
    layer_state,
    learned_parameters,
    state_key,
)
from rayff.learning.local_layer import LocalLayer
from rayff.learning.step import ChainStep
from rayff.learning.updates import Optimizers


class StaticInput:
    """The memory where a recording finds what enters the chain.

    Args:
        activations: a batch of the size of those to come, to begin with.
    """

    def __init__(self, activations: Activations) -> None:
        usable = gpu.usable(activations.features)
        self.features = (
            gpu.pitched(activations.features) if usable else activations.features.clone()
        )
        self.shortcut = None if activations.shortcut is None else activations.shortcut.clone()

    def fill(self, activations: Activations) -> None:
        """Copy the next batch into place."""
        self.features.copy_(activations.features)
        if self.shortcut is not None:
            assert activations.shortcut is not None, "as in the batch of the recording"
            self.shortcut.copy_(activations.shortcut)

    @property
    def activations(self) -> Activations:
        """The batch that is in place."""
        return Activations(features=self.features, shortcut=self.shortcut)


class RecordedStep:
    """A step that is recorded once and replayed, for batches of one size.

    A recording reads and writes the same memory each time, so whatever changes from batch to batch
    is copied into place before: input, labels and dropout states. The learning rate is a tensor.

    Args:
        step: of the chain.
        optimizers: of each layer, by number.
        activations: a batch like those to come, which is not learned from.
        labels: of that batch.
        record: makes the recording.
    """

    def __init__(
        self,
        step: ChainStep,
        optimizers: Optimizers,
        activations: Activations,
        labels: Tensor,
        record: Record = cuda_graph,
    ) -> None:
        self.step = step
        self.optimizers = optimizers
        self.static_input = StaticInput(activations)
        self.labels = labels.clone()
        drawn = self._drawn(Share(step=0, batch_size=len(labels)))
        self.memory = torch.stack(list(drawn.values())).to(labels.device) if drawn else None
        self.dropout_states = dict(zip(drawn, self.memory if drawn else (), strict=True))  # type: ignore[arg-type]
        self.output: Activations = activations
        self.losses = labels
        before = {
            index: {name: value.clone() for name, value in state.items()}
            for index, state in self._states().items()
        }
        self._replay = record(self._work)
        self._restore(before)

    def __call__(
        self, activations: Activations, labels: Tensor, share: Share
    ) -> tuple[Activations, list[Tensor]]:
        """Let every layer learn from a batch; return what leaves the chain and the losses."""
        self.static_input.fill(activations)
        self.labels.copy_(labels)
        if self.memory is not None:
            drawn = torch.stack(list(self._drawn(share).values()))
            self.memory.copy_(drawn, non_blocking=True)
        self._replay()
        return self.output.map(torch.clone), list(self.losses.clone().unbind())

    def _drawn(self, share: Share) -> dict[int, Tensor]:
        return self.step.chain.dropout_states(share, self.labels.device)

    def _work(self) -> None:
        self.output, losses = self.step(
            self.static_input.activations, self.labels, len(self.labels), self.dropout_states
        )
        self.losses = torch.stack(losses)

    def _states(self) -> dict[int, dict[str, Tensor]]:
        return {
            layer.spec.index: layer_state(layer, self.optimizers[layer.spec.index])
            for layer in self.step.chain.parts()
        }

    @torch.no_grad()
    def _restore(self, before: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Undo what the recording learned, in the memory that it refers to."""
        for layer in self.step.chain.parts():
            was = before[layer.spec.index]
            optimizer = self.optimizers[layer.spec.index]
            for name, tensor in fixed_tensors(layer).items():
                tensor.copy_(was[name])
            for name, parameter in learned_parameters(layer).items():
                parameter.copy_(was[name])
                for key, value in optimizer.state[parameter].items():
                    old = was.get(state_key(name, key))
                    value.copy_(torch.zeros_like(value) if old is None else old)


class RecordedEvaluation:
    """The evaluation of batches of one size, recorded once and replayed.

    Args:
        chain: the layers.
        classify: of a layer; see rayff.learning.rules.Rule.
        activations: a batch like those to come.
        record: makes the recording.
    """

    def __init__(
        self,
        chain: Chain,
        classify: Callable[[LocalLayer, Tensor], tuple[Tensor, Tensor]],
        activations: Activations,
        record: Record = cuda_graph,
    ) -> None:
        self.chain = chain
        self.classify = classify
        self.static_input = StaticInput(activations)
        self.output: Activations = activations
        self.logits = activations.features
        self._replay = record(self._work)

    def __call__(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return what leaves the chain and each layer's logits, (B, C) each."""
        self.static_input.fill(activations)
        self._replay()
        return self.output.map(torch.clone), list(self.logits.clone().unbind())

    def _work(self) -> None:
        self.output, logits = self.chain.evaluate(self.static_input.activations, self.classify)
        self.logits = torch.stack(logits)
