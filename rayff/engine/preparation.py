"""All of a run that can be checked before anything is started."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, format_kernels, parse_kernels
from rayff.config.recipe import Recipe
from rayff.config.train_config import Precision, TrainConfig
from rayff.config.validation import check_cuts, check_method, check_replicas
from rayff.data.images import ImageSet, Split
from rayff.data.tasks import TaskData, load_task, task_recipe
from rayff.engine.schedule import Schedule
from rayff.learning.optimizers import check_state
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.runs.checkpoint import Checkpoint, CheckpointStore, Progress
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics
from rayff.runs.run_directory import RunDirectory
from rayff.runs.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run whose data, network and directory were checked, before anything is started."""

    run: TrainConfig
    """With the recipe written out."""
    recipe: Recipe
    data: TaskData
    architecture: Architecture
    directory: RunDirectory
    checkpoint: Checkpoint | None
    """Where a resumed run goes on; None at the start."""

    def settled(self, precision: Precision, kernels: tuple[Kernels, ...]) -> Prepared:
        """Return the run with what it found out written out: resumed, it stays with that."""
        fast = self.run.method == "ff" and self.run.rule == "fast"
        named = format_kernels(kernels) if fast else None
        run = dataclasses.replace(self.run, precision=precision, kernels=named)
        return dataclasses.replace(self, run=run)

    @property
    def num_classifiers(self) -> int:
        """Losses of the network, each of which says a class."""
        return self.architecture.num_classifiers(self.run.method)

    @property
    def progress(self) -> Progress:
        """Where training begins."""
        return Progress() if self.checkpoint is None else self.checkpoint.progress

    @property
    def complete_records(self) -> list[EpochRecord]:
        """The records of a run whose last epoch is behind it; none of others."""
        epochs, metrics = self.recipe.epochs, self.directory.path / METRICS_FILE
        if self.progress.epoch < epochs or self.run.precision is None or not metrics.exists():
            return []
        records = read_metrics(metrics)
        return records if [record.epoch for record in records] == [*range(1, epochs + 1)] else []

    def export_model(self, snapshot: Checkpoint, window: tuple[int, int]) -> None:
        """Write the network of a snapshot, with the window of layers that classify.

        Raises:
            OSError: the disk is full or gone.
        """
        assert self.run.precision is not None, "settled before training"
        self.directory.export_model(
            self.architecture,
            snapshot.states,
            window=window,
            class_names=self.data.class_names,
            precision=self.run.precision,
            method=self.run.method,
        )

    @property
    def splits(self) -> dict[Split, ImageSet]:
        """The images of each split."""
        limit = self.run.limit
        return {split: images.first(limit) for split, images in self.data.splits.items()}

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints of the run."""
        return CheckpointStore(
            self.directory.checkpoints,
            self.architecture,
            seed=self.run.seed,
            keep=self.run.keep_checkpoints,
            num_losses=self.num_classifiers,
        )

    @property
    def storage(self) -> Storage | None:
        """Where a copy of the run directory is kept, if anywhere."""
        path = self.run.storage_path
        return Storage(self.directory.path, path) if path else None

    def schedule(self, chunk: int) -> Schedule:
        """Return the order of the run's commands, `chunk` batches in each."""
        return Schedule(
            recipe=self.recipe,
            seed=self.run.seed,
            num_images={split: len(images) for split, images in self.splits.items()},
            chunk=chunk,
            checkpoint_every=self.run.checkpoint_every,
        )


def default_run_dir(run: TrainConfig) -> str:
    """Return runs/ARCH-TASK-DATE-TIME."""
    return f"runs/{run.arch}-{Path(run.task).name}-{time.strftime('%Y%m%d-%H%M%S')}"


def prepare(run: TrainConfig, *, resume: bool) -> Prepared:
    """Check all that can be checked without a cluster.

    Raises:
        UserError: whatever is wrong with data, network, recipe, directory or checkpoint.
    """
    run = run.resolved(task_recipe(run.task))
    directory = RunDirectory(Path(run.run_dir or default_run_dir(run)))
    storage = Storage(directory.path, run.storage_path) if run.storage_path else None
    if resume:
        if storage is not None:
            storage.pull()
        run = _resumed(run, directory)
    else:
        directory.check_new()
        if storage is not None:
            storage.check_new()
    data_dir = None if run.data_dir is None else Path(run.data_dir)
    data = load_task(run.task, data_dir=data_dir, download=run.download)
    prepared = assemble(run, data, directory)
    if not resume:
        return prepared
    checkpoint = prepared.checkpoints.read_latest()
    prepared = dataclasses.replace(prepared, checkpoint=checkpoint)
    if checkpoint is not None:
        _check_checkpoint(prepared, checkpoint)
    return prepared


