"""Every interleaving of the snapshot protocol, and crashes at every place of real trainings.

The model is that of the actors: a stage handles its commands in the order called; a command waits
for the message of the stage before, but for a snapshot, which nobody sends on; the driver takes
results in order and has a window of commands in flight. A crash loses all that the driver does not
have. Commands and what follows a restart are the real Schedule's.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayff.config.kernels import Kernels
from rayff.config.recipe import Recipe
from rayff.config.train_config import TrainConfig
from rayff.engine.commands import Command, Snapshot, Train
from rayff.engine.loop import Loop
from rayff.engine.pipeline import LocalPipeline, Result
from rayff.engine.preparation import prepare
from rayff.engine.schedule import Schedule
from rayff.engine.stop import StopRequest
from rayff.runs.checkpoint import Progress
from rayff.runs.checkpoint_manager import RunRecorder
from tests.engine.local_run import (
    AtOnce,
    Diary,
    layer_files,
    local_pipeline,
    timeless,
    train,
)
from tests.helpers.tiny_task import write_tiny_task

Batches = tuple[tuple[int, ...], ...]
"""The batches that a layer has learned from, in order: nothing else decides its state."""


def schedule(chunk: int) -> Schedule:
    """Two epochs of three batches, the last one smaller, and a snapshot behind each."""
    recipe = Recipe(
        epochs=2,
        batch_size=2,
        lr=0.1,
        lr_min=0.1,
        weight_decay=0.0,
        dropout=0.0,
        optimizer="sgd",
    )
    return Schedule(
        recipe=recipe,
        seed=0,
        num_images={"train": 5, "valid": 2, "test": 2},
        chunk=chunk,
        checkpoint_every=1,
    )


def learn(before: Batches, command: Command) -> Batches:
    if not isinstance(command, Train):
        return before
    return (*before, *(tuple(batch.tolist()) for batch in command.batches))


@dataclass(frozen=True)
class World:
    """Where everybody is."""

    layers: tuple[Batches, ...]
    """State of each stage."""
    handled: tuple[int, ...]
    """Commands that each stage has carried out."""
    copies: tuple[tuple[Batches, ...], ...]
    """Of each snapshot so far, what each stage copied, in order."""
    landed: int
    """Results that the driver has."""


def successors(world: World, commands: list[Command], window: int) -> Iterator[World]:
    """Yield what can happen next: a stage carries out a command, or the driver takes a result."""
    number = len(world.handled)
    for stage in range(number):
        position = world.handled[stage]
        if position >= min(len(commands), world.landed + window):
            continue
        command = commands[position]
        waits = stage > 0 and not isinstance(command, Snapshot)
        if waits and world.handled[stage - 1] <= position:
            continue
        layers, handled = list(world.layers), list(world.handled)
        copies = [list(copy) for copy in world.copies]
        layers[stage] = learn(layers[stage], command)
        handled[stage] += 1
        if isinstance(command, Snapshot):
            which = sum(isinstance(c, Snapshot) for c in commands[:position])
            copies[which][stage] = layers[stage]
        yield World(
            tuple(layers), tuple(handled), tuple(tuple(copy) for copy in copies), world.landed
        )
    if world.landed < len(commands) and min(world.handled) > world.landed:
        yield World(world.layers, world.handled, world.copies, world.landed + 1)


def restored(world: World, commands: list[Command]) -> tuple[Progress, tuple[Batches, ...]] | None:
    """Return what a crash leaves: the newest snapshot that has landed."""
    landed = [c for c in commands[: world.landed] if isinstance(c, Snapshot)]
    if not landed:
        return None
    return (
        Progress(epoch=landed[-1].epoch, batch=landed[-1].batch),
        world.copies[len(landed) - 1],
    )


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_crash_at_any_step_of_any_interleaving_restores_a_state_of_the_undisturbed_run(
    num_stages: int, window: int, chunk: int
) -> None:
    """And what follows the restart, with either chunk, ends as the undisturbed run."""
    undisturbed: list[Batches] = [()]
    for command in schedule(1).commands():
        undisturbed.append(learn(undisturbed[-1], command))
    begins: deque[tuple[Progress, tuple[Batches, ...]]] = deque([(Progress(), ((),) * num_stages)])
    tried, worlds = {begins[0]}, 0
    while begins:
        progress, layers = begins.popleft()
        commands = list(schedule(chunk).commands(progress.epoch, progress.batch))
        count = sum(isinstance(command, Snapshot) for command in commands)
        first = World(layers, (0,) * num_stages, (((),) * num_stages,) * count, 0)
        todo, seen = [first], {first}
        while todo:
            world = todo.pop()
            worlds += 1
            left = restored(world, commands)
            if left is not None and left not in tried:
                _, copies = left
                assert len(set(copies)) == 1, "all stages at the same batch"
                assert copies[0] in undisturbed
                tried.add(left)
                begins.append(left)
            following = list(successors(world, commands, window))
            if not following:
                assert world.landed == len(commands), "nothing waits for ever"
                assert set(world.layers) == {undisturbed[-1]}
            new = [each for each in following if each not in seen]
            seen.update(new)
            todo += new
    assert worlds > 10
    assert sorted(progress.epoch for progress, _ in tried) == [0, 1, 2]


class Crash(Exception):
    pass


class Crashing:
    """A pipeline that is lost behind a number of results."""

    def __init__(self, pipeline: LocalPipeline, after: int) -> None:
        self.pipeline = pipeline
        self.after = after

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        for number, result in enumerate(self.pipeline.stream(commands)):
            if number == self.after:
                raise Crash
            yield result


class TestRealTrainings:
    @pytest.fixture(scope="class")
    @classmethod
    def task(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return write_tiny_task(tmp_path_factory.mktemp("data") / "tiny")

    @staticmethod
    def run(task: str, run_dir: Path) -> TrainConfig:
        options: dict[str, Any] = {"width": 4, "epochs": 2, "batch_size": 40, "lr": 0.01}
        return TrainConfig(**options, task=task, run_dir=str(run_dir))

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(
        cls, task: str, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[dict[str, bytes], list[Any]]:
        run = cls.run(task, tmp_path_factory.mktemp("undisturbed") / "run")
        records, _ = train(run)
        return layer_files(run, 6), timeless(records)

    @settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        crashes=st.lists(
            st.tuples(st.integers(0, 12), st.sampled_from([(), (1,), (2, 3)]), st.booleans()),
            max_size=4,
        )
    )
    def test_lost_at_any_result_any_number_of_times_end_with_the_same_bits(
        self,
        crashes: list[tuple[int, tuple[int, ...], bool]],
        task: str,
        undisturbed: tuple[dict[str, bytes], list[Any]],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        """Stages are lost, and with some crashes the driver too: it goes on from the disk."""
        run = self.run(task, tmp_path_factory.mktemp("crashing") / "run")
        todo = [*crashes, (99, (2,), False)]
        resume = False
        while todo:
            prepared = prepare(run, resume=resume)
            prepared = prepared.settled("fp32", (Kernels(),) * len(prepared.architecture))
            prepared.directory.create(prepared.run)
            resume, driver_lives = True, True
            with RunRecorder(prepared, Diary(), AtOnce()) as recorder:
                while todo and driver_lives:
                    after, cuts, driver_dies = todo.pop(0)
                    recorder.go_back()
                    at = type(prepared)(**{**vars(prepared), "checkpoint": recorder.latest})
                    loop = Loop(
                        prepared=prepared,
                        schedule=prepared.schedule(1),
                        cuts=cuts,
                        callback=Diary(),
                        recorder=recorder,
                    )
                    try:
                        loop.train(Crashing(local_pipeline(at, cuts), after), StopRequest())
                    except Crash:
                        driver_lives = not driver_dies
        files, records = undisturbed
        assert len(files) == 4
        assert layer_files(run, 6) == files
        assert timeless(recorder.records) == records


def test_batches_are_told_apart() -> None:
    """The model would see nothing if two batches looked the same."""
    steps = [c for c in schedule(1).commands() if isinstance(c, Train)]
    seen = [tuple(batch.tolist()) for command in steps for batch in command.batches]
    assert len(seen) == len(set(seen)) == 6
    assert all(isinstance(batch, np.ndarray) for command in steps for batch in command.batches)
