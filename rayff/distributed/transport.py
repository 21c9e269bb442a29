"""Transports of chunks between actors.

Through the object store a tensor crosses as a NumPy view of its contiguous memory, which Ray
writes once and maps without a copy on the other side. Directly (Ray Direct Transport) it crosses
as it is, from device to device.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.experimental.collective import create_collective_group
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.failures import StageFailedError, wait_for
from rayff.engine.commands import Chunk, Command, Evaluate, Train

Message = list[Any]
"""A chunk whose batches hold a SentTensor for each tensor."""


@dataclass(frozen=True)
class SentTensor:
    """A tensor in a message."""

    memory: NDArray[Any] | Tensor
    """Contiguous: an array for the object store (bfloat16 as int16), a tensor for the others."""
    dtype: str
    channels_last: bool

    @property
    def nbytes(self) -> int:
        """Size of the memory."""
        return self.memory.nbytes

    @classmethod
    def direct(cls, tensor: Tensor) -> SentTensor:
        """Send the tensor's memory where it is; a copy where it has gaps."""
        tensor = tensor.detach()
        if tensor.dim() == 4 and tensor.stride(1) == 1:  # pitched, perhaps
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        last = last and not tensor.is_contiguous()
        memory = tensor.permute(0, 2, 3, 1) if last else tensor.contiguous()
        return cls(memory, str(tensor.dtype).removeprefix("torch."), last)

    @classmethod
    def shared(cls, tensor: Tensor) -> SentTensor:
        """Send a view of the tensor's memory; a copy where it is on a GPU or has gaps."""
        sent = cls.direct(tensor.cpu())
        memory = torch.as_tensor(sent.memory)
        if memory.dtype == torch.bfloat16:
            memory = memory.view(torch.int16)
        return cls(memory.numpy(), sent.dtype, sent.channels_last)

    def receive(self, device: torch.device) -> Tensor:
        """Return the tensor; on a CPU it may share the array's memory and must not be written."""
        if isinstance(self.memory, Tensor):
            tensor = self.memory
        else:
            with warnings.catch_warnings():  # the stage never writes to what it receives
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                tensor = torch.from_numpy(self.memory).view(getattr(torch, self.dtype))
            tensor = tensor.to(device, non_blocking=True)
        return tensor.permute(0, 3, 1, 2) if self.channels_last else tensor


def pack_chunk(chunk: Chunk) -> Message:
    """Return a chunk as the object store can share it."""
    return [batch.map(SentTensor.shared) for batch in chunk]


def as_tensors(chunk: Chunk | None) -> Message:
    """Return a chunk as tensors, for a direct transport."""
    return [batch.map(SentTensor.direct) for batch in chunk or []]


def message_bytes(message: Message) -> int:
    """Return the size of all tensors of a message."""
    return sum(tensor.nbytes for batch in message for tensor in batch.tensors)


def unpack_message(message: Message, device: torch.device) -> Chunk:
    """Return the chunk of a message of either transport, on a stage's device."""
    return [batch.map(lambda sent: sent.receive(device)) for batch in message]


def call_name(command: Command) -> str:
    """Return the name of a call in Ray's lists; few, since Ray's own metrics go by them.

    It is also the title of the actor's process while it works, which is known by its class.
    """
    if isinstance(command, Evaluate):
        return f"StageActor.evaluate {command.split}"
    return "StageActor.train" if isinstance(command, Train) else "StageActor.snapshot"


class Transport:
    """Calls actors so that their messages reach the next stage, as objects of Ray's store."""

    actor_options: dict[str, Any] = {}

    def connect(self, actors: list[ActorHandle[Any]]) -> None:
        """Prepare the actors; every node has a store, so there is nothing to do."""

    def call(
        self,
        actor: ActorHandle[Any],
        command: Command,
        pieces: Sequence[ObjectRef[Any]],
        *,
        receivers: int,
        num_pieces: int,
    ) -> tuple[list[ObjectRef[Any]], ObjectRef[Any]]:
        """Call an actor.

        Args:
            actor: of a stage, or a replica of one.
            command: what to do.
            pieces: its messages from the stage before.
            receivers: replicas of the next stage; 0 where no message follows.
            num_pieces: how many of them process some of its images.

        Returns:
            the references of its messages, one a piece, and of its report.
        """
        call = actor.handle.options(name=call_name(command), num_returns=num_pieces + 1)
        results = call.remote(command, receivers, *pieces)
        if num_pieces == 0:
            return [], results
        *onward, report = results
        return onward, report


