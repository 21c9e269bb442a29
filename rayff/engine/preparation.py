"""Checks of a run before anything is started: options, data, network, directory, checkpoint."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from safetensors.torch import load

from rayff.config.errors import UserError
from rayff.config.kernels import parse_kernels
from rayff.config.local_loss import loss_config
from rayff.config.recipe import Recipe
from rayff.config.registry import is_import_path
from rayff.config.resolved import resolve_recipe, resolve_rule, resume_config, with_recipe
from rayff.config.train_config import TrainConfig
from rayff.config.validation import check_cuts, check_frozen, check_method, check_replicas
from rayff.data.augmentation import try_augmentations
from rayff.data.loading import data_options, load_task
from rayff.data.locations import absolute, is_uri
from rayff.data.streaming import StreamedSet
from rayff.data.tasks import TASKS, TaskData, known_task, task_recipe
from rayff.engine.continuation import as_ranges, changed_schedule, initial_checkpoint
from rayff.engine.run import PreparedRun
from rayff.learning.classifier import Classifier
from rayff.learning.layer_state import check_state
from rayff.learning.losses import loss_class, try_loss
from rayff.learning.losses.goodness import Goodness
from rayff.learning.methods import layouts
from rayff.learning.module_trial import try_modules
from rayff.learning.optimizers import optimizer_class, try_optimizer
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.runs.checkpoint import Checkpoint, complete_checkpoints
from rayff.runs.metrics import METRICS_FILE, read_metrics
from rayff.runs.model_file import WEIGHTS, read_model
from rayff.runs.run_directory import RunDirectory, resumed_folder
from rayff.runs.storage import Storage

ANY_LAYERS = 1_000_000
"""More layers than an option can name: of a network that is not known before the data."""


def default_run_dir(config: TrainConfig) -> str:
    """Return runs/ARCH-TASK-DATE-TIME."""
    names = (
        Path(name.partition("?")[0] if is_uri(name) else name).name.replace(":", "-")
        for name in (config.arch, config.task)
    )
    return f"runs/{'-'.join(names)}-{time.strftime('%Y%m%d-%H%M%S')}"


def prepare(config: TrainConfig, *, resume: bool) -> PreparedRun:
    """Check everything that can be checked without a cluster.

    Raises:
        UserError: whatever is wrong with options, data, network, directory or checkpoint.
    """
    directory = RunDirectory(Path(config.run_dir or default_run_dir(config)))
    trained_before: Recipe | None = None
    storage = Storage(directory.path, config.storage_path) if config.storage_path else None
    config = _placed(config)
    if resume:
        resumed_folder(config)
        if storage is not None:
            storage.pull()
        saved = directory.read_config()
        trained_before = resolve_recipe(saved, task_recipe(saved.task))
        config = resume_config(with_recipe(saved, trained_before), config)
    else:
        directory.check_new()
        if storage is not None:
            storage.check_new()
    begins = not (resume and complete_checkpoints(directory.checkpoints))
    if resume and begins:
        _check_not_trained(directory)
    batch_size = resolve_recipe(config, task_recipe(config.task)).batch_size
    check_plan_options(dataclasses.replace(config, kernels=None), ANY_LAYERS, batch_size)
    source = _source(config.init_from) if begins and config.init_from is not None else None
    options = data_options(config)
    if resume:
        options = dataclasses.replace(options, stream=config.stream)
    data = load_task(options)
    prepared = assemble(config, data, directory)
    checkpoint = prepared.checkpoints.read_latest() if resume else None
    notes = []
    if checkpoint is not None:
        prepared = dataclasses.replace(prepared, checkpoint=checkpoint)
        _check_checkpoint(prepared, checkpoint)
        done = checkpoint.progress.epoch
        assert trained_before is not None, "a run that is resumed has a recipe"
        if (change := changed_schedule(trained_before, prepared.recipe, done)) is not None:
            notes.append(change)
    elif source is not None and config.init_from is not None:
        checkpoint, notes = initial_checkpoint(prepared, source, Path(config.init_from))
    elif resume:
        notes.append("there is no checkpoint yet: the run begins again")
    if config.frozen:
        notes.append(f"layers that only run forward: {as_ranges(config.frozen)}")
    return dataclasses.replace(prepared, checkpoint=checkpoint, notes=tuple(notes))


def _source(run_dir: str) -> Classifier:
    """Return the network that a new run begins with."""
    try:
        return read_model(Path(run_dir))
    except UserError as error:
        raise UserError(f"--init-from: {error}") from error


def _check_not_trained(directory: RunDirectory) -> None:
    """Raise a UserError where a run without checkpoints has a model, which would be lost."""
    path = directory.path
    if (path / WEIGHTS).exists():
        raise UserError(
            f"{path} has a trained model and no checkpoint to resume from: start a new run with "
            f"its layers by --init-from {path}"
        )


def _placed(config: TrainConfig) -> TrainConfig:
    """Return the options with folders that mean the same from every working directory."""
    data_dir = config.data_dir and absolute(config.data_dir, "--data-dir")
    init_from = config.init_from and os.path.abspath(config.init_from)
    task = config.task
    if not is_import_path(task) and known_task(task) is None:
        task = absolute(task, "--task")
    return dataclasses.replace(config, task=task, data_dir=data_dir, init_from=init_from)


def assemble(
    config: TrainConfig, data: TaskData, directory: RunDirectory, *, check_size: bool = True
) -> PreparedRun:
    """Return a run at its start, with its network, once both fit the data.

    Args:
        config: the user's.
        data: of the run's task.
        directory: where it will leave everything; not read.
        check_size: whether the training images must make up a batch.
    """
    network = architecture(
        config.arch,
        num_classes=data.num_classes,
        image_channels=data.image_channels,
        image_size=data.image_size,
        width=config.width,
    )
    recipe = resolve_recipe(config, task_recipe(config.task))
    check_plan_options(config, len(network), recipe.batch_size)
    optimizer_class(recipe.optimizer)
    if config.method == "ff":
        last_batch = len(data.train) % recipe.batch_size or recipe.batch_size
        check_learning(config, network, last_batch)
    elif network.source is not None:
        raise UserError(
            f"--method {config.method} trains networks of convolutions, and the layers of --arch "
            f"{config.arch} are modules: leave --method out, or use another --arch"
        )
    if is_import_path(recipe.optimizer):
        first, *_ = layouts(config.method, network, loss_config(config)).values()
        try_optimizer(recipe, first.learned.values())
    try_augmentations(config.augment, data.train.image_shape)
    config = dataclasses.replace(config, stream=isinstance(data.train, StreamedSet))
    prepared = PreparedRun(
        config=with_recipe(config, recipe),
        recipe=recipe,
        data=data,
        architecture=network,
        directory=directory,
        checkpoint=None,
    )
    if check_size:
        prepared.schedule(chunk=1)
    return prepared


def assemble_without_data(config: TrainConfig) -> PreparedRun:
    """Return a run as far as a plan needs it; only a folder of images is read for it."""
    if config.task in TASKS:
        task = TASKS.load(config.task)
        size = data_options(config).size
        data = TaskData.empty(task.name, task.class_names, task.image_channels, size)
    else:
        data = load_task(data_options(config))
    return assemble(config, data, RunDirectory(Path()), check_size=False)


def _check_checkpoint(prepared: PreparedRun, checkpoint: Checkpoint) -> None:
    """Raise a UserError where data, layers or metrics are not those of the checkpoint."""
    progress, size = checkpoint.progress, prepared.recipe.batch_size
    if progress.epoch > prepared.recipe.epochs:
        raise UserError(
            f"--epochs {prepared.recipe.epochs}: the run has trained {progress.epoch} already; "
            "name more, or leave the option out"
        )
    batches, images = prepared.schedule(chunk=1).batches_per_epoch, len(prepared.splits["train"])
    if (
        checkpoint.step != progress.epoch * batches + progress.batch
        or progress.batch > batches
        or progress.images != min(progress.batch * size, images)
    ):
        raise UserError(
            f"the data of {prepared.config.task!r} has changed: an epoch has {batches} batches "
            f"now, which does not fit the checkpoint of step {checkpoint.step}; restore the data, "
            "or start a new --run-dir"
        )
    config = prepared.config
    held = layouts(config.method, prepared.architecture, loss_config(config))
    optimizer = optimizer_class(prepared.recipe.optimizer)
    for index, own in held.items():
        state = load(checkpoint.states[index].tobytes())
        try:
            check_state(index, own, optimizer, state)
        except UserError as error:
            folder = f"{prepared.directory.checkpoints}/step-{checkpoint.step:08d}"
            raise UserError(
                f"{error}; delete {folder} to continue from the one before it, or start a new "
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


def check_learning(config: TrainConfig, network: Architecture, last_batch: int) -> None:
    """Raise a UserError where loss or modules do not fit rule, network or replicas, or fail.

    Args:
        config: the user's.
        network: all layers.
        last_batch: images of the last batch of an epoch.
    """
    of_modules = network.source is not None
    resolve_rule(config, of_modules=of_modules)
    kind = loss_class(config.loss)
    replicated = config.replicas == "auto" or max(config.replica_counts or (1,)) > 1
    if of_modules:
        try_modules(network, loss_config(config), replicated=replicated, smallest_batch=last_batch)
        return
    if issubclass(kind, Goodness):
        network.check_groups()
    if replicated and getattr(kind, "couples_images", False):
        raise UserError(
            f"--replicas {config.replicas}: --loss {config.loss} compares the images of a whole "
            "batch with each other, and replicas split it; leave --replicas out"
        )
    for spec in network.convolutions:
        try_loss(loss_config(config), spec, network.num_classes, replicated=replicated)


def check_plan_options(config: TrainConfig, num_layers: int, batch_size: int) -> None:
    """Raise a UserError where options contradict each other or do not fit the network."""
    check_method(config, batch_size)
    check_frozen(config, num_layers)
    check_replicas(config, num_layers, batch_size)
    if config.kernels is not None:
        parse_kernels(config.kernels, num_layers)
    if config.cuts is not None:
        check_cuts(config.cuts, config.stages, num_layers)
    if config.elastic_range is not None and config.elastic_range[0] > num_layers:
        raise UserError(
            f"--elastic {config.elastic}: the network has {num_layers} layers, and a stage needs "
            f"one at least; begin with {num_layers} or fewer"
        )
    if config.replicas != "auto" and config.stages is not None and config.stages > num_layers:
        raise UserError(
            f"--stages {config.stages}: the network has {num_layers} layers, and a stage needs "
            f"one at least; use --stages {num_layers} or fewer, or --replicas auto"
        )
