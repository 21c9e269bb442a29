"""One trial of a search: a training in the trial's own placement group, reported by epochs."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.controller import train_on_cluster
from rayff.distributed.loggers import LOGGERS
from rayff.distributed.placement import Node, bundle, nodes, num_actors, stage_resources
from rayff.engine.callbacks import Callback
from rayff.engine.preparation import prepare
from rayff.engine.run import PreparedRun, Run
from rayff.partition.plan import Plan, StageResources
from rayff.runs.checkpoint import Progress, checkpoint_step
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics
from rayff.runs.run_directory import TRIALS, RunDirectory
from rayff.tune.results import plain
from rayff.tune.space import METRICS


def trial_config(config: Mapping[str, Any]) -> TrainConfig:
    """Return the run of a trial; samplers may have drawn numbers of NumPy.

    Raises:
        UserError: an option is unknown or wrong, or not for a search.
    """
    run = TrainConfig.from_dict(plain(config), "the search space")
    if run.method != "ff":  # TorchTrainer would reserve its workers beside what the trial holds
        raise UserError(
            f"the search space has method {run.method!r}, but trials learn by Forward-Forward; "
            f"train that with python -m rayff.train --method {run.method}"
        )
    return run


def trial_resources(run: TrainConfig, there: Sequence[Node]) -> tuple[int, StageResources]:
    """Return the actors of a trial and what each takes: one CPU, or a share where there are fewer.

    Raises:
        UserError: the cluster can never hold the trial.
    """
    count = num_actors(run, there, num_layers=1)
    each = stage_resources(run, there, count)
    if run.cpus_per_stage is None:
        each = dataclasses.replace(each, cpus=min(1.0, each.cpus))
    return count, each


def trial_bundles(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for a trial: a bundle an actor, and nothing for its driver.

    The driver of a pipeline hands on references and small sums. A trial that cannot be gets next
    to nothing, and says so itself when it starts: the others go on.
    """
    try:
        run = trial_config(config)
        count, each = trial_resources(run, nodes())
    except UserError:
        return tune.PlacementGroupFactory([{"CPU": 0.01}])
    return tune.PlacementGroupFactory(
        [{}, *[bundle(each)] * count], strategy=run.placement.upper()
    )


def trial_function(folder: Path, *, clones: bool) -> Callable[[dict[str, Any]], None]:
    """Return what Tune calls with the options of each trial.

    Args:
        folder: of the search; a trial's run directory is in `trials/` by the trial's name.
        clones: whether trials go on from checkpoints of others.
    """

    def trial(point: dict[str, Any]) -> None:
        directory = RunDirectory(folder / TRIALS / tune.get_context().get_trial_name())
        config = trial_config({**point, "run_dir": str(directory.path)})
        trial_resources(config, nodes())
        config = _without_libraries(_in_its_group(config))
        given = tune.get_checkpoint()
        if given is not None:
            _replace(directory, config, given)
        begun = (directory.path / "config.json").exists()
        if not begun:
            shutil.rmtree(directory.path, ignore_errors=True)

        prepared = prepare(config, resume=begun)
        train_on_cluster(prepared, [TrialCallback(prepared, clones=clones)])

    return trial


def _in_its_group(run: TrainConfig) -> TrainConfig:
    """Return the run with the resources that its trial has reserved for each actor."""
    group = ray.util.get_current_placement_group()
    assert group is not None, "a trial runs in a placement group"
    each: dict[str, float] = group.bundle_specs[0]
    return dataclasses.replace(
        run, cpus_per_stage=each.get("CPU", 0.0), gpus_per_stage=each.get("GPU", 0.0)
    )


def _without_libraries(run: TrainConfig) -> TrainConfig:
    """Return the run with those loggers alone that write to its directory.

    The search hands the results of all its trials to the libraries.
    """
    own = ",".join(name for name in run.loggers if name not in LOGGERS)
    return dataclasses.replace(run, logger=own or "none")


class TrialCallback(Callback):
    """Reports an epoch to Tune once its checkpoint is on disk: a stopped trial can be used.

    Args:
        prepared: the trial's run.
        clones: whether to hand the checkpoint to Tune, for other trials to go on from.
    """

    def __init__(self, prepared: PreparedRun, *, clones: bool) -> None:
        self.prepared = prepared
        self.clones = clones
        self._waiting: list[EpochRecord] = []

    def on_start(self, run: Run, plan: Plan) -> None:
        """Report where a resumed trial stands: a search that was interrupted may not know."""
        metrics, reached = run.directory.path / METRICS_FILE, run.progress
        checkpoints = run.checkpoints.list()
        if checkpoints and metrics.exists():
            before = [row for row in read_metrics(metrics) if row.epoch <= reached.epoch]
            self._waiting = before[-1:]
            self.on_checkpoint(checkpoints[-1])

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Wait for the checkpoint."""
        self._waiting.append(record)

    def on_checkpoint(self, path: Path) -> None:
        """Report the epochs that it completes; others may have passed since."""
        reached = checkpoint_step(path.name)
        while self._waiting and self._waiting[0].step <= reached:
            record = self._waiting.pop(0)
            values = {name: getattr(record, name) for name in METRICS}
            if not self.clones or (self._waiting and self._waiting[0].step <= reached):
                tune.report(values)
                continue
            with tempfile.TemporaryDirectory() as copy:
                shutil.copytree(path, Path(copy) / path.name)
                shutil.copy(self.prepared.directory.path / METRICS_FILE, copy)
                tune.report(values, checkpoint=tune.Checkpoint.from_directory(copy))

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Forget the epochs that will be trained again."""
        self._waiting = [record for record in self._waiting if record.epoch <= progress.epoch]

    def on_warning(self, message: str) -> None:
        """Write it to the trial's log."""
        print(f"warning: {message}", flush=True)


def _replace(directory: RunDirectory, run: TrainConfig, given: tune.Checkpoint) -> None:
    """Put the run where a checkpoint stands, which may be of another trial, with other options."""
    shutil.rmtree(directory.path, ignore_errors=True)
    directory.create(run)
    with given.as_directory() as source:
        found = list(Path(source).glob("step-*"))
        if len(found) != 1:
            raise UserError(f"{source} is no checkpoint of a trial")
        shutil.copytree(found[0], directory.checkpoints / found[0].name)
        shutil.copy(Path(source) / METRICS_FILE, directory.path)
