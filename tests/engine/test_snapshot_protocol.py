"""Every interleaving of the snapshot protocol, and crashes at every place of real trainings.

The model is that of the actors: a stage handles its commands in the order called; a command waits
for the message of the stage before, but a snapshot, which is not sent on; the driver takes
results in order and has a window of commands in flight. A crash loses all that the driver does not
have. Commands and what follows a restart are the real Schedule's.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayff.config.recipe import Recipe
from rayff.engine.active_run import make_recorder
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Command, Snapshot, Train
from rayff.engine.local import local_pipeline, resolve_for
from rayff.engine.loop import Loop
from rayff.engine.pipeline import LocalPipeline, Result
from rayff.engine.preparation import prepare
from rayff.engine.schedule import Schedule
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord
from tests.helpers.runs import layer_files, timeless, train_locally
from tests.helpers.tiny_task import tiny_config

CPU = torch.device("cpu")
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
    """The state of stages and driver."""

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


class Crashing(LocalPipeline):
    """A pipeline that is lost after a number of results."""

    after = 0

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        for number, result in enumerate(super().stream(commands)):
            if number == self.after:
                raise Crash
            yield result


Undisturbed = tuple[dict[str, bytes], list[EpochRecord]]


@pytest.fixture(scope="module")
def undisturbed(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = train_locally(tiny_config(tiny_task, run_dir))
    return layer_files(run_dir, 6), timeless(result.metrics)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    crashes=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([(), (1,), (2, 3)]), st.booleans()),
        max_size=4,
    )
)
def test_trainings_that_crash_at_any_result_any_number_of_times_end_with_the_same_bits(
    crashes: list[tuple[int, tuple[int, ...], bool]],
    tiny_task: str,
    undisturbed: Undisturbed,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Stages are lost, and with some crashes the driver too: it goes on from the disk."""
    run_dir = tmp_path_factory.mktemp("crashing") / "run"
    config = tiny_config(tiny_task, run_dir, precision="fp32", kernels="conv")
    todo = [*crashes, (99, (2,), False)]
    resume = False
    while todo:
        run = resolve_for(prepare(config, resume=resume), CPU)
        run.directory.create(run.config)
        resume, driver_lives = True, True
        with make_recorder(run, Callback()) as recorder:
            while todo and driver_lives:
                after, cuts, driver_dies = todo.pop(0)
                recorder.go_back()
                latest = recorder.checkpoints.latest
                states = None if latest is None else latest.states
                pipeline = Crashing(local_pipeline(run, cuts, CPU, states).stages)
                pipeline.after = after
                loop = Loop(
                    schedule=run.schedule(1), cuts=cuts, callbacks=Callback(), recorder=recorder
                )
                try:
                    loop.train(pipeline)
                except Crash:
                    driver_lives = not driver_dies
    assert layer_files(run_dir, 6) == undisturbed[0]
    assert timeless(recorder.records) == undisturbed[1]


def test_no_two_batches_are_the_same() -> None:
    """The model would see nothing if two batches looked the same."""
    steps = [c for c in schedule(1).commands() if isinstance(c, Train)]
    seen = [tuple(batch.tolist()) for command in steps for batch in command.batches]
    assert len(seen) == len(set(seen)) == 6
    assert all(isinstance(batch, np.ndarray) for command in steps for batch in command.batches)
