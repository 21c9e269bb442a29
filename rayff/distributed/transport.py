"""Transports of chunks between actors.

Two ways, one interface. Through the object store a tensor crosses as a NumPy view of its
contiguous memory, which Ray writes once and maps without a copy on the other side. Directly
(Ray Direct Transport) it crosses as it is, from device to device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.experimental.collective import create_collective_group
from torch import Tensor

from rayff.config.errors import UserError
from rayff.distributed.failures import StageFailedError
from rayff.engine.commands import Batch, Chunk, Command, Evaluate, Train
from rayff.learning.chain import Activations


@dataclass(frozen=True)
class Packed:
    """A tensor as the object store can share it."""

    array: NDArray[Any]
    """Contiguous; bfloat16 is seen as int16."""
    dtype: str
    channels_last: bool

    @property
    def nbytes(self) -> int:
        """Size of the memory."""
        return self.array.nbytes


@dataclass(frozen=True)
class Direct:
    """A tensor as a direct transport can send it."""

    memory: Tensor
    """Contiguous."""
    channels_last: bool

    @property
    def nbytes(self) -> int:
        """Size of the memory."""
        return self.memory.nbytes


Sent = TypeVar("Sent", Packed, Direct)
SentBatch = tuple[Sent, Sent | None, Sent, tuple[Sent, ...]]
Message = Sequence[SentBatch[Packed]] | Sequence[SentBatch[Direct]]


def _memory(tensor: Tensor) -> tuple[Tensor, bool]:
    """Return the tensor in the order of its memory, contiguous, and whether channels are last.

    It is a view, or a copy where the memory has gaps.
    """
    tensor = tensor.detach()
    if tensor.dim() == 4 and tensor.stride(1) == 1:  # pitched, perhaps
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    channels_last = channels_last and not tensor.is_contiguous()
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor.contiguous()), channels_last


def pack(tensor: Tensor) -> Packed:
    """Return a view of the tensor's memory (a copy where it is on a GPU or not contiguous)."""
    memory, channels_last = _memory(tensor.cpu())
    if memory.dtype == torch.bfloat16:
        memory = memory.view(torch.int16)
    return Packed(memory.numpy(), str(tensor.dtype).removeprefix("torch."), channels_last)


def direct(tensor: Tensor) -> Direct:
    """Return the tensor's memory where it is."""
    return Direct(*_memory(tensor))


def unpack(sent: Packed | Direct, device: torch.device) -> Tensor:
    """Return the tensor; on a CPU it shares the memory of the array and must not be written.

    A tensor that came directly is there already.
    """
    if isinstance(sent, Direct):
        tensor = sent.memory
    else:
        with warnings.catch_warnings():  # the stage never writes to what it receives
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(sent.array).view(getattr(torch, sent.dtype))
        tensor = tensor.to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2) if sent.channels_last else tensor


def _chunk(chunk: Chunk, way: Callable[[Tensor], Sent]) -> list[SentBatch[Sent]]:
    return [
        (
            way(batch.activations.features),
            None if batch.activations.shortcut is None else way(batch.activations.shortcut),
            way(batch.labels),
            tuple(way(goodness) for goodness in batch.logits),
        )
        for batch in chunk
    ]


def pack_chunk(chunk: Chunk) -> list[SentBatch[Packed]]:
    """Return a chunk as the object store can share it."""
    return _chunk(chunk, pack)


def as_tensors(chunk: Chunk | None) -> list[SentBatch[Direct]]:
    """Return a chunk as the tensors that cross directly."""
    return _chunk(chunk or [], direct)


def message_bytes(message: Message) -> int:
    """Return the size of all tensors of a message."""
    return sum(
        tensor.nbytes
        for features, shortcut, labels, goodness in message
        for tensor in (features, shortcut, labels, *goodness)
        if tensor is not None
    )


def unpack_message(message: Message, device: torch.device) -> Chunk:
    """Return the chunk of a message of either transport, on a stage's device."""
    chunk = []
    for features, shortcut, labels, goodness in message:
        batch = Batch(
            activations=Activations(
                features=unpack(features, device),
                shortcut=None if shortcut is None else unpack(shortcut, device),
            ),
            labels=unpack(labels, device),
            logits=tuple(unpack(each, device) for each in goodness),
        )
        chunk.append(batch)
    return chunk


def call_name(command: Command) -> str:
    """Return the name of a call in Ray's lists; few, since Ray's own metrics go by them.

    It is also the title of the actor's process while it works, which is known by its class.
    """
    if isinstance(command, Evaluate):
        return f"StageActor.evaluate {command.split}"
    return "StageActor.train" if isinstance(command, Train) else "StageActor.snapshot"


class Transport(Protocol):
    """How the driver calls an actor so that its messages reach the next stage."""

    actor_options: dict[str, Any]

    def connect(self, actors: list[ActorHandle[Any]]) -> None:
        """Make what the actors need to reach each other."""
        ...

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
            receivers: replicas of the next stage; 0 where nothing goes on.
            num_pieces: how many of them see some of its images.

        Returns:
            the references of its messages, one a piece, and of its report.
        """
        ...


class ObjectStoreTransport:
    """Messages are objects of Ray's store."""

    actor_options: dict[str, Any] = {}

    def connect(self, actors: list[ActorHandle[Any]]) -> None:
        """Need nothing: every node has a store."""

    def call(
        self,
        actor: ActorHandle[Any],
        command: Command,
        pieces: Sequence[ObjectRef[Any]],
        *,
        receivers: int,
        num_pieces: int,
    ) -> tuple[list[ObjectRef[Any]], ObjectRef[Any]]:
        """Call an actor; each of its results is an object."""
        call = actor.handle.options(name=call_name(command), num_returns=num_pieces + 1)
        results = call.remote(command, receivers, *pieces)
        if num_pieces == 0:
            return [], results
        *onward, report = results
        return onward, report


class DirectTransport:
    """Messages go from device to device (Ray Direct Transport), between stages of one actor.

    Args:
        name: "nccl" between GPUs, "gloo" between CPUs, "nixl" over RDMA.
    """

    actor_options: dict[str, Any] = {"enable_tensor_transport": True}

    def __init__(self, name: str) -> None:
        self.name = name

    def connect(self, actors: list[ActorHandle[Any]]) -> None:
        """Make one communicator of all stages."""
        if self.name in ("nccl", "gloo") and len(actors) > 1:
            try:
                create_collective_group(actors, backend=self.name)
            except RayActorError as error:
                raise StageFailedError("a stage that was connected", error) from error
            except Exception as error:  # each backend has errors of its own
                raise self._unusable(error) from error

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
        if receivers == 0:
            handle = actor.handle.options(name=call_name(command))
            return [], handle.remote(command, receivers, *pieces)
        try:
            send = actor.send.options(name=call_name(command), tensor_transport=self.name)
            onward = send.remote(command, *pieces)
        except ValueError as error:  # what the call needs is not installed
            raise self._unusable(error) from error
        return [onward], actor.report.remote()

    def _unusable(self, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[-1]
        return UserError(
            f"--transport {self.name} cannot connect the stages ({reason}); use --transport "
            "object-store"
        )


def make_transport(name: str) -> Transport:
    """Return the transport that `--transport` names."""
    return ObjectStoreTransport() if name == "object-store" else DirectTransport(name)
