"""Tensors come out of a message bit for bit, and share its memory where they can."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rayff import TrainConfig
from rayff.distributed.transport import (
    DirectTransport,
    Message,
    Place,
    SentTensor,
    as_tensors,
    call_name,
    direct_ways,
    make_transport,
    message_bytes,
    pack_chunk,
    unpack_message,
)
from rayff.engine.commands import Batch, Chunk, Evaluate, Snapshot, Train
from rayff.learning.chain import Activations

CPU = torch.device("cpu")


class TestATensor:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
    @pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 3), (1,)])
    def test_comes_out_bit_for_bit(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        tensor = (torch.randn(shape) * 100).to(dtype)
        back = SentTensor.shared(tensor).receive(CPU)
        assert back.dtype == dtype
        assert back.shape == tensor.shape
        assert torch.equal(back, tensor)

    def test_keeps_its_memory_format(self) -> None:
        tensor = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
        sent = SentTensor.shared(tensor)
        assert isinstance(sent.memory, np.ndarray)
        assert sent.memory.flags.c_contiguous
        back = sent.receive(CPU)
        assert back.stride() == tensor.stride()
        assert torch.equal(back, tensor)

    def test_that_is_not_contiguous_is_copied_right(self) -> None:
        tensor = torch.arange(24).view(2, 3, 4).transpose(1, 2)[:, 1:]
        assert torch.equal(SentTensor.shared(tensor).receive(CPU), tensor)

    def test_shares_its_memory_both_ways(self) -> None:
        tensor = torch.zeros(4, dtype=torch.bfloat16)
        sent = SentTensor.shared(tensor)
        back = sent.receive(CPU)
        tensor[0] = 1
        assert back[0] == 1

    def test_needs_no_gradient(self) -> None:
        tensor = torch.ones(2, requires_grad=True)
        assert isinstance(SentTensor.shared(tensor).memory, np.ndarray)


class TestAChunk:
    @pytest.mark.parametrize("way", [pack_chunk, as_tensors])
    def test_comes_out_whole(self, way: Callable[[Chunk], Message]) -> None:
        chunk = [
            Batch(
                activations=Activations(
                    features=torch.randn(2, 3, 4, 4),
                    shortcut=torch.randn(2, 3, 8, 8) if shortcut else None,
                ),
                labels=torch.tensor([1, 0]),
                logits=(torch.randn(2, 2), torch.randn(2, 2))[: 2 * shortcut],
            )
            for shortcut in (0, 1)
        ]
        back = unpack_message(way(chunk), CPU)
        for was, now in zip(chunk, back, strict=True):
            assert torch.equal(now.activations.features, was.activations.features)
            assert torch.equal(now.labels, was.labels)
            assert len(now.logits) == len(was.logits)
            assert all(map(torch.equal, now.logits, was.logits))
        assert back[0].activations.shortcut is None
        assert back[1].activations.shortcut is not None
        assert torch.equal(back[1].activations.shortcut, chunk[1].activations.shortcut)

    @pytest.mark.parametrize("way", [pack_chunk, as_tensors])
    def test_weighs_what_its_tensors_do(self, way: Callable[[Chunk], Message]) -> None:
        features = torch.zeros(3, 4, 2, 2, dtype=torch.bfloat16)
        for shortcut, logits in ((None, ()), (features, (torch.zeros(3, 2),))):
            activations = Activations(features=features, shortcut=shortcut)
            batch = Batch(activations=activations, labels=torch.arange(3), logits=logits)
            each = 96 + 24 + (96 + 24 if logits else 0)
            assert message_bytes(way([batch, batch])) == 2 * each


def test_calls_have_few_names() -> None:
    train = [Train(epoch=e, step=9 * e, lrs=(), batches=()) for e in range(3)]
    assert {call_name(command) for command in train} == {"StageActor.train"}
    assert call_name(Evaluate(epoch=1, split="valid", batches=())) == "StageActor.evaluate valid"
    assert call_name(Snapshot(epoch=1, batch=2)) == "StageActor.snapshot"


CARDS = {name: Place("node " + name[0], (name[1],)) for name in ("a0", "a1", "b0", "c0")}
CARDS["none"] = Place("node a", ())


@pytest.mark.parametrize(
    ("cards", "ways"),
    [
        ("a0", []),
        ("a0 a0 a0", ["cuda-ipc", "cuda-ipc"]),
        ("a0 a1 b0", ["nccl", "nccl"]),
        ("a0 b0", ["nccl"]),
        ("a0 a0 a1 a1", ["cuda-ipc", "nccl", "cuda-ipc"]),
        ("a0 a0 a1 a1 b0", ["cuda-ipc", "object-store", "cuda-ipc", "object-store"]),
        ("a0 none a1 a1 b0", ["object-store", "object-store", "cuda-ipc", "nccl"]),
        ("none none", ["object-store"]),
    ],
)
def test_the_direct_way_over_a_boundary_depends_on_the_cards(cards: str, ways: list[str]) -> None:
    assert direct_ways([CARDS[card] for card in cards.split()]) == ways


def test_actors_without_gpus_and_replicas_use_the_object_store() -> None:
    said: list[str] = []

    def direct(gpus: float, **options: str) -> bool:
        made = make_transport(TrainConfig(**options), gpus=gpus, warn=said.append)  # type: ignore[arg-type]
        return isinstance(made, DirectTransport)

    assert not direct(1)
    assert not direct(0, transport="auto")
    assert direct(1, transport="auto")
    assert direct(0, transport="gloo")
    assert not said
    assert not direct(1, transport="auto", replicas="1,2")
    assert said == ["--transport auto: activations of replicas go through the object store"]
