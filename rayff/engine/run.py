"""A run before and after its devices are known: options, data, network and directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayff.config.kernels import Kernels
from rayff.config.local_loss import loss_config
from rayff.config.recipe import Recipe
from rayff.config.resolved import ResolvedConfig, resolve, written_out
from rayff.config.train_config import Precision, TrainConfig
from rayff.data.order import sample
from rayff.data.streaming import StreamedSet
from rayff.data.tasks import Splits, TaskData
from rayff.engine.schedule import Schedule
from rayff.learning.fusion import can_fuse
from rayff.learning.methods import num_classifiers
from rayff.learning.readout import Readouts, sample_size
from rayff.models.architecture import Architecture
from rayff.runs.checkpoint import Checkpoint, CheckpointStore, Progress
from rayff.runs.metrics import METRICS_FILE, EpochRecord, out_of_patience, read_metrics
from rayff.runs.model_file import ModelDescription, write_model
from rayff.runs.run_directory import RunDirectory
from rayff.runs.storage import Storage


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run whose data, network and directory were checked; its devices are not known yet."""

    config: TrainConfig
    """The user's, with the recipe written out."""
    recipe: Recipe
    data: TaskData
    architecture: Architecture
    directory: RunDirectory
    checkpoint: Checkpoint | None
    """Where the run begins: in the middle, or with the layers of another one; None where all
    layers are new."""
    notes: tuple[str, ...] = ()
    """What is to be said of where it begins."""

    def resolve(self, precision: Precision, kernels: tuple[Kernels, ...]) -> Run:
        """Return the run with nothing left open."""
        resolved = resolve(
            self.config,
            self.recipe,
            precision,
            kernels,
            self.class_weights,
            of_modules=self.architecture.source is not None,
        )
        fields = {name: getattr(self, name) for name in PreparedRun.__dataclass_fields__}
        fields["config"] = written_out(self.config, resolved)
        return Run(**fields, resolved=resolved)

    @property
    def num_classifiers(self) -> int:
        """Layers of the network that give logits."""
        return num_classifiers(self.config.method, self.architecture)

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weight of each class in the cross entropy; None for equal weights.

        Balanced, the mean weight of the training images is 1. A class without any has weight 1.
        """
        if self.config.class_weights == "none":
            return None
        labels = self.splits["train"].labels
        counts = np.bincount(labels, minlength=self.data.num_classes)
        weights = len(labels) / ((counts > 0).sum() * np.maximum(counts, 1))
        return tuple(np.where(counts > 0, weights, 1.0).tolist())

    @property
    def progress(self) -> Progress:
        """Where training begins."""
        return Progress() if self.checkpoint is None else self.checkpoint.progress

    @property
    def splits(self) -> Splits:
        """The images of each split."""
        return self.data.splits

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints of the run."""
        return CheckpointStore(
            self.directory.checkpoints,
            self.architecture,
            seed=self.config.seed,
            keep=self.config.keep_checkpoints,
            num_losses=self.num_classifiers,
            data=self.data.fingerprint,
        )

    @property
    def storage(self) -> Storage | None:
        """Where a copy of the run directory is kept; None for nowhere."""
        path = self.config.storage_path
        return Storage(self.directory.path, path) if path else None

    def schedule(self, chunk: int) -> Schedule:
        """Return the order of the run's commands, `chunk` batches in each."""
        train = self.data.train
        size = sample_size(self.num_classifiers, self.data.num_classes)
        return Schedule(
            recipe=self.recipe,
            seed=self.config.seed,
            num_images={split: len(images) for split, images in self.splits.items()},
            chunk=chunk,
            checkpoint_every=self.config.checkpoint_every,
            eval_every=self.config.eval_every,
            stream=train.order if isinstance(train, StreamedSet) else None,
            sampled=sample(self.splits["valid"].labels, size),
            fusion=can_fuse(self.num_classifiers, self.data.num_classes),
        )

    def complete_records(self) -> list[EpochRecord]:
        """Return the records of a run that is complete, else none."""
        done, metrics = self.progress.epoch, self.directory.path / METRICS_FILE
        if self.config.precision is None or self.progress.batch or not metrics.exists():
            return []
        records = read_metrics(metrics)
        ended = done == self.recipe.epochs or out_of_patience(records, self.config.patience)
        evaluated = {*range(self.config.eval_every, done, self.config.eval_every), done}
        whole = evaluated <= {record.epoch for record in records}
        return records if ended and whole else []

    def write_model(
        self, snapshot: Checkpoint, readouts: Readouts, precision: str, folder: Path | None = None
    ) -> None:
        """Write the network of a snapshot with its readouts.

        Args:
            snapshot: of all layers.
            readouts: of the network.
            precision: number format of its activations.
            folder: where to; by default the run directory.

        Raises:
            OSError: the disk is full or gone.
        """
        description = ModelDescription(
            architecture=self.architecture,
            sip_window=readouts.window,
            temperatures=readouts.temperatures,
            class_names=self.data.class_names,
            precision=precision,
            method=self.config.method,
            loss=loss_config(self.config),
            resize=self.config.resize,
        )
        write_model(folder or self.directory.path, description, snapshot.states, readouts.fusion)


@dataclass(frozen=True, kw_only=True)
class Run(PreparedRun):
    """A run that can be trained."""

    resolved: ResolvedConfig
    """What stages and schedule read; `config` has the same values written out."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainResult:
    """The outcome of a training."""

    run_dir: Any
    """Path of the run directory."""
    metrics: list[EpochRecord]
    """One record for each epoch that was evaluated, those before a resumption included."""
    epochs: int
    """Of the whole run."""
    stopped_by: int | None = None
    """Number of the signal that stopped it early, or None."""
    patience: int | None = None
    """Epochs without a better validation accuracy that ended the run."""

    @property
    def readouts(self) -> dict[str, float]:
        """Test accuracy of the newest epoch in percent, by the name of the readout."""
        return self.metrics[-1].readouts if self.metrics else {}

    @property
    def complete(self) -> bool:
        """Whether the run is over: all epochs were trained, or its patience is spent."""
        return bool(self.metrics) and (
            self.metrics[-1].epoch == self.epochs or out_of_patience(self.metrics, self.patience)
        )

    def __repr__(self) -> str:
        reached = self.metrics[-1].reached if self.metrics else "no epoch complete"
        state = "complete" if self.complete else "stopped"
        return f"<TrainResult {self.run_dir}: {state}, {reached}>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{r.epoch}</td><td>{r.train_loss:.4f}</td><td>{r.valid_accuracy:.2f}</td>"
            f"<td>{r.test_accuracy:.2f}</td></tr>"
            for r in self.metrics[-10:]
        )
        return (
            f"<p><code>{escape(str(self.run_dir))}</code></p><table><thead><tr><th>epoch</th>"
            "<th>loss</th><th>validation %</th><th>test %</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )
