"""The order of commands, against literal lists."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from rayff.config.errors import UserError
from rayff.config.recipe import Recipe
from rayff.engine.commands import Command, Evaluate, Snapshot, Train
from rayff.engine.schedule import Schedule


def schedule(
    *,
    train: int = 5,
    valid: int = 3,
    test: int = 260,
    batch_size: int = 2,
    epochs: int = 2,
    chunk: int = 1,
    checkpoint_every: int = 1,
    eval_every: int = 1,
    seed: int = 7,
    warmup_epochs: int = 0,
    **readouts: Any,
) -> Schedule:
    return Schedule(
        recipe=Recipe(
            epochs=epochs,
            batch_size=batch_size,
            lr=0.08,
            lr_min=0.008,
            warmup_epochs=warmup_epochs,
        ),
        seed=seed,
        num_images={"train": train, "valid": valid, "test": test},
        chunk=chunk,
        checkpoint_every=checkpoint_every,
        eval_every=eval_every,
        **readouts,
    )


def shown(command: Command) -> tuple[Any, ...]:
    """Return all of a command but which images it takes."""
    if isinstance(command, Snapshot):
        return ("snapshot", command.epoch, command.batch, command.final)
    sizes = [len(batch) for batch in command.batches]
    if isinstance(command, Train):
        rates = {round(lr, 12) for lr in command.lrs}
        assert len(command.lrs) == len(sizes)
        return ("train", command.epoch, command.step, *rates, sizes)
    return ("evaluate", command.epoch, command.split, sizes)


def exactly(command: Command) -> tuple[Any, ...]:
    """Return all of a command in a form that compares."""
    if isinstance(command, Snapshot):
        return shown(command)
    return (*shown(command), [batch.tolist() for batch in command.batches])


class TestCommandsOfASmallRun:
    def test_one_batch_in_a_chunk(self) -> None:
        assert [shown(command) for command in schedule().commands()] == [
            ("train", 0, 0, 0.08, [2]),
            ("train", 0, 1, 0.08, [2]),
            ("train", 0, 2, 0.08, [1]),
            ("evaluate", 0, "valid", [3]),
            ("evaluate", 0, "test", [128]),
            ("evaluate", 0, "test", [128]),
            ("evaluate", 0, "test", [4]),
            ("snapshot", 1, 0, False),
            ("train", 1, 3, 0.044, [2]),
            ("train", 1, 4, 0.044, [2]),
            ("train", 1, 5, 0.044, [1]),
            ("evaluate", 1, "valid", [3]),
            ("evaluate", 1, "test", [128]),
            ("evaluate", 1, "test", [128]),
            ("evaluate", 1, "test", [4]),
            ("snapshot", 2, 0, True),
        ]

    def test_two_batches_in_a_chunk(self) -> None:
        assert [shown(command) for command in schedule(chunk=2).commands()] == [
            ("train", 0, 0, 0.08, [2, 2]),
            ("train", 0, 2, 0.08, [1]),
            ("evaluate", 0, "valid", [3]),
            ("evaluate", 0, "test", [128, 128]),
            ("evaluate", 0, "test", [4]),
            ("snapshot", 1, 0, False),
            ("train", 1, 3, 0.044, [2, 2]),
            ("train", 1, 5, 0.044, [1]),
            ("evaluate", 1, "valid", [3]),
            ("evaluate", 1, "test", [128, 128]),
            ("evaluate", 1, "test", [4]),
            ("snapshot", 2, 0, True),
        ]

    def test_a_snapshot_every_other_epoch_and_at_the_end(self) -> None:
        def snapshots(epochs: int, every: int) -> list[tuple[Any, ...]]:
            commands = schedule(epochs=epochs, checkpoint_every=every).commands()
            return [shown(command)[1:] for command in commands if isinstance(command, Snapshot)]

        assert snapshots(2, 2) == [(2, 0, True)]
        assert snapshots(3, 2) == [(2, 0, False), (3, 0, True)]
        assert snapshots(4, 2) == [(2, 0, False), (4, 0, True)]
        assert snapshots(3, 99) == [(3, 0, True)]

    def test_an_evaluation_every_other_epoch_and_at_the_end(self) -> None:
        def evaluated(epochs: int, every: int) -> list[int]:
            commands = schedule(epochs=epochs, eval_every=every).commands()
            found = [(c.epoch, c.split) for c in commands if isinstance(c, Evaluate)]
            assert {split for _, split in found} == {"valid", "test"}
            return sorted({epoch for epoch, _ in found})

        assert evaluated(2, 2) == [1]
        assert evaluated(3, 2) == [1, 2]
        assert evaluated(5, 2) == [1, 3, 4]
        assert evaluated(3, 99) == [2]

    def test_an_epoch_is_of_one_chunk_where_the_chunk_is_larger(self) -> None:
        commands = list(schedule(chunk=100, epochs=1).commands())
        assert [shown(command) for command in commands] == [
            ("train", 0, 0, 0.08, [2, 2, 1]),
            ("evaluate", 0, "valid", [3]),
            ("evaluate", 0, "test", [128, 128, 4]),
            ("snapshot", 1, 0, True),
        ]

    def test_large_training_batches_are_evaluation_batches_too(self) -> None:
        commands = schedule(train=400, batch_size=200, epochs=1).commands()
        sizes = [shown(c)[3] for c in commands if isinstance(c, Evaluate) and c.split == "test"]
        assert sizes == [[200], [60]]


class TestLogits:
    """Which evaluations return the logits of all layers: (epoch, split, first image)."""

    def returned(self, **options: Any) -> list[tuple[int, str, int]]:
        return [
            (command.epoch, command.split, int(command.batches[0][0]))
            for command in schedule(valid=260, **options).commands()
            if isinstance(command, Evaluate) and command.logits
        ]

    def test_none_where_no_readout_is_fitted(self) -> None:
        assert self.returned() == []

    def test_of_validation_images_before_each_snapshot(self) -> None:
        first, second, third = ([(e, "valid", n) for n in (0, 128, 256)] for e in range(3))
        everything = np.arange(260)
        assert self.returned(epochs=3, sampled=everything) == first + second + third
        assert self.returned(epochs=3, sampled=everything, checkpoint_every=2) == second + third

    def test_of_an_evaluation_that_a_later_snapshot_goes_by(self) -> None:
        """Each snapshot has the readouts of the newest evaluation."""

        def fitted(checkpoint_every: int) -> set[int]:
            options = {"epochs": 9, "eval_every": 3, "checkpoint_every": checkpoint_every}
            return {epoch for epoch, _, _ in self.returned(sampled=np.arange(1), **options)}

        assert fitted(1) == fitted(3) == {2, 5, 8}
        assert fitted(4) == {2, 5, 8}  # snapshots behind epochs 4, 8 and 9
        assert fitted(5) == {2, 8}  # behind epochs 5 and 9
        assert fitted(9) == {8}

    @pytest.mark.parametrize("chunk", [1, 2, 9])
    def test_of_the_images_of_the_sample_alone(self, chunk: int) -> None:
        sampled = np.array([3, 127, 256, 259])
        commands = schedule(valid=260, epochs=1, sampled=sampled, chunk=chunk).commands()
        found = [
            int(indices[position])
            for command in commands
            if isinstance(command, Evaluate) and command.logits
            for indices, positions in zip(command.batches, command.logits, strict=True)
            for position in positions
        ]
        assert found == sampled.tolist()
        assert self.returned(epochs=1, sampled=np.array([3]), chunk=2) == [(0, "valid", 0)]

    def test_of_all_test_images_behind_the_last_epoch_for_fusion(self) -> None:
        valid = [(0, "valid", 0), (1, "valid", 0)]
        test = [(1, "test", 0), (1, "test", 128), (1, "test", 256)]
        assert self.returned(sampled=np.arange(5), fusion=True) == valid + test


class TestTheLearningRate:
    def test_it_follows_a_cosine_stepped_once_an_epoch(self) -> None:
        # 0.008 + 0.072 * (1 + cos(pi e/3)) / 2, whose cosines are 1, 1/2 and -1/2
        three = schedule(epochs=3)
        assert [three.lr(epoch, 0) for epoch in range(3)] == pytest.approx([0.08, 0.062, 0.026])
        rates = {(c.epoch, *c.lrs) for c in three.commands() if isinstance(c, Train)}
        assert rates == {(epoch, three.lr(epoch, 2)) for epoch in range(3)}

    @pytest.mark.parametrize("chunk", [1, 2, 3, 9])
    @pytest.mark.parametrize("start", [(0, 0), (0, 2), (1, 1), (2, 0)])
    def test_each_batch_of_a_warm_up_has_its_own(self, chunk: int, start: tuple[int, int]) -> None:
        # three batches an epoch: the warm-up of two epochs takes sixths of the rates above
        warming = schedule(epochs=3, chunk=chunk, warmup_epochs=2)
        sixths = [(0.08, 1), (0.08, 2), (0.08, 3), (0.062, 4), (0.062, 5), (0.062, 6)]
        expected = [lr * sixth / 6 for lr, sixth in sixths] + [0.026] * 3
        commands = list(warming.commands(*start))
        rates = [lr for c in commands if isinstance(c, Train) for lr in c.lrs]
        assert rates == pytest.approx(expected[3 * start[0] + start[1] :], rel=1e-12)


class TestTheImages:
    @pytest.mark.parametrize("split", ["valid", "test"])
    @pytest.mark.parametrize("chunk", [1, 2, 5])
    def test_evaluation_sees_each_image_once_in_order(self, split: str, chunk: int) -> None:
        commands = schedule(valid=129, chunk=chunk, epochs=1).commands()
        seen = [
            index
            for command in commands
            if isinstance(command, Evaluate) and command.split == split
            for batch in command.batches
            for index in batch.tolist()
        ]
        assert seen == list(range({"valid": 129, "test": 260}[split]))

    @pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
    @pytest.mark.parametrize("start", [(e, b) for e in range(2) for b in range(6)] + [(2, 0)])
    def test_any_chunk_and_any_start_give_the_same_batches(
        self, chunk: int, start: tuple[int, int]
    ) -> None:
        def steps(commands: Iterable[Command]) -> list[tuple[int, int, float, list[int]]]:
            return [
                (command.epoch, command.step + offset, command.lrs[offset], batch.tolist())
                for command in commands
                if isinstance(command, Train)
                for offset, batch in enumerate(command.batches)
            ]

        whole = steps(schedule(train=9, chunk=1).commands())  # 5 batches an epoch
        assert len(whole) == 10
        here = schedule(train=9, chunk=chunk).commands(*start)
        assert steps(here) == whole[5 * start[0] + start[1] :]

    def test_behind_the_last_epoch_the_final_snapshot_is_left(self) -> None:
        """It writes the model again: the disk may have been full the first time."""
        assert [shown(command) for command in schedule().commands(2, 0)] == [
            ("snapshot", 2, 0, True)
        ]


class TestStopping:
    @pytest.mark.parametrize("chunk", [1, 2, 3])
    @pytest.mark.parametrize(("checkpoint_every", "eval_every"), [(1, 1), (2, 3), (3, 2)])
    def test_at_every_place_one_final_snapshot_and_the_rest_when_started_again(
        self, chunk: int, checkpoint_every: int, eval_every: int
    ) -> None:
        every = {"checkpoint_every": checkpoint_every, "eval_every": eval_every}
        small = schedule(epochs=3, chunk=chunk, **every)
        whole = [exactly(command) for command in small.commands()]
        work = [number for number, command in enumerate(whole) if command[0] != "snapshot"]
        for questions, number in enumerate(work):
            answers = iter([False] * questions + [True])
            *done, last = small.commands(stop=lambda answers=answers: next(answers))
            assert [exactly(command) for command in done] == whole[:number]
            kind, epoch = whole[number][:2]
            batch = whole[number][2] - 3 * epoch if kind == "train" else 3
            assert exactly(last) == ("snapshot", epoch, batch, True)
            # an evaluation that was begun is begun again
            first = number
            while first and whole[first - 1][:2] == ("evaluate", epoch):
                first -= 1
            assert [exactly(c) for c in small.commands(epoch, batch)] == whole[first:]

    def test_it_is_asked_before_each_chunk_and_after_the_last_no_more(self) -> None:
        asked = []
        commands = list(schedule().commands(stop=lambda: bool(asked.append(1))))
        assert len(asked) == sum(not isinstance(command, Snapshot) for command in commands)


class TestTheBatchSize:
    def test_a_batch_larger_than_the_data_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"--batch-size 6 .* 5 training images"):
            schedule(train=5, batch_size=6)

    def test_a_batch_of_all_images_is_not(self) -> None:
        (first, *_) = schedule(train=5, batch_size=5).commands()
        assert shown(first) == ("train", 0, 0, 0.08, [5])
        assert schedule(train=5, batch_size=5).batches_per_epoch == 1
