"""The view of a run under way: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayff.config.kernels import summarise_kernels
from rayff.config.text import plural, printable
from rayff.console.frame import (
    can_be_live,
    duration,
    history_table,
    layer_columns,
    live_display,
    stage_bars,
)
from rayff.console.outlet import run_console
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.progress import Tracker
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord

PROGRESS_INTERVAL_S = 10.0
"""Minimum time between plain lines within an epoch."""
MAX_HISTORY = 10
MUCH_WAITING = 0.05
"""Share of the time that the first stage waits for images, from which on it is shown."""


class ConsoleCallback(Callback):
    """Shows a run: in a terminal by a display at its bottom, elsewhere by a line per epoch.

    Args:
        console: where to print; standard output if None.
        resume_options: what a command needs besides --resume to go on with the run.
    """

    def __init__(self, console: Console | None = None, *, resume_options: str = "") -> None:
        self.console = console or run_console()
        self.resume_options = resume_options
        self.tracker = Tracker(epochs=0, num_train_images=0, stage_names=(), start=Progress())
        self.live: Live | None = None
        self._checkpoint = ""
        self._run_dir: Path | None = None
        self._last_line_s = 0.0

    def on_start(self, run: Run, plan: Plan) -> None:
        """Print the header and start the display."""
        tracker = Tracker(
            epochs=run.recipe.epochs,
            num_train_images=len(run.splits["train"]),
            stage_names=plan.stage_names,
            start=run.progress,
        )
        self._run_dir = run.directory.path
        if run.checkpoint is not None:
            self._checkpoint = f"step-{run.checkpoint.step:08d}"
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
            self._print_line(f"{self._position()}  {self.tracker.phase}  {self._pace()}")

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Show the epoch."""
        self.tracker.finish(record)
        window = f"window {record.sip_first}-{record.sip_last}  " if record.has_window else ""
        self._print_line(
            f"epoch {record.epoch}/{self.tracker.epochs}  loss {record.train_loss:.4f}  "
            f"valid {record.valid_accuracy:.2f}%  test {record.test_accuracy:.2f}%  "
            f"{window}{record.images_per_s:,.0f} images/s  "
            f"{duration(record.elapsed_s)}  left {duration(self.tracker.left_s)}"
            f"{waiting(record.data_wait)}"
        )

    def on_checkpoint(self, path: Path) -> None:
        """Show the name of the checkpoint."""
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
        if self._checkpoint and self.tracker.epochs_done < self.tracker.epochs:
            words = ["--run-dir", str(self._run_dir), "--resume", *self.resume_options.split()]
            self._print(f"continue with: rayff train {shlex.join(words)}")

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

    def _pace(self) -> str:
        tracker = self.tracker
        pace = f"{tracker.images_per_s:,.0f} images/s  left {duration(tracker.left_s)}"
        return pace + waiting(tracker.data_wait)

    def _summary(self) -> str:
        tracker = self.tracker
        done = tracker.epochs_done
        if done == tracker.epochs:
            end = f"{'all ' if done > 1 else ''}{plural(done, 'epoch')} done"
        elif done > tracker.epoch:
            end = f"ended after epoch {done}/{tracker.epochs}"
        else:
            end = f"ended in {self._position()}"
        reached = f": {tracker.records[-1].reached}" if tracker.records else ""
        return f"{end}, after {duration(tracker.elapsed_s)}{reached}"

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
        status = f"{tracker.phase:<10}  {self._pace()}  {self._checkpoint}"
        parts: list[RenderableType] = [self._bar(), _line(status, "dim")]
        records = tracker.records[-MAX_HISTORY:]
        sections = []
        if records and records[-1].has_window:
            newest = records[-1]
            window = newest.sip_first, newest.sip_last
            title = f"valid % by layer, epoch {newest.epoch}, SIP window {window[0]}-{window[1]}"
            sections.append(
                Group(_line(title), layer_columns(newest.layer_valid_accuracy, window))
            )
        title = f"busy by stage{', * busiest' if len(tracker.stage_names) > 1 else ''}"
        bars = stage_bars(tracker.stage_names, tracker.stage_busy, console.width)
        sections.append(Group(_line(title), bars))
        lines_left = console.height - 1 - len(parts) - (3 if records else 0)
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


def waiting(share: float) -> str:
    """Return how much of the time the first stage waits for images, where that is much."""
    return f"  waits for data {100 * share:.0f}%" if share >= MUCH_WAITING else ""


def _line(text: str, style: str = "") -> Text:
    """Return text for one line, cut where the terminal is narrower."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


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
