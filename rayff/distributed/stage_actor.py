"""The stage actor: a thin shell around a plain Stage."""

from __future__ import annotations

import copy
import dataclasses
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from rayff.config.kernels import Kernels
from rayff.config.registries import LOSSES
from rayff.config.resolved import ResolvedConfig
from rayff.config.text import layer_range
from rayff.config.train_config import Precision
from rayff.data.augmentation import parse_augmentations
from rayff.data.tasks import Splits
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.all_reduce import Address, ReplicaGroup, use_own_interface
from rayff.distributed.failures import NoGpuError
from rayff.distributed.reading import Readers
from rayff.distributed.transport import (
    Message,
    Place,
    as_tensors,
    message_bytes,
    own_place,
    pack_chunk,
    unpack_message,
)
from rayff.engine.commands import Chunk, Command, Report, Snapshot
from rayff.engine.learner import StageSpec, make_learner
from rayff.engine.replicas import join, split
from rayff.engine.stage import Stage
from rayff.kernels.autotune import autotune
from rayff.kernels.device_class import device_class, device_name, missing_kernels
from rayff.kernels.precision import DTYPES, configure_torch, default_precision
from rayff.learning.optimizers import optimizer_class
from rayff.models.architecture import Architecture
from rayff.models.zoo import ARCHITECTURES
from rayff.partition.layer_costs import AllReduceTime, LayerTime
from rayff.partition.plan import StageResources
from rayff.partition.profile import Conditions, time_layers

