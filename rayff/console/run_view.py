"""The view of a run under way: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayff.config.activity import current_activity
from rayff.config.kernels import summarise_kernels
from rayff.config.text import plural, printable
from rayff.console.activity_view import ActivityView, describe
from rayff.console.frame import (
    can_be_live,
    duration,
    flow,
    history_table,
    layer_sections,
    live_display,
    memory,
    stage_bars,
    time_of_day,
    title_line,
    whole_seconds,
)
from rayff.console.notebook import NotebookDisplay
from rayff.console.outlet import run_console
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.progress import Tracker
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import METRICS_FILE, EpochRecord, out_of_patience, read_metrics
from rayff.runs.run_directory import resume_command

PROGRESS_INTERVAL_S = 10.0
"""Minimum time between plain lines within an epoch."""
MAX_HISTORY = 10
MUCH_WAITING = 0.05
"""Share of the time that the first stage waits for images, from which on it is shown."""
MAX_PRINTED_LAYERS = 24
"""Deeper networks get no plain line with the loss and the accuracy of each layer."""


class ConsoleCallback(Callback):
    """Shows a run: in a terminal by a display at its bottom, elsewhere by a line per epoch.

    Args:
        console: where to print; standard output if None.
        waiting: shows what the run waits for before it starts, on the same console.
        resume_options: what a command needs besides --resume to go on with the run.
    """

    def __init__(
        self,
        console: Console | None = None,
        waiting: ActivityView | None = None,
        *,
        resume_options: Sequence[str] = (),
    ) -> None:
        self.console = console or run_console()
        self.waiting = waiting
        self.resume_options = resume_options
        self.tracker = Tracker(epochs=0, num_train_images=0, stage_names=(), start=Progress())
        self.live: Live | NotebookDisplay | None = None
        self._checkpoint = ""
        self._command = ""
        self._patience: int | None = None
        self._last_line_s = 0.0

    def on_start(self, run: Run, plan: Plan) -> None:
        """Print the header and start the display."""
        tracker = Tracker(
            epochs=run.recipe.epochs,
            num_train_images=len(run.splits["train"]),
            stage_names=plan.stage_names,
            start=run.progress,
            records=_records(run),
        )
        self._command = resume_command(run.directory.path, *self.resume_options)
        self._patience = run.config.patience
        if run.checkpoint is not None:
            self._checkpoint = f"step-{run.checkpoint.step:08d}"
        if self.waiting is not None:
            self.waiting.stop()
        self.start(tracker, run_header(run, plan))

    def start(self, tracker: Tracker, header: str) -> None:
        """Start with a tracker for this view alone, under a header of a few lines."""
        self.tracker = tracker
        self._print(header, "bold")
        if can_be_live(self.console):
            self.live = live_display(self.console, self.frame)
            self.live.start(refresh=True)

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Show the progress; as a line if the last one is old."""
        self.tracker.add(command, reports)
        if self.tracker.clock() - self._last_line_s >= PROGRESS_INTERVAL_S:
            self._print_line("  ".join([self._position(), *self._now(), *self._pace()]))

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Show the epoch."""
        tracker = self.tracker
        tracker.finish(record)
        best = " (best)" if record is tracker.best and record.epoch > 1 else ""
        words = [
            f"epoch {record.epoch}/{tracker.epochs}",
            f"loss {record.train_loss:.4f}",
            f"valid {record.valid_accuracy:.2f}%{best}",
            f"test {record.test_accuracy:.2f}%",
            f"window {record.sip_first}-{record.sip_last}" if record.has_window else "",
            f"{record.images_per_s:,.0f} images/s",
            duration(record.elapsed_s),
            self._left(),
            waiting(record.data_wait),
        ]
        self._print_line("  ".join(filter(None, words)))
        if record.has_window and len(record.layer_loss) <= MAX_PRINTED_LAYERS:
            losses = " ".join(f"{value:.3f}" for value in record.layer_loss)
            accuracy = " ".join(f"{value:.1f}" for value in record.layer_valid_accuracy)
            self._print_line(f"  by layer: loss {losses}, valid % {accuracy}")

    def on_checkpoint(self, path: Path) -> None:
        """Show the name of a new checkpoint; a stop may write the newest one again."""
        if path.name != self._checkpoint:
            self._checkpoint = path.name
            self._print_line(f"checkpoint {path.name}")

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Print where the run continues, and the stages."""
        self.tracker.restart(stage_names, progress)
        self._print(f"going on from {self._position()} ({' | '.join(stage_names)})")

    def on_warning(self, message: str) -> None:
        """Print the warning; before the start it only says what the run waits for."""
        if self.tracker.epochs:
            self._print(f"warning: {message}", "yellow")
        else:
            self._print(message)

    def on_end(self, error: BaseException | None) -> None:
        """Stop the display and print the summary."""
        if self.live is not None:
            self.live.stop()
        self._print(self._summary(), "bold")
        if readouts := self._readouts():
            self._print(readouts)
        over = out_of_patience(self.tracker.records, self._patience)
        is_open = self._checkpoint and self.tracker.epochs_done < self.tracker.epochs and not over
        if is_open and self._command not in str(error):
            self._print(f"continue with: {self._command}")

    def _print_line(self, text: str) -> None:
        """Print what the display shows, where there is none."""
        if self.live is None:
            self._print(text)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(printable(text), style), soft_wrap=not self.console.is_terminal)
        self._last_line_s = self.tracker.clock()

    def _position(self) -> str:
        tracker = self.tracker
        return (
            f"epoch {tracker.epoch + 1}/{tracker.epochs}  "
            f"{tracker.images:,}/{tracker.num_train_images:,} images"
        )

    def _now(self) -> list[str]:
        """Return what happens now, with the loss and the learning rate."""
        tracker, doing = self.tracker, current_activity()
        if doing is not None:
            return [describe(doing)]
        if not tracker.layer_loss:
            return [f"waiting for the first chunk ({whole_seconds(tracker.waits_s)})"]
        loss = fmean(tracker.layer_loss)
        return [tracker.phase, f"loss {loss:.4f}", f"lr {tracker.lr:.3g}"]

    def _pace(self) -> list[str]:
        tracker = self.tracker
        pace = f"{tracker.images_per_s:,.0f} images/s"
        return [*filter(None, [pace, self._left(), waiting(tracker.data_wait)])]

    def _left(self) -> str:
        """Return how long the run will take, and until when."""
        tracker = self.tracker
        if tracker.end is None or not tracker.left_s:
            return ""
        return f"left {duration(tracker.left_s)} (to {time_of_day(tracker.end, tracker.now())})"

    def _status(self) -> list[str]:
        """Return all facts of the display, the most important first."""
        tracker, best = self.tracker, self.tracker.best
        return [
            *self._now(),
            *self._pace(),
            f"elapsed {whole_seconds(tracker.elapsed_s)}",
            *([] if best is None else [f"best {best.valid_accuracy:.2f}% (epoch {best.epoch})"]),
            *memory(tracker.memory_bytes),
            *([plural(tracker.restarts, "restart")] if tracker.restarts else []),
            *([self._checkpoint] if self._checkpoint else []),
        ]

    def _summary(self) -> str:
        tracker = self.tracker
        done = tracker.epochs_done
        if done == tracker.epochs:
            end = f"{'all ' if done > 1 else ''}{plural(done, 'epoch')} done"
        elif done > tracker.epoch:
            end = f"ended after epoch {done}/{tracker.epochs}"
        else:
            end = f"ended in {self._position()}"
        restarts = f", {plural(tracker.restarts, 'restart')}" if tracker.restarts else ""
        reached = f": {tracker.records[-1].reached}" if tracker.records else ""
        best = tracker.best
        if best is not None and best.valid_accuracy > tracker.records[-1].valid_accuracy:
            reached += f"; best valid {best.valid_accuracy:.2f}% (epoch {best.epoch})"
        return f"{end}, after {duration(tracker.elapsed_s)}{restarts}{reached}"

    def _readouts(self) -> str:
        """Return the test accuracy of the newest epoch by readout, where there are several."""
        records = self.tracker.records
        if not records or not records[-1].has_window:
            return ""
        shown = (f"{name} {value:.2f}%" for name, value in records[-1].readouts.items())
        return f"test accuracy by readout: {', '.join(shown)}"

    def frame(self) -> RenderableType:
        """Return the display, cut to the height of the terminal; the newest epoch always fits."""
        tracker, console = self.tracker, self.console
        records = tracker.records[-MAX_HISTORY:]
        below = 4 if records else 1  # the newest epoch, and the last line of the terminal
        status = flow(self._status(), console.width)[: max(1, console.height // 5)]
        parts: list[RenderableType] = [self._bar(), *(title_line(line, "dim") for line in status)]
        sections = []
        if len(tracker.layer_loss) > 1:
            sections += layer_sections(tracker.layer_loss, records[-1] if records else None)
        title = f"busy by stage{', * busiest' if len(tracker.stage_names) > 1 else ''}"
        bars = stage_bars(tracker.stage_names, tracker.stage_busy, console.width)
        sections.insert(1, Group(title_line(title), bars))
        lines_left = console.height - len(parts) - below
        for section in sections:
            num_lines = 1 + len(console.render_lines(section))
            if num_lines <= lines_left:
                parts += ["", section]
                lines_left -= num_lines
        if records:
            parts += ["", history_table(records[-(1 + max(0, lines_left)) :], console)]
        return Group(*parts)

    def _bar(self) -> Table:
        tracker = self.tracker
        line = Table.grid(padding=(0, 1, 0, 0), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        line.add_row(
            f"epoch {tracker.epoch + 1} of {tracker.epochs}",
            ProgressBar(total=tracker.num_train_images, completed=tracker.images),
            f"{tracker.images:,}/{tracker.num_train_images:,}",
        )
        return line


def _records(run: Run) -> list[EpochRecord]:
    """Return the epochs before a resumption."""
    metrics, done = run.directory.path / METRICS_FILE, run.progress.epoch
    records = read_metrics(metrics) if done and metrics.exists() else []
    return [record for record in records if record.epoch <= done]


def waiting(share: float) -> str:
    """Return how much of the time the first stage waits for images, where that is much."""
    return f"waits for data {100 * share:.0f}%" if share >= MUCH_WAITING else ""


def run_header(run: Run, plan: Plan) -> str:
    """Return the lines that describe a run: network, data, stages, threads, kernels, folder."""
    config, network = run.config, run.architecture
    lines = [
        f"{config.arch} on {run.data.name}: {len(network)} layers, {network.num_weights:,} "
        f"weights, {len(run.splits['train']):,} images an epoch, seed {config.seed}",
        *run.data.describe(),
        f"{plan}; {compute(run, plan)}",
        f"run directory {run.directory.path}",
    ]
    if run.progress != Progress():
        assert run.checkpoint is not None, "without one a run begins at its start"
        lines.append(f"resumed from the checkpoint of step {run.checkpoint.step}")
    return "\n".join([*lines, *run.notes])


def compute(run: Run, plan: Plan) -> str:
    """Return what decides the bits besides the data: threads, precision, rule and kernels."""
    resolved = run.resolved
    parts = [plural(plan.resources.threads, "thread"), resolved.precision]
    if resolved.method == "ff" and resolved.rule == "fast":
        parts.append(f"kernels {summarise_kernels(resolved.kernels)}")
    elif resolved.method == "ff":
        parts.append("plain rule")
    return ", ".join(parts)
