"""The command `rayff bench to-accuracy`: Measure time, energy and memory to given accuracies.

By local losses and by backpropagation of the same network with a linear head, with the same data
in the same order, augmentation, batch size, precision and number of epochs. Local losses have
their recipes. Backpropagation is done in the best ordinary way (compiled, channels last, fused
AdamW, a cosine over all epochs to a hundredth), and its learning rate is chosen by short
trainings, which are reported: plain, with activation checkpointing by block, and with accumulation
of the gradients of four parts of each batch.

Each training runs in a process of its own; seeds come one after the other, and all methods of one
seed in a row. Validation accuracy decides that a target is reached, of the best window of layers
with local losses; the test accuracy of that moment is reported beside it. Evaluation, compilation
and the search are not counted in a training's seconds and joules.

Examples:
  rayff bench to-accuracy --targets 80,90 --epochs 2 --seeds 1
  rayff bench to-accuracy --task cifar10 --data-dir DIR --augment crop,flip --plot accuracy.png
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rayff.baselines.learner import EndToEndLearner
from rayff.bench.command import (
    BenchCommand,
    DeviceOptions,
    KernelOptions,
    benchmark,
    check_writable,
    train_config,
)
from rayff.bench.energy import Energy
from rayff.bench.methods import BACKPROPAGATION, learner_options, parse_methods, run_options
from rayff.bench.process import check_peaks, in_own_process, peak_bytes
from rayff.bench.results import Results
from rayff.config.errors import TrainingDiverged, UserError
from rayff.config.text import plural
from rayff.config.train_config import Precision, TrainConfig
from rayff.data.images import ImageSet, Split
from rayff.engine.commands import Batch, Evaluate, Train
from rayff.engine.learner import StageSpec, make_learner
from rayff.engine.local import resolve_for
from rayff.engine.pipeline import LocalPipeline
from rayff.engine.prediction import pick_device
from rayff.engine.preparation import assemble, prepare
from rayff.engine.stage import Stage
from rayff.kernels import native
from rayff.kernels.precision import DTYPES
from rayff.kernels.timing import clock
from rayff.learning.chain import Activations, normalise
from rayff.learning.generators import Share
from rayff.learning.readout import best_window


@dataclass(frozen=True, kw_only=True)
class ToAccuracyCommand(KernelOptions, DeviceOptions, BenchCommand):
    """The options."""

    arch: str = "tinycnn"
    """Network: {architectures}, or package.module:function."""
    width: int | None = None
    """Channels of the first layer. Default: the architecture's own."""
    task: str = "digits"
    """Data: {tasks}, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Folder that holds the task's data."""
    limit: int | None = None
    """Images of each split to use at most. Default: all."""
    methods: str = ",".join(("goodness", "linear", "linear_similarity", *BACKPROPAGATION))
    """Local losses ({losses}, or package.module:Class), backpropagation, checkpointing and
    accumulation, with commas between them."""
    targets: tuple[float, ...] = (50.0, 60.0, 70.0)
    """Validation accuracies to reach, in percent."""
    seeds: int = 3
    """Trainings of each method, with the seeds 0, 1, ..."""
    epochs: int = 10
    """Epochs of each training."""
    augment: str = "none"
    """Augmentation of the training images, as in training: none, {augmentations}."""
    batch_size: int | None = None
    """Images of a batch. Default: the task's own, else the paper's."""
    precision: Precision | None = None
    """Number format of convolutions and activations. Default: as in training."""
    checks: int = 2
    """How often an epoch the validation accuracy is taken."""
    lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    """Initial learning rates of backpropagation to choose from, on the validation images; one is
    used as it is."""
    search_epochs: int | None = None
    """Epochs of each training of the search. Default: a third of all."""
    compile: bool = True
    """Compile backpropagation where there is a compiler."""
    plot: str | None = None
    """PNG file to draw the validation accuracy by seconds into."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < target <= 100 for target in self.targets):
            raise UserError(
                f"--targets must be above 0 and at most 100, not {_listed(self.targets)}"
            )
        if not all(0 < lr < 1e3 for lr in self.lrs):
            raise UserError(f"--lrs must be above 0 and below 1000, not {_listed(self.lrs)}")
        if self.plot is not None:
            check_writable("plot", self.plot)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training."""

    method: str
    config: TrainConfig
    targets: tuple[float, ...]
    checks: int
    compiled: bool
    threads: int


def measure(command: ToAccuracyCommand, results: Results) -> None:
    """Fill in the tables and figures."""
    device = pick_device(command.device)
    check_peaks(device)
    methods = parse_methods(command.methods)
    run = resolve_for(prepare(_config(command, methods[0], 0), resume=False), device)
    for name in methods[1:]:  # mistakes are found before the first training
        assemble(_config(command, name, 0), run.data, run.directory)
    if not isinstance(run.data.train, ImageSet):
        raise UserError("the data does not fit into memory; use a smaller --limit")
    results.settings["precision"] = run.resolved.precision
    compiled = command.compile and (device.type == "cuda" or native.missing() is None)
    case = partial(_case, command, compiled)
    lr, search = command.lrs[0], []
    if set(methods) & BACKPROPAGATION.keys() and len(command.lrs) > 1:
        search = _search(command, case)
        lr = max(search, key=lambda row: row["valid_accuracy"] or 0.0)["lr"]
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for seed in range(command.seeds):
        for name in methods:
            outcomes[name].append(_train_apart(case(name, seed, lr), f"seed {seed}"))
    peaks = {
        name: in_own_process(name, step_peak, case(name, 0, lr), keep_freed=False)
        for name in methods
    }
    title = (
        f"{command.arch} on {Path(command.task).name}, {len(run.splits['train']):,} images, "
        f"augmentation {command.augment}, batch {run.recipe.batch_size}, "
        f"{plural(command.epochs, 'epoch')}, {run.resolved.precision}"
    )
    _tabulate(command, results, title, outcomes, peaks)
    _tabulate_search(command, results, search, lr)
    if (missing := Energy(device).missing) is not None:
        results.notes.append(f"no joules: {missing}")
    if command.plot is not None:
        from rayff.bench.accuracy_plot import draw

        histories = {
            name: [each["history"] for each in outcome] for name, outcome in outcomes.items()
        }
        Path(command.plot).parent.mkdir(parents=True, exist_ok=True)
        Path(command.plot).write_bytes(draw(histories, command.targets))


main = benchmark(ToAccuracyCommand, measure)


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _config(command: ToAccuracyCommand, method: str, seed: int, **options: Any) -> TrainConfig:
    return train_config(command, **{"seed": seed, **run_options(method), **options})


def _case(
    command: ToAccuracyCommand, compiled: bool, method: str, seed: int, lr: float, **options: Any
) -> Case:
    if method in BACKPROPAGATION:
        options |= {"lr": lr, "lr_min": lr / 100, "optimizer": "adamw"}
    return Case(
        method=method,
        config=_config(command, method, seed, **options),
        targets=command.targets,
        checks=command.checks,
        compiled=compiled and method in BACKPROPAGATION,
        threads=torch.get_num_threads(),
    )


def _train_apart(case: Case, what: str) -> dict[str, Any]:
    """Train in a process of its own, and say so."""
    print(f"{case.method}, {what}: ", end="", flush=True)
    outcome = in_own_process(case.method, train, case)
    last = outcome["valid_accuracy"]
    reached = "diverged" if last is None else f"{last:.2f}% validation accuracy"
    print(f"{reached} after {outcome['seconds']:.1f} s of training", flush=True)
    return outcome