class DirectTransport(Transport):
    """Messages go from device to device (Ray Direct Transport), between stages of one actor.

    Args:
        name: "cuda-ipc" between stages on one GPU, "nccl" between GPUs, "gloo" between CPUs,
            "nixl" over RDMA, "auto" for what suits each boundary.
        warn: called where "auto" leaves a boundary to the object store.
    """

    actor_options: dict[str, Any] = {"enable_tensor_transport": True}

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self.name = name
        self.warn = warn
        self.onward: dict[ActorHandle[Any], str] = {}

    def connect(self, actors: list[ActorHandle[Any]]) -> None:
        """Choose how each actor sends to the next one, and make the communicators it takes."""
        names = [self.name] * (len(actors) - 1)
        if self.name in ("auto", "cuda-ipc") and names:
            places = wait_for([actor.place.remote() for actor in actors], "was placed")
            found = direct_ways(places)
            if self.name == "auto":
                names = found
            elif set(found) != {"cuda-ipc"}:
                raise UserError(
                    f"--transport cuda-ipc connects stages on one GPU, and these are on "
                    f"{len(set(places))}; use --transport auto"
                )
        for backend in ("nccl", "gloo"):
            names = self._communicate(actors, names, backend)
        self.onward = dict(zip(actors, names, strict=False))
        if self.name == "auto" and (left := names.count("object-store")):
            self.warn(
                f"--transport auto: activations go through the object store at {left} of the "
                f"{len(names)} boundaries"
            )

    def _communicate(
        self, actors: list[ActorHandle[Any]], names: list[str], backend: str
    ) -> list[str]:
        """Make one communicator of all actors that use a backend; Ray allows an actor one of each.

        Returns:
            the names, without those that could not be connected where `auto` chose them.
        """
        members = connected(names, backend)
        if not members:
            return names
        try:
            create_collective_group([actors[index] for index in members], backend=backend)
        except RayActorError as error:
            raise StageFailedError("a stage that was connected", error) from error
        except Exception as error:  # each backend has errors of its own
            if self.name != "auto":
                raise self._unusable(error) from error
            self.warn(f"--transport auto: {backend} cannot connect the stages ({_reason(error)})")
            return ["object-store" if name == backend else name for name in names]
        return names

    def call(
        self,
        actor: ActorHandle[Any],
        command: Command,
        pieces: Sequence[ObjectRef[Any]],
        *,
        receivers: int,
        num_pieces: int,
    ) -> tuple[list[ObjectRef[Any]], ObjectRef[Any]]:
        """Call an actor; a direct call has one result, so the report is a second call."""
        name = self.onward.get(actor, "object-store") if receivers else "object-store"
        if name == "object-store":
            return super().call(actor, command, pieces, receivers=receivers, num_pieces=num_pieces)
        way = name.replace("-", "_")
        try:
            send = actor.send.options(name=call_name(command), tensor_transport=way)
            onward = send.remote(command, *pieces)
        except ValueError as error:  # what the call needs is not installed
            raise self._unusable(error) from error
        return [onward], actor.report.remote()

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"--transport {self.name} cannot connect the stages ({_reason(error)}); use "
            "--transport object-store"
        )


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


@dataclass(frozen=True)
class Place:
    """The devices that Ray gave an actor."""

    node: str
    """Identifier of the node."""
    gpus: tuple[str, ...]
    """Identifiers of the GPUs on the node."""


def own_place() -> Place:
    """Return the devices of the actor that calls it."""
    gpus = tuple(map(str, ray.get_gpu_ids()))
    return Place(ray.get_runtime_context().get_node_id(), gpus)


def connected(ways: Sequence[str], name: str) -> list[int]:
    """Return the numbers of the actors at either end of a boundary that is crossed so."""
    before = [index for index, way in enumerate(ways) if way == name]
    return sorted({*before, *(index + 1 for index in before)})


def direct_ways(places: Sequence[Place]) -> list[str]:
    """Return how activations best cross each boundary: a name for each, one fewer than places.

    "cuda-ipc" on one GPU and "nccl" between GPUs; "object-store" where an actor has no GPU, and
    instead of nccl where two actors that need it share a GPU: it makes one communicator of all of
    them, in which a GPU may be once.
    """
    ways = [
        "object-store"
        if not (place.gpus and after.gpus)
        else ("cuda-ipc" if place == after else "nccl")
        for place, after in itertools.pairwise(places)
    ]
    members = [places[index] for index in connected(ways, "nccl")]
    if len(set(members)) < len(members):
        return ["object-store" if way == "nccl" else way for way in ways]
    return ways


def make_transport(config: TrainConfig, *, gpus: float, warn: Callable[[str], None]) -> Transport:
    """Return the transport that `--transport` names.

    Args:
        config: the run's.
        gpus: of each actor.
        warn: called where activations go another way than the direct one.
    """
    if config.transport == "auto" and config.replicas is not None:
        warn("--transport auto: activations of replicas go through the object store")
    elif config.transport != "object-store" and (config.transport != "auto" or gpus):
        return DirectTransport(config.transport, warn)
    return Transport()
