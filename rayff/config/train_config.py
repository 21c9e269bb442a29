"""What one training is: data, network, recipe, pipeline and place, checked as a whole."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rayff.config.errors import UserError, nearest
from rayff.config.kernels import parse_kernels
from rayff.config.recipe import BACKPROPAGATION, Method, OptimizerName, Recipe, recipe
from rayff.config.text import is_path, is_plain

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
RuleName = Literal["fast", "plain"]
Transport = Literal["object-store", "nccl", "gloo", "nixl"]
Placement = Literal["pack", "spread", "strict_spread"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run."""

    arch: str = "tinycnn"
    """Network: resnet, vgg, tinycnn, resnet20, resnet34, resnet101, resnet_large or plain17."""
    method: Method = "ff"
    """How the network learns: ff, Forward-Forward; bp, backpropagation from a linear head; or
    bp-deepsup, backpropagation from a linear head on every layer (deep supervision)."""
    width: int | None = None
    """Channels of the first layer; the others scale with it. Default: the architecture's own."""
    task: str = "digits"
    """Data: digits (embedded), mnist, fmnist, cifar10, cifar100, or a folder of image Parquet."""
    data_dir: str | None = None
    """Folder that holds the task's Parquet (DIR/TASK/) or torchvision's own files."""
    download: bool = False
    """Fetch the task with torchvision where it is not in the data folder."""
    limit: int | None = None
    """Images of each split to use at most, to try things out. Default: all."""

    epochs: int | None = None
    """Passes over the training images. Default: the task's own, else the paper's 150."""
    batch_size: int | None = None
    """Images of one local update. Default: the task's own, else the paper's 128."""
    lr: float | None = None
    """Learning rate of the first epoch. Default: the task's own, else the paper's 0.08; for bp
    0.001."""
    lr_min: float | None = None
    """Where the cosine of the learning rate ends. Default: the task's own, else 0.008; for bp
    0.0001."""
    weight_decay: float | None = None
    """Weight decay. Default: 5e-4, for tinycnn 0.01, for vgg 0."""
    dropout: float | None = None
    """Share of activations set to zero, in steps of 1/256. Default: the paper's 0.2."""
    optimizer: OptimizerName | None = None
    """Optimizer of every layer. Default: adamw, for vgg adam."""
    seed: int = 0
    """Seed of weights, dropout and batch order; the same seed gives the same bits."""
    precision: Precision | None = None
    """Number format of convolutions and features; weights and losses stay float32. Default: bf16
    where the processor or GPU has units for it, else fp32."""
    rule: RuleName = "fast"
    """How a layer finds its gradient: in closed form, or plainly by autograd; the results are the
    same up to rounding."""
    kernels: str | None = None
    """How each layer's convolution is computed with the fast rule, FORWARD/GRADIENT, each conv,
    unfold, winograd or amx, such as conv/unfold,winograd,...; one entry counts for all layers.
    Default: the fastest, by a short timing."""

    stages: int | None = None
    """Number of stages the layers are cut into; with --replicas auto the number of actors in all.
    Default: one a GPU; without GPUs, two; with --placement strict_spread one a node at most."""
    elastic: str | None = None
    """Fewest and most stages, such as 2:4: as many as the cluster holds, now and at each later
    snapshot. Default: the number of stages at the start, and fewer when nodes are lost; a run with
    --cuts or --replicas keeps its stages."""
    cuts: tuple[int, ...] | None = None
    """Where to cut, as numbers of the layers that begin a stage, such as 5,9,13. Default: by a
    short timing of the layers."""
    replicas: str | None = None
    """Actors of each stage, such as 1,2,1, which split each batch and add up their gradients; auto
    groups the actors into stages and replicas by a short timing. They change nothing but the
    rounding of sums. Default: one a stage."""
    workers: int | None = None
    """Workers of backpropagation, which split each batch and add up their gradients (DDP).
    Default: one a GPU; without GPUs, one."""
    chunk: int | None = None
    """Batches in one message; it changes no result. Default: about a third of a second."""
    window: int | None = None
    """Chunks in flight at most, fewer where the object store is small. Default: two more than
    there are stages."""
    rebalance: bool = False
    """Move the cuts at a snapshot when the stages' measured times have drifted from the plan."""
    transport: Transport = "object-store"
    """How activations travel: Ray's object store, or directly between the actors (nccl or nixl
    for GPUs, gloo for CPUs)."""
    placement: Placement = "pack"
    """Where the actors go: on as few nodes as hold them (pack), on as many as there are (spread),
    or each on a node of its own (strict_spread), so that a node that is lost takes one with it."""
    device: Device = "auto"
    """Where the layers compute; auto takes GPUs where the cluster has them."""
    cpus_per_stage: float | None = None
    """CPUs (and torch threads) of a stage or worker. Default: the cluster's, shared evenly."""
    gpus_per_stage: float | None = None
    """GPUs of a stage or worker, or a fraction of one. Default: 1, or less where stages outnumber
    GPUs."""

    run_dir: str | None = None
    """Where the run leaves everything. Default: runs/ARCH-TASK-DATE-TIME."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next; the last epoch always has one."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, the newest ones."""
    storage_path: str | None = None
    """Folder, shared mount or URI (s3://bucket/folder) where a copy of the run directory is kept
    up to date; a run whose own directory is lost or older resumes from it."""
    max_failures: int = 3
    """Stages or nodes that may be lost before the run gives up; -1 for any number."""
    logger: str = "tensorboard"
    """Who gets the metrics of each epoch beside the run directory's own files: tensorboard (its
    events in the run directory), mlflow, wandb, with commas between them, or none."""

    def __post_init__(self) -> None:
        for name in ("width", "limit", "epochs", "batch_size", "stages", "workers"):
            _check(name, getattr(self, name), at_least=1)
        for name in ("chunk", "window"):
            _check(name, getattr(self, name), at_least=1)
        _check("checkpoint_every", self.checkpoint_every, at_least=1)
        _check("keep_checkpoints", self.keep_checkpoints, at_least=1)
        _check("seed", self.seed, at_least=0)
        _check("max_failures", self.max_failures, at_least=-1)
        for name in ("lr", "lr_min", "weight_decay", "cpus_per_stage", "gpus_per_stage"):
            _check(name, getattr(self, name), at_least=0)
        self._check_resources()
        for name in ("task", "data_dir", "run_dir", "storage_path"):
            value = getattr(self, name)
            if value is not None and not is_path(value):
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}: no file or folder can be called {value!a}; mend it")
        for name in ("run_dir", "storage_path"):
            if getattr(self, name) == "":
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} '' names no folder: name one, or leave the option out")
        if self.dropout is not None and not 0 <= self.dropout <= 255 / 256:
            raise UserError(f"--dropout must be from 0 to 255/256 (0.996), not {self.dropout}")
        if self.replicas not in (None, "auto") and not _REPLICAS.fullmatch(str(self.replicas)):
            raise UserError(
                f"--replicas {_told(self.replicas)}: give the number of actors of each stage, "
                "such as 1,2,1, or auto"
            )
        if self.elastic is not None:
            self._check_elastic()
        if self.kernels is not None:
            if self.rule == "plain":
                raise UserError(
                    f"--kernels {self.kernels} is for the fast rule: the plain one has torch's "
                    "convolution alone; leave out --kernels or --rule plain"
                )
            methods = {m for each in parse_kernels(self.kernels) for m in each.methods}
            if self.precision == "fp32" and "amx" in methods:
                raise UserError(
                    f"--kernels {self.kernels}: amx multiplies bfloat16 only: use --precision "
                    "bf16, or other kernels"
                )
        self._check_logger()
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in (None, *known):
                raise UserError(
                    f"--{name}: unknown {value!r}{nearest(str(value), known)}; "
                    f"known are {', '.join(known)}"
                )

    def _check_resources(self) -> None:
        """Raise a UserError for an amount that Ray does not give."""
        cpus, gpus = self.cpus_per_stage, self.gpus_per_stage
        if cpus is not None and not (cpus > 0 and _in_steps(cpus)):
            raise UserError(
                f"--cpus-per-stage must be more than 0, in steps of 1/10,000, not {cpus}"
            )
        if gpus is not None and not (_in_steps(gpus) if gpus < 1 else gpus % 1 == 0):
            raise UserError(
                "--gpus-per-stage must be a whole number, or a fraction below 1 in steps of "
                f"1/10,000, not {gpus}"
            )

    def _check_elastic(self) -> None:
        low, high = self.elastic_range or (0, 0)
        flag = f"--elastic {_told(self.elastic)}"
        if not 1 <= low <= high:
            raise UserError(f"{flag}: give the fewest and the most stages, such as 2:4")
        for name in ("stages", "cuts", "replicas"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"{flag} finds the number of stages and the cuts by itself; leave --{name} out"
                )

    def _check_logger(self) -> None:
        for name in self.loggers:
            if name not in LOGGERS:
                raise UserError(
                    f"--logger {self.logger}: unknown {name!r}{nearest(name, LOGGERS)}; known are "
                    f"{', '.join(LOGGERS)}, with commas between them, or none"
                )

    @property
    def loggers(self) -> tuple[str, ...]:
        """Who gets the metrics, each once."""
        names = (name.strip() for name in self.logger.split(","))
        return () if self.logger == "none" else tuple(dict.fromkeys(names))

    @property
    def elastic_range(self) -> tuple[int, int] | None:
        """Fewest and most stages, where the run says so."""
        found = re.fullmatch("([0-9]{1,6}):([0-9]{1,6})", self.elastic or "")
        return (int(found[1]), int(found[2])) if found else None

    @property
    def replica_counts(self) -> tuple[int, ...] | None:
        """Actors of each stage, where the run says so in numbers."""
        if self.replicas in (None, "auto"):
            return None
        return tuple(int(count) for count in str(self.replicas).split(","))

    @property
    def apart(self) -> bool:
        """Whether each actor is to have a node of its own."""
        return self.placement == "strict_spread"

    def recipe(self, task_recipe: Mapping[str, Any]) -> Recipe:
        """Return the paper's recipe for the architecture, the task's own values over it, and
        what method and run say over both."""
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Recipe)
            if getattr(self, field.name) is not None
        }
        method = {} if self.method == "ff" else BACKPROPAGATION
        return recipe(self.arch, {**task_recipe, **method, **own})

    def resolved(self, task_recipe: Mapping[str, Any]) -> TrainConfig:
        """Return this run with every value of its recipe written out."""
        return dataclasses.replace(self, **dataclasses.asdict(self.recipe(task_recipe)))

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON can hold it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)}

    def overridden(self, asked: TrainConfig) -> TrainConfig:
        """Return `asked`, made from this run with some options changed, without contradiction.

        Of stages, cuts, replicas and elastic those that changed take the place of those that did
        not; but a number of actors and `auto`, which groups them, go together. Another method
        begins with its own learning rates and without what only the one before it has.
        """
        if asked.method != self.method:
            names = {*OF_PIPELINES, "workers", *BACKPROPAGATION}
            same = {name for name in names if getattr(asked, name) == getattr(self, name)}
            asked = dataclasses.replace(
                asked, **{name: getattr(TrainConfig, name) for name in same}
            )
        plan = {"stages", "cuts", "replicas", "elastic"}
        changed = {name for name in plan if getattr(asked, name) != getattr(self, name)}
        dropped = plan - changed if changed else set()
        if asked.replicas == "auto" and "cuts" not in changed:
            dropped &= {"cuts"}
        nothing: dict[str, Any] = dict.fromkeys(dropped)
        return dataclasses.replace(asked, **nothing)

    def check_resumes(self, asked: TrainConfig) -> None:
        """Raise a UserError where `asked` would go on with this run as a different one."""
        for name in (*_FIXED, *_FOUND):
            was, wanted = getattr(self, name), getattr(asked, name)
            if name == "kernels" and was and wanted:  # one entry may stand for all layers
                named = parse_kernels(was)
                was, wanted = named, parse_kernels(wanted, len(named))
            if was != wanted and not (wanted is None and name in _FOUND):
                asks, has = getattr(asked, name), getattr(self, name)
                raise UserError(
                    f"--{name.replace('_', '-')} {asks}: the run was made with {has}, and a "
                    "resumed run keeps it; leave the option out, or start a new --run-dir"
                )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "the configuration") -> TrainConfig:
        """Read a run from JSON data; UserError names unknown keys and wrong types."""
        if not isinstance(data, Mapping):
            raise UserError(f"{source} must be a JSON object with the options of a run")
        known = {field.name: field for field in dataclasses.fields(TrainConfig)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise UserError(
                    f"{source}: unknown option {key!r}{nearest(name, known)}; "
                    f"known are {', '.join(known)}"
                )
            values[name] = _typed(name, value, str(known[name].type), source)
        return cls(**values)


_FOUND = ("precision", "kernels")
"""What a run that does not say it finds out for itself, and then keeps."""

_FIXED = ("arch", "method", "width", "task", "limit", "seed", "rule") + tuple(
    field.name for field in dataclasses.fields(Recipe)
)
"""What decides the bits of a run, and so stays when it is resumed."""

OF_PIPELINES = (
    "stages",
    "elastic",
    "cuts",
    "replicas",
    "rebalance",
    "transport",
    "rule",
    "kernels",
)
"""What a run by backpropagation has no use for."""

LOGGERS = ("tensorboard", "mlflow", "wandb")
"""Who can get the metrics of a run."""

_TOO_LARGE = 2**128
"""More than a seed can use, and less than a float can hold."""

_REPLICAS = re.compile("[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*")

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("ff", "bp", "bp-deepsup"),
    "optimizer": ("adamw", "adam", "sgd"),
    "precision": ("fp32", "bf16"),
    "rule": ("fast", "plain"),
    "device": ("auto", "cpu", "cuda"),
    "transport": ("object-store", "nccl", "gloo", "nixl"),
    "placement": ("pack", "spread", "strict_spread"),
}


