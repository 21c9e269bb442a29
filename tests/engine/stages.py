"""Stages of small networks, and commands for them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rayff.config.kernels import Kernels
from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.config.resolved import ResolvedConfig
from rayff.data.images import ImageSet, Split
from rayff.engine.commands import Chunk, Evaluate, Snapshot, Train
from rayff.engine.learner import LocalLearner, StageSpec, States
from rayff.engine.replicas import Replica, join, split
from rayff.engine.stage import Stage
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
CLASSES = 4
SEED = 5
LR = 0.02
TINYCNN = architecture("tinycnn", num_classes=CLASSES, image_channels=3, width=4)
RESNET = architecture("resnet", num_classes=CLASSES, image_channels=3, width=4)

# DeeperForward, section 4: in a group the second layer adds the block's input and the fourth
# concatenates it; behind the last group nothing is joined.
OPENS = (1, 3, 5, 7, 9, 11, 13)
ADDS, CONCATENATES = (2, 6, 10, 14), (4, 8, 12)


def image_set(num_images: int, seed: int) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num_images, 3, 32, 32), dtype=np.uint8)
    return ImageSet(images=images, labels=generator.integers(0, CLASSES, num_images))


DATA: dict[Split, ImageSet] = {
    "train": image_set(14, seed=1),
    "valid": image_set(9, seed=2),
    "test": image_set(4, seed=3),
}
ALONE = Replica()
RECIPE = Recipe(lr=LR, dropout=0.25, weight_decay=0.01)


def make_stage(
    network: Architecture,
    *,
    first: bool = True,
    last: bool = True,
    states: States | None = None,
    data: dict[Split, ImageSet] = DATA,
    replica: Replica = ALONE,
    learner: dict[str, Any] | None = None,
    **changes: Any,
) -> Stage:
    """Return a stage; `changes` are of the recipe or the resolved config, plain and fp32."""
    recipe = {name: changes.pop(name) for name in [*changes] if hasattr(RECIPE, name)}
    config = ResolvedConfig(
        **{
            "method": "ff",
            "loss": LossConfig(),
            "augment": "none",
            "seed": SEED,
            "recipe": dataclasses.replace(RECIPE, **recipe),
            "rule": "plain",
            "precision": "fp32",
            "kernels": (Kernels(),) * 17,
            **changes,
        }
    )
    spec = StageSpec(architecture=network, is_last=last, config=config, replica=replica)
    own = LocalLearner(spec, CPU, states, **(learner or {}))
    return Stage(spec, CPU, own, data if first else None)


def weight_of(stage: Stage, layer: int) -> torch.Tensor:
    """Return the weights of one of the stage's layers, counted within the stage."""
    assert isinstance(stage.learner, LocalLearner)
    return stage.learner.chain.parts()[layer].weight.data


def train(*batches: Sequence[int], step: int = 0, lr: float = LR) -> Train:
    arrays = tuple(np.array(batch) for batch in batches)
    return Train(epoch=0, step=step, lrs=(lr,) * len(arrays), batches=arrays)


def evaluate(*batches: Sequence[int], split: Split = "valid") -> Evaluate:
    return Evaluate(epoch=0, split=split, batches=tuple(np.array(batch) for batch in batches))


def states_of(*stages: Stage) -> dict[int, bytes]:
    """Return parameters and optimizer state of all layers, byte for byte."""
    reports = [stage.handle(Snapshot(epoch=0, batch=0), None)[1] for stage in stages]
    return {index: state.tobytes() for report in reports for index, state in report.states.items()}


def as_arrays(states: dict[int, bytes]) -> States:
    return {index: np.frombuffer(state, dtype=np.uint8) for index, state in states.items()}


def all_replicas(count: int) -> list[Replica]:
    return [Replica(index=index, count=count) for index in range(count)]


def exchange(chunks: list[Chunk], sizes: list[int], receivers: int) -> list[Chunk]:
    """Take the chunks of all senders to all receivers."""
    inboxes: list[list[Chunk]] = [[] for _ in range(receivers)]
    for sender, chunk in zip(all_replicas(len(chunks)), chunks, strict=True):
        pieces = split(chunk, sizes, sender, receivers)
        for receiver, piece in zip(sender.receivers(receivers), pieces, strict=True):
            inboxes[receiver].append(piece)
    return [join(inbox) for inbox in inboxes]