def assemble(run: TrainConfig, data: TaskData, directory: RunDirectory) -> Prepared:
    """Return a run at its start, with its network, once both fit the data.

    Args:
        run: with its recipe written out.
        data: of the run's task.
        directory: where it will leave everything; not looked at.
    """
    network = architecture(
        run.arch,
        num_classes=data.num_classes,
        image_channels=data.image_channels,
        width=run.width,
    )
    recipe = run.recipe({})
    check_plan_wishes(run, len(network), recipe.batch_size)
    prepared = Prepared(
        run=run,
        recipe=recipe,
        data=data,
        architecture=network,
        directory=directory,
        checkpoint=None,
    )
    prepared.schedule(chunk=1)  # checks the batch size
    return prepared


def _check_checkpoint(prepared: Prepared, checkpoint: Checkpoint) -> None:
    """Raise a UserError where data, layers or metrics are not those of the checkpoint."""
    progress, size = checkpoint.progress, prepared.recipe.batch_size
    batches, images = prepared.schedule(chunk=1).batches_per_epoch, len(prepared.splits["train"])
    if (
        checkpoint.step != progress.epoch * batches + progress.batch
        or progress.epoch > prepared.recipe.epochs
        or progress.batch > batches
        or progress.images != min(progress.batch * size, images)
    ):
        raise UserError(
            f"the data of {prepared.run.task!r} has changed: an epoch has {batches} batches now, "
            f"which does not fit the checkpoint of step {checkpoint.step}; restore the data, or "
            "start a new --run-dir"
        )
    shapes = prepared.architecture.parameter_shapes(prepared.run.method)
    for layer, own in zip(prepared.architecture.layers, shapes, strict=True):
        state = load(checkpoint.states[layer.index].tobytes())
        try:
            check_state(layer.index, own, prepared.recipe.optimizer, state)
        except UserError as error:
            folder = f"{prepared.directory.checkpoints}/step-{checkpoint.step:08d}"
            raise UserError(
                f"{error}; delete {folder} to go on from the one before it, or start a new "
                "--run-dir"
            ) from error
    metrics = prepared.directory.path / METRICS_FILE
    if metrics.exists():
        for record in read_metrics(metrics):
            if len(record.layer_loss) != prepared.num_classifiers:
                raise UserError(
                    f"{metrics} is of a network of {len(record.layer_loss)} layers, and the "
                    f"run's has {prepared.num_classifiers}; move it away to go on without its "
                    "rows"
                )


def _resumed(run: TrainConfig, directory: RunDirectory) -> TrainConfig:
    """Return the run with what it found out when it was begun.

    Raises:
        UserError: the directory's run is missing, or is not the one asked for.
    """
    if run.run_dir is None:
        raise UserError("--resume needs --run-dir: the folder of the run to go on with")
    saved = directory.read_config()
    saved.resolved(task_recipe(saved.task)).check_resumes(run)
    return dataclasses.replace(run, precision=saved.precision, kernels=saved.kernels)


def check_plan_wishes(run: TrainConfig, num_layers: int, batch_size: int) -> None:
    """Raise a UserError where options contradict each other or do not fit the network."""
    check_method(run, batch_size)
    check_replicas(run, num_layers, batch_size)
    if run.kernels is not None:
        parse_kernels(run.kernels, num_layers)
    if run.cuts is not None:
        check_cuts(run.cuts, run.stages, num_layers)
    if run.elastic_range is not None and run.elastic_range[0] > num_layers:
        raise UserError(
            f"--elastic {run.elastic}: the network has {num_layers} layers, and a stage needs one "
            f"at least; begin with {num_layers} or fewer"
        )
    if run.replicas != "auto" and run.stages is not None and run.stages > num_layers:
        raise UserError(
            f"--stages {run.stages}: the network has {num_layers} layers, and a stage needs one "
            f"at least; use --stages {num_layers} or fewer, or --replicas auto"
        )