_LINK_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Times of one actor."""

    times: list[LayerTime]
    """Of each layer."""
    seconds_per_byte: float
    """To the object store and back."""


class StageActor:
    """Owns a stage, or one replica of it; its methods run in the order called.

    It starts without layers, so that it can time them where they will run, and gets its slice
    of the chain once the cuts are known.

    Args:
        threads: torch threads.
        device: "cpu" or "cuda"; Ray has made the GPUs of others invisible.
    """

    def __init__(self, threads: int, device: str) -> None:
        configure_torch(threads)
        use_own_interface()
        self.device = torch.device(device)
        self.group = ReplicaGroup(self.device)
        self.stage: Stage | None = None
        self.reports: deque[Report] = deque()

    def __repr__(self) -> str:
        """Name its layers and replica, in Ray's logs and above a traceback."""
        if self.stage is None:
            return "StageActor(no layers yet)"
        layers, replica = self.stage.spec.architecture.layers, self.stage.spec.replica
        which = f", replica {replica.index} of {replica.count}" if replica.count > 1 else ""
        return f"StageActor({layer_range(layers[0].index, layers[-1].index)}{which})"

    def capabilities(
        self, loss: str, optimizer: str, augment: str, modules: str | None
    ) -> Capabilities:
        """Return what the device can do, once what the run names can be imported on its node.

        Raises:
            UserError: it cannot; the node is named.
        """
        if modules is not None:
            ARCHITECTURES.load(modules)
        LOSSES.load(loss)
        optimizer_class(optimizer)
        parse_augmentations(augment)
        return device_capabilities(self.device)

    def place(self) -> Place:
        """Return the node and the GPUs that Ray gave."""
        return own_place()

    def autotune(
        self, architecture: Architecture, images: int, precision: Precision
    ) -> tuple[Kernels, ...]:
        """Return the fastest kernels of each layer."""
        return autotune(architecture, images, self.device, DTYPES[precision])

    def profile(
        self,
        config: ResolvedConfig,
        architecture: Architecture,
        neighbours: int,
        anew: bool = False,
    ) -> Profile:
        """Time the layers, and the object store.

        Args:
            config: how the layers learn.
            architecture: all layers.
            neighbours: other actors that do the same at this moment.
            anew: whether to time the layers even where their times are known.
        """
        conditions = Conditions(
            recipe=config.recipe,
            num_classes=architecture.num_classes,
            device=self.device,
            dtype=DTYPES[config.precision],
            rule=config.rule,
            loss=config.loss,
            neighbours=neighbours,
        )
        times = time_layers(architecture, conditions, config.kernels, anew=anew)
        payload = np.zeros(_LINK_BYTES, dtype=np.uint8)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            ray.get(ray.put(payload))
            seconds.append(time.perf_counter() - start)
        return Profile(times=times, seconds_per_byte=min(seconds) / _LINK_BYTES)

    def open_group(self) -> Address:
        """Open the store through which the replicas of the stage connect."""
        return self.group.open()

    def enter_group(self, address: Address, rank: int, size: int, backend: str) -> None:
        """Join the process group of the stage's replicas."""
        self.group.enter(address, rank, size, backend)

    def leave_group(self) -> None:
        """Leave the process group."""
        self.group.leave()

    def time_all_reduce(self) -> AllReduceTime:
        """Time the all-reduce of gradients among the actors of the group."""
        return self.group.time_all_reduce()

    def set_up(
        self,
        spec: StageSpec,
        data: Splits | None,
        copied: bool,
        states: Mapping[int, NDArray[np.uint8]] | None,
    ) -> None:
        """Build the stage: fresh, or from the layers of a snapshot.

        Args:
            spec: the slice and how it learns.
            data: the images of every split, for the first stage.
            copied: whether to copy them out of the object store first.
            states: bytes of each layer's safetensors file, by global number.
        """
        self.stage = None  # free the one before first
        options = {"all_reduce": self.group.start} if spec.replica.count > 1 else {}
        learner = make_learner(spec, self.device, states, **options)
        if data is not None and copied:
            data = copy.deepcopy(data)
        self.stage = Stage(spec, self.device, learner, data, Readers())

    def handle(self, command: Command, receivers: int, *pieces: Message) -> Any:
        """Carry out a command; messages go on through the object store.

        Args:
            command: what to do.
            receivers: replicas of the next stage; 0 where nothing goes on.
            pieces: messages of the replicas of the stage before that have something for it.

        Returns:
            a message for each receiver of its images, and the report; the report alone where
            nothing goes on.
        """
        chunk, report = self._handle(command, pieces)
        if receivers == 0:
            return report
        assert self.stage is not None
        assert chunk is not None
        assert not isinstance(command, Snapshot)
        sizes = [len(indices) for indices in command.batches]
        parts = split(chunk, sizes, self.stage.spec.replica, receivers)
        messages = [pack_chunk(part) for part in parts]
        return (*messages, _with_bytes(report, *messages))

    def send(self, command: Command, *pieces: Message) -> Message:
        """Carry out a command; the message goes on as tensors, device to device."""
        chunk, report = self._handle(command, pieces)
        message = as_tensors(chunk)
        self.reports.append(_with_bytes(report, message))
        return message

    def report(self) -> Report:
        """Return the report of the oldest `send` that has not been asked for."""
        return self.reports.popleft()

    def _handle(self, command: Command, pieces: Sequence[Message]) -> tuple[Chunk | None, Report]:
        assert self.stage is not None, "set_up comes before the first command"
        chunks = [unpack_message(piece, self.device) for piece in pieces]
        return self.stage.handle(command, join(chunks) if chunks else None)


def device_capabilities(device: torch.device) -> Capabilities:
    """Return what a device can do.

    Raises:
        NoGpuError: it is a GPU that torch does not see.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NoGpuError(
            f"Ray counts a GPU on node {socket.gethostname()}, but torch {torch.__version__} sees "
            "none there; use --device cpu, install torch for the node's driver (`rayff doctor` on "
            "the node says what is wrong), or start the node with --num-gpus 0"
        )
    return Capabilities(
        device_class(device),
        default_precision(device),
        missing_kernels(device),
        device_name(device),
    )


def _with_bytes(report: Report, *messages: Message) -> Report:
    """Return the report with the size of what goes on."""
    return dataclasses.replace(report, sent_bytes=sum(map(message_bytes, messages)))


def remote_stage(resources: StageResources, **options: Any) -> ActorHandle[Any]:
    """Start a stage actor; it never restarts by itself.

    A restarted stage would have lost its layers and would go on with initial ones, so a death is
    an error that the driver sees.
    """
    transport_options = options.pop("transport_options", {})
    wrap: Any = ray.remote
    actor = wrap(max_restarts=0, max_task_retries=0, **transport_options)(StageActor)
    options |= {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    handle: ActorHandle[Any] = actor.options(**options).remote(
        resources.threads, "cuda" if resources.gpus else "cpu"
    )
    return handle
