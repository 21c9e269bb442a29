"""A batch's way through a chain, recorded once and replayed: no launch by launch from the host.

A recording reads and writes the same memory each time. So what changes from batch to batch is
copied into place before: features, labels and dropout bytes; the learning rate is a tensor (see
`LayerOptimizer`). On a GPU the recording is a CUDA graph; `rerun` stands in for one anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from rayff.learning.chain import Chain, Crossing
from rayff.learning.fast import fast_rule
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer, layer_state
from rayff.learning.streams import Share

_WARM_UPS = 3
"""Runs before the recording, in which libraries choose and compile."""


class Record(Protocol):
    """Turns work into something that does it again on the same memory."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the replay of `work`."""
        ...


def rerun(work: Callable[[], None]) -> Callable[[], None]:
    """Record nothing: the replay is the work itself."""
    work()
    return work


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record the work as a CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class ReplayedStep:
    """The step of all layers of a chain with batches of one size, by the fast rule.

    Args:
        chain: the layers.
        optimizers: of each layer, by number; their learning rates are tensors.
        crossing: a batch as those to come, which is not learned from.
        labels: of that batch.
        record: makes the recording.
    """

    def __init__(
        self,
        chain: Chain,
        optimizers: Mapping[int, LayerOptimizer],
        crossing: Crossing,
        labels: Tensor,
        record: Record = cuda_graph,
    ) -> None:
        self.chain = chain
        self.optimizers = optimizers
        self.features = crossing.features.clone()
        self.shortcut = None if crossing.shortcut is None else crossing.shortcut.clone()
        self.labels = labels.clone()
        self.drawn = {
            layer.spec.index: torch.empty(
                *(len(labels), layer.spec.out_size, layer.spec.out_size, layer.spec.out_channels),
                dtype=torch.uint8,
                device=labels.device,
            )
            for layer in chain.cwconvs()
            if layer.dropped
        }
        self.draw(Share(step=0, batch_size=len(labels)))
        before = self._state(copied=True)
        self._replay = record(self._work)
        self._restore(before)

    def __call__(
        self, crossing: Crossing, labels: Tensor, share: Share
    ) -> tuple[Crossing, list[Tensor]]:
        """Let every layer learn from a batch; return what leaves the chain and the losses."""
        self.features.copy_(crossing.features)
        if self.shortcut is not None:
            assert crossing.shortcut is not None, "as in the batch of the recording"
            self.shortcut.copy_(crossing.shortcut)
        self.labels.copy_(labels)
        self.draw(share)
        self._replay()
        left = self.leaving
        shortcut = None if left.shortcut is None else left.shortcut.clone()
        onward = Crossing(features=left.features.clone(), shortcut=shortcut)
        return onward, list(torch.stack(self.losses).unbind())

    def draw(self, share: Share) -> None:
        """Put the dropout bytes of a batch into place: the generators are the host's affair."""
        for layer in self.chain.cwconvs():
            if layer.dropped:
                place = self.drawn[layer.spec.index]
                shape = place.permute(0, 3, 1, 2).shape
                place.copy_(layer.dropout_stream(share).bytes(shape, place.device))

    def _work(self) -> None:
        losses: list[Tensor] = []
        share = Share(step=0, batch_size=len(self.labels))

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            index = layer.spec.index
            features, loss = fast_rule(layer, x, self.labels, share, self.drawn.get(index))
            self.optimizers[index].step()
            losses.append(loss)
            return features

        crossing = Crossing(features=self.features, shortcut=self.shortcut)
        self.leaving = self.chain.walk(crossing, visit)
        self.losses = losses

    def _state(self, *, copied: bool) -> dict[int, dict[str, Tensor]]:
        return {
            layer.spec.index: {
                name: value.clone() if copied else value
                for name, value in layer_state(layer, self.optimizers[layer.spec.index]).items()
            }
            for layer in self.chain.cwconvs()
        }

    def _restore(self, before: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Undo what the recording learned, in the memory that it knows."""
        for layer in self.chain.cwconvs():
            was = before[layer.spec.index]
            with torch.no_grad():
                layer.weight.copy_(was["weight"])
            for name, value in self.optimizers[layer.spec.index].state[layer.weight].items():
                old = was.get(f"optimizer.{name}")
                value.copy_(torch.zeros_like(value) if old is None else old)
