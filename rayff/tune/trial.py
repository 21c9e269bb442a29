"""One trial of a search: a training in the trial's placement group, reported by epochs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.console.log import LogCallback
from rayff.distributed.controller import train_on_cluster
from rayff.distributed.loggers import LOGGERS
from rayff.distributed.placement import Node, bundle, nodes, num_actors, stage_resources
from rayff.engine.callbacks import Callback
from rayff.engine.preparation import prepare
from rayff.engine.run import Run
from rayff.partition.plan import Plan, StageResources
from rayff.runs.checkpoint import Progress, checkpoint_step
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics
from rayff.runs.run_directory import CONFIG, RunDirectory
from rayff.runs.run_lock import locked
from rayff.tune.space import METRICS

_MANY_LAYERS = 10_000
"""Reserve for all stages that an elastic trial may have; its number of layers is not known."""


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a trial with NumPy's numbers, which samplers draw, as Python's."""
    return {name: v.item() if hasattr(v, "item") else v for name, v in config.items()}


def trial_config(config: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of a trial; UserError if an option is wrong or not for a search."""
    run = TrainConfig.from_dict(plain(config), "the search space")
    if run.method != "ff":  # TorchTrainer would reserve its workers outside the trial's group
        raise UserError(
            f"the search space has method {run.method!r}, but trials learn by Forward-Forward; "
            f"train that with rayff train --method {run.method}"
        )
    return run


def trial_resources(run: TrainConfig, there: Sequence[Node]) -> tuple[int, StageResources]:
    """Return the number of a trial's actors and the resources of each, by default a CPU at most.

    Raises:
        UserError: the cluster can never hold the trial.
    """
    count = num_actors(run, there, _MANY_LAYERS)
    each = stage_resources(run, there, count)
    if run.cpus_per_stage is None:
        each = dataclasses.replace(each, cpus=min(1.0, each.cpus))
    return count, each


def trial_bundles(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for a trial: a bundle per actor, and nothing for the driver.

    A trial that cannot run reserves next to nothing, and fails with a sentence once it starts.
    """
    try:
        run = trial_config(config)
        count, each = trial_resources(run, nodes())
    except UserError:
        return tune.PlacementGroupFactory([{"CPU": 0.01}])
    strategy = run.placement.upper()
    return tune.PlacementGroupFactory([{}, *[bundle(each)] * count], strategy=strategy)


def trial_function(trials: Path, cwd: Path, *, clones: bool) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune calls with the configuration of each trial.

    Args:
        trials: folder of the run directories, which have the names of the trials.
        cwd: working directory, if the trial's node has it.
        clones: whether trials continue from checkpoints of others.
    """

    def trial(point: dict[str, Any]) -> None:
        if cwd.is_dir():  # Tune has set another one
            os.chdir(cwd)
        directory = RunDirectory(trials / tune.get_context().get_trial_name())
        run = trial_config({**point, "run_dir": str(directory.path)})
        trial_resources(run, nodes())
        group = ray.util.get_current_placement_group()
        assert group is not None, "Tune reserves one for each trial"
        run = dataclasses.replace(
            run,
            cpus_per_stage=group.bundle_specs[0].get("CPU", 0.0),
            gpus_per_stage=group.bundle_specs[0].get("GPU", 0.0),
            # the search itself logs its trials to the libraries
            logger=",".join(set(run.loggers) - LOGGERS.keys()) or "none",
        )
        if checkpoint := tune.get_checkpoint():
            clone_checkpoint(directory, run, checkpoint)
        resume = (directory.path / CONFIG).exists()
        if resume:
            run = dataclasses.replace(run, autotune=False)  # its kernels are in its config.json
        else:
            shutil.rmtree(directory.path, ignore_errors=True)
        with locked(directory.path):
            prepared = prepare(run, resume=resume)
            train_on_cluster(prepared, [TrialCallback(clones=clones), LogCallback()])

    return trial


def clone_checkpoint(
    directory: RunDirectory, run: TrainConfig, checkpoint: tune.Checkpoint
) -> None:
    """Replace a run directory by a run at a checkpoint, which may be of another trial."""
    shutil.rmtree(directory.path, ignore_errors=True)
    directory.create(run)
    with checkpoint.as_directory() as source:
        (step,) = Path(source).glob("step-*")
        shutil.copytree(step, directory.checkpoints / step.name)
        shutil.copy(Path(source) / METRICS_FILE, directory.path)


class TrialCallback(Callback):
    """Reports an epoch to Tune once its checkpoint is on disk, so a stopped trial has a model.

    Args:
        clones: whether Tune gets the checkpoints, for other trials to continue from.
    """

    def __init__(self, *, clones: bool) -> None:
        self.clones = clones
        self._waiting: list[EpochRecord] = []

    def on_start(self, run: Run, plan: Plan) -> None:
        """Report the last epoch of a resumed trial: Tune may not have seen it."""
        metrics, checkpoints = run.directory.path / METRICS_FILE, run.checkpoints.list()
        if checkpoints and metrics.exists():
            records = [r for r in read_metrics(metrics) if r.epoch <= run.progress.epoch]
            self._waiting = records[-1:]
            self.on_checkpoint(checkpoints[-1])

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Wait for the checkpoint."""
        self._waiting.append(record)

    def on_checkpoint(self, path: Path) -> None:
        """Report the epochs up to the checkpoint."""
        complete = [r for r in self._waiting if r.step <= checkpoint_step(path.name)]
        self._waiting = self._waiting[len(complete) :]
        for record in complete:
            values = {name: getattr(record, name) for name in METRICS}
            if not self.clones or record is not complete[-1]:
                tune.report(values)
                continue
            with tempfile.TemporaryDirectory() as copy:
                shutil.copytree(path, Path(copy) / path.name)
                shutil.copy(path.parents[1] / METRICS_FILE, copy)
                tune.report(values, checkpoint=tune.Checkpoint.from_directory(copy))

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Forget the epochs that are trained again."""
        self._waiting = [record for record in self._waiting if record.epoch <= progress.epoch]

    def on_warning(self, message: str) -> None:
        """Write to the trial's log."""
        print(f"warning: {message}", flush=True)
