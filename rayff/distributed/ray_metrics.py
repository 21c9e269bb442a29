"""A run's counts in Ray's own metrics, for Prometheus and Grafana.

    reports -1-> sums -2-> Ray's counters and gauges -3-> each node's metrics port

(1) The driver receives every report, so the stages count nothing. (2) A thread exports the sums
every few seconds: the loop waits for no call of Ray's, and a gauge, which expires unless it is set
again, stays however long a chunk takes. (3) Ray exports them, where `ray[default]` is installed,
with `ray_` before the names; elsewhere they go nowhere and cost nothing.
"""

from __future__ import annotations

import functools
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from rayff.distributed.actor_group import ClusterPipeline
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.progress import Tracker
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord

EVERY_S = 2.0
"""Seconds from one handing on to the next; Ray exports every ten by default."""

STAGE_COUNTERS = {
    "rayff_images_total": "Images trained; those trained again after a failure count again.",
    "rayff_batches_total": "Batches trained; those trained again after a failure count again.",
    "rayff_busy_seconds_total": "Seconds computed, in training and evaluation; of replicas the "
    "mean.",
    "rayff_sent_bytes_total": "Bytes of the tensors sent to the next stage.",
}
"""By run and stage."""
RUN_COUNTERS = {
    "rayff_restarts_total": "Times that the run went on from a snapshot, after a failure or for "
    "another plan.",
}
"""By run."""
GAUGES = {
    "rayff_epoch": "Epoch under way, from 1.",
    "rayff_images_per_second": "Images trained a second, lately.",
    "rayff_valid_accuracy": "Validation accuracy of the newest epoch, in percent.",
    "rayff_test_accuracy": "Test accuracy of the newest epoch, in percent.",
    "rayff_chunks_in_flight": "Chunks between the first stage and the results.",
    "rayff_window": "Chunks that may be in flight.",
}
"""By run."""


class RayMetrics(Callback):
    """Exports a run's counts to Ray. Whatever fails in it ends the metrics, not the run.

    Attributes:
        pipeline: the one at work; None before the first.
    """

    def __init__(self) -> None:
        self.pipeline: ClusterPipeline | None = None
        self.run = ""
        self.tracker: Tracker | None = None
        self._sums: defaultdict[tuple[str, int | None], float] = defaultdict(float)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._export_often, name="metrics", daemon=True)

    def on_start(self, run: Run, plan: Plan) -> None:
        """Start the thread that exports."""
        self.run = run.directory.name
        self.tracker = Tracker(
            epochs=run.recipe.epochs,
            num_train_images=len(run.splits["train"]),
            stage_names=plan.stage_names,
            start=run.progress,
        )
        self._thread.start()

    def on_end(self, error: BaseException | None) -> None:
        """Export what is left, and end the thread."""
        self._ended.set()
        self._thread.join(EVERY_S)

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add the reports of a chunk."""
        with self._lock:
            if self.tracker is not None:
                self.tracker.add(command, reports)
            for stage, report in enumerate(reports):
                self._sums["rayff_busy_seconds_total", stage] += report.busy_s
                self._sums["rayff_sent_bytes_total", stage] += report.sent_bytes
                if isinstance(command, Train):
                    self._sums["rayff_images_total", stage] += report.images
                    self._sums["rayff_batches_total", stage] += len(command.batches)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Keep its accuracies."""
        with self._lock:
            if self.tracker is not None:
                self.tracker.finish(record)

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Count it, and set the epoch back."""
        with self._lock:
            if self.tracker is not None:
                self.tracker.restart(stage_names, progress)
            self._sums["rayff_restarts_total", None] += 1

    def gauges(self) -> dict[str, float]:
        """Return the gauges as they are now."""
        with self._lock:
            tracker, pipeline = self.tracker, self.pipeline
            if tracker is None:
                return {}
            values: dict[str, float] = {
                "rayff_epoch": min(tracker.epoch + 1, tracker.epochs),
                "rayff_images_per_second": tracker.images_per_s,
            }
            if tracker.records:
                values["rayff_valid_accuracy"] = tracker.records[-1].valid_accuracy
                values["rayff_test_accuracy"] = tracker.records[-1].test_accuracy
            if pipeline is not None:
                values["rayff_chunks_in_flight"] = pipeline.in_flight
                values["rayff_window"] = pipeline.window
            return values

    def export(self) -> None:
        """Export to Ray what came since the last call."""
        counters, gauges = instruments()
        with self._lock:
            sums = dict(self._sums)
            self._sums.clear()
        for (name, stage), amount in sums.items():
            tags = {"run": self.run, **({} if stage is None else {"stage": str(stage)})}
            if amount > 0:
                counters[name].inc(amount, tags)
        for name, value in self.gauges().items():
            gauges[name].set(value, {"run": self.run})

    def _export_often(self) -> None:
        over = False
        while not over:
            over = self._ended.wait(EVERY_S)
            try:
                self.export()
            except Exception:  # metrics are never worth a training
                return


@functools.cache
def instruments() -> tuple[Mapping[str, Counter], Mapping[str, Gauge]]:
    """Return Ray's counters and gauges by name; a process has one of each."""
    counters = {
        name: Counter(name, text, tags)
        for texts, tags in ((STAGE_COUNTERS, ("run", "stage")), (RUN_COUNTERS, ("run",)))
        for name, text in texts.items()
    }
    return counters, {name: Gauge(name, text, ("run",)) for name, text in GAUGES.items()}