def _check(name: str, value: float | None, *, at_least: int) -> None:
    if value is None or at_least <= value < _TOO_LARGE:
        return
    flag = name.replace("_", "-")
    if _TOO_LARGE <= value < math.inf:  # it may have more digits than can be shown
        raise UserError(f"--{flag} must be a number below 2**128: choose a smaller one")
    raise UserError(f"--{flag} must be a number of {at_least} or more, not {value}")


def _in_steps(amount: float) -> bool:
    """Return whether Ray, which counts in steps of 1/10,000, can give just that amount."""
    return math.isclose(round(amount, 4), amount)


def _told(text: str | None) -> str:
    """Return what the user wrote, on one line."""
    return str(text) if is_plain(str(text)) else ascii(text)


def as_flag(value: Any) -> str:
    """Return a value as a command line has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _typed(name: str, value: Any, annotation: str, source: str) -> Any:
    """Return `value` as the field's annotation wants it; JSON has lists where we have tuples."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "float": (int, float),
        "bool": bool,
        "str": str,
        "tuple[int, ...]": (list, tuple),
    }
    if value is None and "None" in annotation:
        return None
    base = annotation.removesuffix(" | None")
    kind = kinds.get(base, str)
    wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    if isinstance(value, (list, tuple)):
        wrong |= not all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if wrong:
        raise UserError(f"{source}: {name} must be of type {annotation}, not {value!r}")
    return tuple(value) if isinstance(value, list) else value
