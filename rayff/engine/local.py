"""The local backend: the stages of a run in this process, without Ray (`--backend local`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.config.validation import as_option
from rayff.engine.active_run import start_run
from rayff.engine.callbacks import Callback, CallbackList
from rayff.engine.learner import StageSpec, States, make_learner
from rayff.engine.loop import Loop
from rayff.engine.pipeline import LocalPipeline
from rayff.engine.prediction import pick_device
from rayff.engine.resolution import resolve_run, warn_of_missing_kernels
from rayff.engine.run import PreparedRun, Run, TrainResult
from rayff.engine.stage import Stage
from rayff.kernels.autotune import autotune
from rayff.kernels.device_class import device_class, device_name, missing_kernels
from rayff.kernels.precision import DTYPES, default_precision
from rayff.partition.estimate import estimated_costs
from rayff.partition.plan import Plan, StageResources, default_chunk, make_plan
from rayff.partition.profile import check_kernels

_OF_RAY = (
    "elastic",
    "replicas",
    "rebalance",
    "placement",
    "transport",
    "gpus_per_stage",
    "window",
)
"""Options of actors, which a run in one process has no use for."""


def train_locally(prepared: PreparedRun, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train in this process, to the end or to where a signal or a callback asks.

    The bits are those of the pipeline of actors with the same torch threads a stage.

    Raises:
        UserError: an option that needs Ray, or a mistake in the run.
        RunError: the last checkpoint cannot be written.
    """
    device = pick_device(prepared.config.device)
    with torch_threads(prepared.config):
        with activity("loading kernels, which are compiled once on a machine"):
            run = resolve_for(prepared, device)
            missing, on_gpu = missing_kernels(device), device.type == "cuda"
        warn = CallbackList(callbacks).on_warning
        warn_of_missing_kernels(run, missing, warn, on_gpu=on_gpu)
        plan = local_plan(run, device)
        with start_run(run, plan, callbacks, [device_name(device)]) as active:
            states = None if run.checkpoint is None else run.checkpoint.states
            chunk = run.config.chunk or default_chunk(
                plan,
                batch_size=run.recipe.batch_size,
                bytes_per_element=DTYPES[run.resolved.precision].itemsize,
            )
            loop = Loop(
                schedule=run.schedule(chunk),
                cuts=plan.cuts,
                callbacks=active.callbacks,
                recorder=active.recorder,
                patience=run.config.patience,
                log_every=run.config.log_every,
                should_stop=active.should_stop,
            )
            loop.train(local_pipeline(run, plan.cuts, device, states))
        return active.result()


def check_local_options(config: TrainConfig) -> None:
    """Raise a UserError for an option that needs actors."""
    for name in _OF_RAY:
        value = getattr(config, name)
        if value != getattr(TrainConfig, name):
            raise UserError(
                f"{as_option(name, value)} is for actors: leave it out with --backend local, or "
                "use --backend ray"
            )
    if (config.workers or 1) > 1:
        raise UserError(
            f"--workers {config.workers}: --backend local has one; leave the option out, or use "
            "--backend ray"
        )


@contextmanager
def torch_threads(config: TrainConfig) -> Iterator[None]:
    """Set torch's threads to the whole CPUs of a stage, where the config says so."""
    before = torch.get_num_threads()
    if config.cpus_per_stage is not None:
        torch.set_num_threads(StageResources(cpus=config.cpus_per_stage, gpus=0).threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_for(prepared: PreparedRun, device: torch.device) -> Run:
    """Return the run resolved for one device: its precision and its kernels.

    Raises:
        UserError: kernels that the device does not have.
    """
    network, images = prepared.architecture, prepared.recipe.batch_size
    run = resolve_run(
        prepared,
        default_precision(device),
        device_class(device),
        lambda precision: autotune(network, images, device, DTYPES[precision]),
    )
    resolved = run.resolved
    if resolved.rule == "fast" and resolved.method == "ff":
        check_kernels(network, resolved.kernels, device, DTYPES[resolved.precision])
    return run


def local_plan(run: Run, device: torch.device) -> Plan:
    """Return the plan of a run in one process: the boundaries asked for, or one stage."""
    config, network, batch_size = run.config, run.architecture, run.recipe.batch_size
    count = config.stages or (1 if config.cuts is None else len(config.cuts) + 1)
    gpus = float(device.type == "cuda")
    cpus = config.cpus_per_stage or float(min(torch.get_num_threads(), os.cpu_count() or 1))
    return make_plan(
        config,
        network,
        StageResources(cpus=cpus, gpus=gpus),
        estimated_costs(network, batch_size, device.type, run.resolved.frozen),
        count,
        batch_size,
    )


def local_pipeline(
    run: Run, cuts: tuple[int, ...], device: torch.device, states: States | None
) -> LocalPipeline:
    """Return the stages of a run in this process, from the layers of a snapshot if any."""
    slices = run.architecture.stages(cuts)
    stages = []
    for part in slices:
        spec = StageSpec(architecture=part, is_last=part is slices[-1], config=run.resolved)
        data = run.splits if part is slices[0] else None
        stages.append(Stage(spec, device, make_learner(spec, device, states), data))
    return LocalPipeline(stages)
