"""The options of one training as the user gives them: None means that rayff decides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rayff.config.errors import UserError
from rayff.config.option_names import nearest_option
from rayff.config.recipe import LrSchedule, Method
from rayff.config.validation import validate

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
RuleName = Literal["fast", "plain"]
Transport = Literal["object-store", "auto", "cuda-ipc", "nccl", "nixl", "gloo"]
ClassWeights = Literal["none", "balanced"]
Placement = Literal["pack", "spread", "strict_spread"]
Resize = Literal["crop", "stretch", "pad"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of a training run, checked as a whole when it is made.

    Raises:
        UserError: an option is wrong, or contradicts another one.
    """

    arch: str = "tinycnn"
    """Network: {architectures}, or package.module:function."""
    method: Method = "ff"
    """How the network learns: ff, Forward-Forward; bp, backpropagation from a linear head; or
    bp-deepsup, backpropagation from a linear head on every layer (deep supervision)."""
    loss: str = "goodness"
    """Local loss of every layer: {losses}, or package.module:Class."""
    head_dim: int | None = None
    """Inputs of each layer's linear head at most: the map is pooled to as many cells as fit.
    Default: 2048."""
    similarity_weight: float | None = None
    """Share of the similarity term in the loss, 0 to 1. Default: 0.9 for linear_similarity, 0.99
    for predsim."""
    temperature: float | None = None
    """Initial temperature of channel_matrix's softmax over the classes. Default: 1."""
    label_smoothing: float = 0.0
    """Probability that the targets of the cross entropy spread over all classes."""
    class_weights: ClassWeights = "none"
    """Weight of each class in the cross entropy: none, or balanced, inversely proportional to its
    training images."""
    width: int | None = None
    """Channels of the first layer; the others scale with it. Default: the architecture's own."""
    task: str = "digits"
    """Data: {tasks}, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Folder or URI that holds a named task's files (DIR/TASK/), or torchvision's own files."""
    download: bool = False
    """Fetch the task with torchvision where it is not in the data folder."""
    limit: int | None = None
    """Images of each split to use at most, each class in proportion, to try things out. Default:
    all."""
    image_size: int | None = None
    """Pixels a side that the images are brought to. Default: the architecture's own."""
    resize: Resize = "crop"
    """What becomes of images that are not square: the middle of them (crop), all of them out of
    proportion (stretch), or all of them with black bars (pad)."""
    image_channels: int | None = None
    """1 to train on grey images, 3 on colour. Default: the task's own; of a folder 1 if all its
    images are grey."""
    stream: bool = False
    """Read and decode the images while they are trained on, instead of keeping all of them in
    memory. Without it, where they would take more than half of the free memory."""
    image_column: str | None = None
    """Column that holds the images, in tables. Default: the one that fits."""
    label_column: str | None = None
    """Column that holds the classes, in tables. Default: the one that fits."""

    augment: str = "none"
    """Augmentation of training images: none, or with commas between them {augmentations}, with a
    strength in pixels if need be (crop:4,flip,cutout:8), or package.module:function."""

    epochs: int | None = None
    """Passes over the training images. Default: the task's own, else 150, for predsim 400."""
    batch_size: int | None = None
    """Images of one local update. Default: the task's own, else the paper's 128."""
    lr: float | None = None
    """Highest learning rate, after the warm-up. Default: for goodness and squared_goodness the
    task's own, else the paper's 0.08; for linear, linear_similarity and losses by import path
    0.002, on tinycnn 0.003; for channel_matrix 0.01; for predsim 0.0005; for bp 0.001."""
    lr_schedule: LrSchedule | None = None
    """How the learning rate falls: by a cosine to --lr-min that is stepped once an epoch, never
    (constant), or at --lr-steps (step). Default: cosine, for predsim step."""
    lr_min: float | None = None
    """Where the cosine of the learning rate ends. Default: for goodness and squared_goodness the
    task's own, else 0.008; for other losses 0.00001, for bp 0.0001; but never above --lr."""
    lr_steps: tuple[float, ...] | None = None
    """Shares of the epochs, such as 0.5,0.75, at each of which the schedule step multiplies the
    learning rate by --lr-decay. Default: 0.5,0.75,0.89,0.94."""
    lr_decay: float | None = None
    """Factor of the schedule step. Default: 0.25."""
    warmup_epochs: int | None = None
    """Epochs at the beginning in which the learning rate grows from 0 to the schedule's, a little
    each batch. Default: 0."""
    lr_scale: float | None = None
    """Learning rate of the last layer as a multiple of the first layer's; those between them are
    spaced geometrically. Default: 1, the same for all."""
    weight_decay: float | None = None
    """Weight decay. Default: for goodness, squared_goodness and bp 5e-4, on tinycnn 0.01, on vgg
    0; for other losses 0."""
    dropout: float | None = None
    """Share of activations set to zero, in steps of 1/256; of layers that are modules, share of
    the channels that they hand on. Default: the paper's 0.2."""
    clip_norm: float | None = None
    """Largest norm of the gradient of a layer and its loss, for bp of the whole network; a longer
    one is scaled down. Default: any."""
    optimizer: str | None = None
    """Optimizer of every layer: {optimizers}, or package.module:Class, a subclass of
    torch.optim.Optimizer. Default: adamw; adam for predsim, and on vgg for goodness,
    squared_goodness and bp."""
    init_from: str | None = None
    """Run whose trained layers the new run begins with, where their shapes fit; the best model of
    a run with --keep-best is in RUN/best."""
    freeze: str | None = None
    """Layers that only run forward, such as 0-4 or 0,2-3; none for none of them. Default: none."""
    seed: int = 0
    """Seed of weights, dropout and batch order; the same seed gives the same bits."""
    precision: Precision | None = None
    """Number format of convolutions and activations; weights and losses stay float32. Default:
    bf16 where the processor or GPU has units for it, else fp32."""
    rule: RuleName | None = None
    """How a layer finds its gradient: fast, in closed form, or plain, by autograd; the
    results are the same up to rounding. Default: plain for layers that are modules and for losses
    that see the map, as predsim does, else fast."""
    kernels: str | None = None
    """How each layer's convolution is computed with the fast rule, FORWARD/GRADIENT, each one
    of {kernels}, such as conv/unfold,winograd,...; one entry counts for all layers.
    Default: by a table for this kind of machine, so that runs repeat bit for bit."""
    autotune: bool = False
    """Choose the kernels by a short timing on this machine instead of the table, and write the
    choice into the run."""

    stages: int | None = None
    """Number of stages the layers are cut into; with --replicas auto the number of actors in all.
    Default: one a GPU; without GPUs, two; with --placement strict_spread one a node at most."""
    elastic: str | None = None
    """Fewest and most stages, such as 2:4: as many as the cluster holds, now and at each later
    snapshot. Default: the number of stages at the start, and fewer when nodes are lost; a run with
    --cuts or --replicas keeps its stages."""
    cuts: tuple[int, ...] | None = None
    """Boundaries between stages: numbers of the layers that begin one, such as 5,9,13. Default: by
    a short timing of the layers."""
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
    """Move the boundaries at a snapshot when the stages' times have drifted from the plan."""
    transport: Transport = "object-store"
    """How activations travel: Ray's object store, or directly between the actors (cuda-ipc on one
    GPU, nccl or nixl between GPUs, gloo between CPUs). With auto each boundary between GPUs has
    its direct way."""
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
    eval_every: int = 1
    """Epochs from one evaluation, with its line of metrics, to the next; the last epoch always has
    one. It changes no bits."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next; the last epoch always has one."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, the newest ones."""
    keep_best: bool = False
    """Keep the model of the checkpoint with the best validation accuracy, in the folder best of
    the run directory."""
    patience: int | None = None
    """Epochs without a better validation accuracy after which the run ends, at the next
    checkpoint. Default: train all epochs."""
    storage_path: str | None = None
    """Folder, shared mount or URI (s3://bucket/folder) where a copy of the run directory is kept
    up to date; a run whose own directory is lost or older resumes from it."""
    max_failures: int = 3
    """Stages or nodes that may be lost before the run gives up; -1 for any number."""
    tags: str | None = None
    """Names that rayff runs lists the run with and finds it by, with commas between them."""
    notes: str | None = None
    """What the run is for, in words; rayff runs --json has it."""
    logger: str = "tensorboard"
    """Where the metrics of each epoch go besides the run directory's own files: {loggers}, with
    commas between them, or none."""
    log_every: int | None = None
    """Batches from one logging of loss, learning rate and images/s to the next within an epoch, to
    the same loggers; it happens at the end of a chunk. Default: each epoch alone."""

    def __post_init__(self) -> None:
        validate(self)

    @property
    def loggers(self) -> tuple[str, ...]:
        """Where the metrics go, each once."""
        names = (name.strip() for name in self.logger.split(","))
        return () if self.logger == "none" else tuple(dict.fromkeys(names))

    @property
    def tag_names(self) -> tuple[str, ...]:
        """The tags, each once."""
        names = (name.strip() for name in (self.tags or "").split(","))
        return tuple(dict.fromkeys(filter(None, names)))

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
    def frozen(self) -> tuple[int, ...]:
        """Numbers of the layers that only run forward, ascending."""
        found: set[int] = set()
        for part in () if self.freeze in (None, "none") else str(self.freeze).split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
        return tuple(sorted(found))

    @property
    def apart(self) -> bool:
        """Whether each actor is to have a node of its own."""
        return self.placement == "strict_spread"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-serialisable data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)}

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
                    f"{source}: unknown option {key!r}{nearest_option(name, known)}; "
                    f"known are {', '.join(known)}"
                )
            values[name] = _typed(name, value, str(known[name].type), source)
        return cls(**values)


def _typed(name: str, value: Any, annotation: str, source: str) -> Any:
    """Return `value` with the type of the field's annotation; JSON has lists for tuples."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "float": (int, float),
        "bool": bool,
        "str": str,
        "tuple[int, ...]": (list, tuple),
        "tuple[float, ...]": (list, tuple),
    }
    if value is None and "None" in annotation:
        return None
    base = annotation.removesuffix(" | None")
    kind = kinds.get(base, str)
    wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    if isinstance(value, (list, tuple)):
        item_kind = (int, float) if base == "tuple[float, ...]" else int
        wrong |= not all(
            isinstance(item, item_kind) and not isinstance(item, bool) for item in value
        )
    if wrong:
        raise UserError(f"{source}: {name} must be of type {base}, not {value!r}")
    return tuple(value) if isinstance(value, list) else value