def _search(command: ToAccuracyCommand, case: Callable[..., Case]) -> list[dict[str, Any]]:
    """Train by plain backpropagation for a short time with each learning rate."""
    epochs = command.search_epochs or -(-command.epochs // 3)
    rows = []
    for lr in command.lrs:
        short = case("backpropagation", 0, lr, epochs=epochs)
        outcome = _train_apart(short, f"{plural(epochs, 'epoch')} with the learning rate {lr:g}")
        rows.append({"lr": lr, "epochs": epochs, **outcome})
    return rows


def _tabulate(
    command: ToAccuracyCommand,
    results: Results,
    title: str,
    outcomes: Mapping[str, Sequence[Mapping[str, Any]]],
    peaks: Mapping[str, float],
) -> None:
    """Add a table of the methods, and one of the targets."""
    columns = "images_per_s seconds joules valid_accuracy test_accuracy"
    rows = [
        {
            "method": name,
            **{each: [outcome[each] for outcome in trained] for each in columns.split()},
            "peak_bytes": peaks[name],
        }
        for name, trained in outcomes.items()
    ]
    results.table(title, rows, f"method {columns} peak_bytes")
    reached = [
        {"target": f"{target:g}%", "method": name, **_reached(trained, target)}
        for target in command.targets
        for name, trained in outcomes.items()
    ]
    results.table(
        "until the validation accuracy is reached", reached, f"target method {' '.join(_REACHED)}"
    )
    results.figures = {"methods": rows, "targets": reached, "trainings": dict(outcomes)}
    results.notes.append(
        f"median (least to most) of {plural(command.seeds, 'seed')}; a dash where one did not get "
        "there; accuracies of the first table after all epochs; peak: weights, optimizer, "
        "gradients and activations of a training step"
    )


_REACHED = ("seconds", "joules", "images", "test_accuracy")


def _reached(trained: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """Return what each seed needed for a target; None where one of them did not get there."""
    found = [outcome["reached"].get(target) for outcome in trained]
    if None in found:
        return dict.fromkeys(_REACHED)
    return {name: [each[name] for each in found] for name in _REACHED}


def _tabulate_search(
    command: ToAccuracyCommand, results: Results, search: Sequence[dict[str, Any]], lr: float
) -> None:
    if not search:
        return
    after = plural(search[0]["epochs"], "epoch")
    results.table(
        f"learning rate of backpropagation: {lr:g}, the best after {after}",
        search,
        "lr valid_accuracy seconds joules",
    )
    results.figures["search"] = search
    spent = sum(row["seconds"] for row in search)
    results.notes.append(f"the search took {spent:.1f} s of training, which no row above counts")


class Training:
    """A network that learns in this process.

    Args:
        case: what is trained.
    """

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(case.threads)
        self.device = pick_device(case.config.device)
        torch.manual_seed(case.config.seed)  # of torch's own dropout
        self.case = case
        self.run = run = resolve_for(prepare(case.config, resume=False), self.device)
        spec = StageSpec(architecture=run.architecture, is_last=True, config=run.resolved)
        options = learner_options(case.method, compiled=case.compiled)
        self.learner = make_learner(spec, self.device, **options)
        self.pipeline = LocalPipeline([Stage(spec, self.device, self.learner, run.splits)])
        first_epoch = takewhile(lambda c: c.epoch == 0, run.schedule(chunk=1).commands())
        self.evaluations = [
            dataclasses.replace(c, logits=()) for c in first_epoch if isinstance(c, Evaluate)
        ]
        if isinstance(self.learner, EndToEndLearner):
            self._compile(self.learner)

    def _compile(self, learner: EndToEndLearner) -> None:
        """Compile for the batches and the last, smaller one, without a change of the weights."""
        train, size = self.run.data.train, self.run.recipe.batch_size
        assert isinstance(train, ImageSet), "the command has checked it"
        for images in {size, len(train) % size or size}:
            pixels = torch.tensor(train.images[:images], device=self.device)
            labels = torch.tensor(train.labels[:images], device=self.device)
            features = normalise(pixels, DTYPES[self.run.resolved.precision])
            batch = Batch(activations=Activations(features=features), labels=labels)
            learner.find_gradients(batch, Share(step=0, batch_size=images))
            learner.network.zero_grad()

    def learn(self, chunk: Train) -> None:
        """Train on the batches of a chunk."""
        list(self.pipeline.stream([chunk]))

    def hits(self, split: Split) -> Any:
        """Return the images that each window of layers classifies correctly."""
        commands = [each for each in self.evaluations if each.split == split]
        found: list[Any] = [reports[-1].hits for _, reports in self.pipeline.stream(commands)]
        return np.sum(found, axis=0)

    def accuracy(self, split: Split, window: tuple[int, int]) -> float:
        """Return the accuracy of a window of layers in percent."""
        return float(100 * self.hits(split)[window] / len(self.run.splits[split]))


def train(case: Case) -> dict[str, Any]:
    """Train for all epochs; return the figures."""
    training = Training(case)
    run, device, energy = training.run, training.device, Energy(training.device)
    per_check = -(-run.schedule(chunk=1).batches_per_epoch // case.checks)
    images, seconds, joules = 0, 0.0, None if energy.missing else 0.0
    history: list[dict[str, Any]] = []
    reached: dict[float, dict[str, Any]] = {}
    speeds: list[float] = []
    with suppress(TrainingDiverged):
        for chunk in run.schedule(per_check).commands():
            if not isinstance(chunk, Train):
                continue
            count, start = energy.read(), clock(device)
            training.learn(chunk)
            took_s, used = clock(device) - start, energy.since(count)
            some = sum(map(len, chunk.batches))
            images, seconds = images + some, seconds + took_s
            joules = None if joules is None or used is None else joules + used
            speeds.append(some / took_s)
            hits = training.hits("valid")
            window = best_window(hits)
            accuracy = float(100 * hits[window] / len(run.splits["valid"]))
            state = {"images": images, "seconds": seconds, "joules": joules}
            history.append({**state, "valid_accuracy": accuracy})
            for target in case.targets:
                if accuracy >= target and target not in reached:
                    reached[target] = {**state, "test_accuracy": training.accuracy("test", window)}
    ended = images == run.recipe.epochs * len(run.splits["train"])
    return {
        "seed": run.resolved.seed,
        "images_per_s": median(speeds) if speeds else None,
        "seconds": seconds,
        "joules": joules,
        "valid_accuracy": history[-1]["valid_accuracy"] if ended else None,
        "test_accuracy": training.accuracy("test", window) if ended else None,
        "reached": reached,
        "history": history,
    }


def step_peak(case: Case) -> float:
    """Return the bytes of weights, optimizer, and a step's gradients and activations."""
    training = Training(case)
    batch = next(c for c in training.run.schedule(chunk=1).commands() if isinstance(c, Train))
    training.learn(batch)
    if training.device.type == "cuda":  # a recorded step allocates nothing when it is replayed
        return float(torch.cuda.max_memory_allocated(training.device))
    peak = peak_bytes(partial(training.learn, batch), training.device)
    states = training.learner.states().values()
    return peak + sum(each.nbytes for state in states for each in state.values())
