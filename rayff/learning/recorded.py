"""A batch's way through a chain, recorded once and replayed: no launch by launch from the host.

A recording reads and writes the same memory each time. So what changes from batch to batch is
copied into place before: features, labels and the state of the dropout streams; the learning rate
is a tensor (see `LayerOptimizer`). On a GPU the recording is a CUDA graph; `rerun` stands in for
one anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from rayff.kernels import gpu
from rayff.learning.analytic import FastStep
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer, layer_state, step_together

_WARM_UPS = 3
"""Runs before the recording, in which libraries choose and compile."""
_TOGETHER = 2_000_000
"""Weights from which on an optimizer's kernel fills a GPU."""


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


class SideStream:
    """What need not be waited for: on a GPU it goes to a stream of its own.

    A layer's gradient and its optimizer's step are in nobody's way: the next layer needs the
    features alone. So its forward pass fills what they leave idle of the GPU. They may lag behind
    by a few layers, not by all, since until then their memory is in use.
    """

    _LAG = 2

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.waiting: deque[tuple[torch.cuda.Event, Callable[[], None]]] = deque()

    def run(self, work: Callable[[], None]) -> None:
        """Begin with the work once all before it is done; what it refers to stays till then."""
        if self.stream is None:
            work()
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
            done = self.stream.record_event()
        self.waiting.append((done, work))
        self.wait(self._LAG)

    def wait(self, lag: int = 0) -> None:
        """Go on once no more than `lag` of the works are under way."""
        while len(self.waiting) > lag:
            done, _ = self.waiting.popleft()
            torch.cuda.current_stream().wait_event(done)


class StaticInput:
    """Where a recording finds what enters the chain: a batch like those to come, to begin with."""

    def __init__(self, activations: Activations) -> None:
        features, shortcut = activations.features, activations.shortcut
        usable = gpu.usable(features)
        self.features = gpu.pitched(features) if usable else features.clone()
        self.shortcut = None if shortcut is None else shortcut.clone()

    def fill(self, activations: Activations) -> None:
        """Put the next batch into place."""
        self.features.copy_(activations.features)
        if self.shortcut is not None:
            assert activations.shortcut is not None, "as in the batch of the recording"
            self.shortcut.copy_(activations.shortcut)

    @property
    def activations(self) -> Activations:
        """The batch that is in place."""
        return Activations(features=self.features, shortcut=self.shortcut)


def _kept(left: Activations) -> Activations:
    """Return a copy of what left the chain, which the next replay does not overwrite."""
    shortcut = None if left.shortcut is None else left.shortcut.clone()
    return Activations(features=left.features.clone(), shortcut=shortcut)


class RecordedEvaluation:
    """What a chain says of batches of one size.

    Args:
        chain: the layers.
        classify: of a layer; see `RuleSet`.
        activations: a batch as those to come.
        record: makes the recording.
    """

    def __init__(
        self,
        chain: Chain,
        classify: Callable[[CWConv, Tensor], tuple[Tensor, Tensor]],
        activations: Activations,
        record: Record = cuda_graph,
    ) -> None:
        self.chain = chain
        self.classify = classify
        self.static_input = StaticInput(activations)
        self._replay = record(self._work)

    def __call__(self, activations: Activations) -> tuple[Activations, list[Tensor]]:
        """Return what leaves the chain and each layer's goodness, (B, C) each."""
        self.static_input.fill(activations)
        self._replay()
        return _kept(self.leaving), list(self.goodness.clone().unbind())

    def _work(self) -> None:
        self.leaving, goodness = self.chain.evaluate(self.static_input.activations, self.classify)
        self.goodness = torch.stack(goodness)


class RecordedStep:
    """The step of all layers of a chain with batches of one size, by the fast rule.

    Args:
        chain: the layers.
        optimizers: of each layer, by number; their learning rates are tensors.
        activations: a batch as those to come, which is not learned from.
        labels: of that batch.
        record: makes the recording.
    """

    def __init__(
        self,
        chain: Chain,
        optimizers: Mapping[int, LayerOptimizer],
        activations: Activations,
        labels: Tensor,
        record: Record = cuda_graph,
    ) -> None:
        self.chain = chain
        self.optimizers = optimizers
        self.static_input = StaticInput(activations)
        self.labels = labels.clone()
        self.side_stream = SideStream(labels.device)
        self.dropping = [layer for layer in chain.cwconvs() if layer.dropped]
        share = Share(step=0, batch_size=len(labels))
        states = self._drawn(share).to(labels.device)
        self.streams = {
            layer.spec.index: state for layer, state in zip(self.dropping, states, strict=True)
        }
        self.states = states
        before = self._state(copied=True)
        self._replay = record(self._work)
        self._restore(before)

    def __call__(
        self, activations: Activations, labels: Tensor, share: Share
    ) -> tuple[Activations, list[Tensor]]:
        """Let every layer learn from a batch; return what leaves the chain and the losses."""
        self.static_input.fill(activations)
        self.labels.copy_(labels)
        self.states.copy_(self._drawn(share), non_blocking=True)
        self._replay()
        return _kept(self.leaving), list(torch.stack(self.losses).unbind())

    def _drawn(self, share: Share) -> Tensor:
        """Return the states of the layers' dropout streams with a batch, in the host's memory."""
        device = self.labels.device
        states = [layer.dropout_state(share, device) for layer in self.dropping]
        return torch.stack(states) if states else torch.empty(0)

    def _work(self) -> None:
        losses: list[Tensor] = []
        ready: list[CWConv] = []
        share = Share(step=0, batch_size=len(self.labels))

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            step = FastStep(layer, x)
            step.forward()
            found = step.pointwise(self.labels, share, self.streams.get(layer.spec.index))

            def learn() -> None:
                step.weight_gradient()
                losses.append(found.loss(share))
                ready.append(layer)
                enough = sum(each.weight.numel() for each in ready) >= _TOGETHER
                if enough or layer is self.chain.cwconvs()[-1]:
                    step_together([self.optimizers[each.spec.index] for each in ready])
                    for each in ready:
                        each.weight.grad = None
                    ready.clear()

            self.side_stream.run(learn)
            return found.features

        self.leaving = self.chain.walk(self.static_input.activations, visit)
        self.side_stream.wait()
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
