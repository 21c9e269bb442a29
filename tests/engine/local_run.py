"""A whole training in this process, with an callback that writes down what it is told."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

import torch

from rayff.baselines.learner import EndToEndLearner
from rayff.config.kernels import Kernels
from rayff.config.train_config import TrainConfig
from rayff.engine.commands import Evaluate, Train
from rayff.engine.learner import StageSpec, States
from rayff.engine.loop import Loop
from rayff.engine.pipeline import LocalPipeline, Pipeline
from rayff.engine.preparation import Prepared, prepare
from rayff.engine.stage import Stage, local_stage
from rayff.engine.stop import StopRequest
from rayff.runs.checkpoint import Progress
from rayff.runs.checkpoint_manager import RunRecorder
from rayff.runs.metrics import EpochRecord

T = TypeVar("T")

PASSING: dict[str, Any] = {
    "images_per_s": 0.0,
    "elapsed_s": 0.0,
    "stage_busy": [],
    "cuts": [],
}
"""What of a record depends on the time it takes and on the plan."""


class Diary:
    """An callback: a line an event; `then` is called behind each with their number."""

    def __init__(self, then: Callable[[int], object] = lambda number: None) -> None:
        self.lines: list[str] = []
        self.records: list[EpochRecord] = []
        self.results = 0
        self.then = then

    def on_result(self, command: Train | Evaluate, reports: Any) -> None:
        what = f"train {command.step}" if isinstance(command, Train) else command.split
        self.lines.append(what)
        self.results += 1
        self.then(self.results)

    def on_epoch(self, record: EpochRecord) -> None:
        self.lines.append(f"epoch {record.epoch}")
        self.records.append(record)

    def on_checkpoint(self, path: Path) -> None:
        self.lines.append(path.name)

    def on_warning(self, message: str) -> None:
        self.lines.append(f"warning: {message}")

    def on_restart(self, stage_names: Any, progress: Progress) -> None:
        self.lines.append(f"restart {progress.epoch}")


class AtOnce(Executor):
    """An executor that does what it is given before it returns."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def local_pipeline(prepared: Prepared, cuts: tuple[int, ...] = ()) -> LocalPipeline:
    """Return the stages of a prepared run, which go on from its checkpoint."""
    states = None if prepared.checkpoint is None else prepared.checkpoint.states
    if prepared.run.method != "ff":
        return LocalPipeline([end_to_end_stage(prepared, states)])
    slices = prepared.architecture.stages(cuts)
    stages = []
    for part in slices:
        spec = StageSpec(
            architecture=part,
            is_last=part is slices[-1],
            recipe=prepared.recipe,
            seed=prepared.run.seed,
            precision=prepared.run.precision or "fp32",
            rule=prepared.run.rule,
        )
        data = prepared.splits if part is slices[0] else None
        stages.append(local_stage(spec, torch.device("cpu"), data, states))
    return LocalPipeline(stages)


def end_to_end_stage(prepared: Prepared, states: States | None = None) -> Stage:
    """Return a worker of backpropagation that is alone."""
    assert prepared.run.precision is not None
    spec = StageSpec(
        architecture=prepared.architecture,
        is_last=True,
        recipe=prepared.recipe,
        seed=prepared.run.seed,
        precision=prepared.run.precision,
    )
    cpu = torch.device("cpu")
    learner = EndToEndLearner(spec, prepared.run.method, cpu, states)
    return Stage(spec, cpu, learner, prepared.splits)


def train(
    run: TrainConfig,
    *,
    resume: bool = False,
    chunk: int = 1,
    cuts: tuple[int, ...] = (),
    stop_after: int | None = None,
    callback: Diary | None = None,
    pipeline: Callable[[Prepared], Pipeline] | None = None,
) -> tuple[list[EpochRecord], Diary]:
    """Train, or go on; `stop_after` that many results a stop is asked for."""
    prepared = prepare(run, resume=resume)
    prepared = prepared.settled("fp32", (Kernels(),) * len(prepared.architecture))
    prepared.directory.create(prepared.run)
    stop = StopRequest()
    diary = callback or Diary()
    if stop_after is not None:
        diary.then = lambda number: setattr(stop, "signum", 15) if number == stop_after else None
    stages = pipeline(prepared) if pipeline else local_pipeline(prepared, cuts)
    with RunRecorder(prepared, diary, AtOnce()) as recorder:
        loop = Loop(
            prepared=prepared,
            schedule=prepared.schedule(chunk),
            cuts=cuts,
            callback=diary,
            recorder=recorder,
        )
        assert loop.train(stages, stop)
    return recorder.records, diary


def layer_files(run: TrainConfig, step: int) -> dict[str, bytes]:
    """Return weights and optimizer state of every layer, byte for byte."""
    folder = Path(str(run.run_dir)) / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in folder.glob("layer-*.safetensors")}


def timeless(records: list[EpochRecord]) -> list[EpochRecord]:
    """Return the records without what differs from one run or plan to the next."""
    return [dataclasses.replace(record, **PASSING) for record in records]
