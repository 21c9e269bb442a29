"""The console view of a run: a live display on a terminal, plain lines for everything else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayff.config.kernels import Kernels
from rayff.config.text import plural, printable
from rayff.console.frame import can_be_live, duration, history_table, layer_lines, stage_lines
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.progress import Tracker
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord

REFRESH_PER_S = 2.0
PROGRESS_EVERY_S = 10.0
"""Seconds between the plain view's lines within an epoch, at least."""
MAX_HISTORY = 10


class PlainView:
    """One line an epoch, without control characters; an Callback and a context manager.

    Args:
        console: where to write.
        tracker: of the run that is watched.
        header: one line or a few that say what is trained.
    """

    def __init__(self, console: Console, tracker: Tracker, header: str) -> None:
        self.console = console
        self.tracker = tracker
        self.header = header
        self._last_line_s = tracker.clock()

    def __enter__(self) -> PlainView:
        self._print(self.header, "bold")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._print(self._summary(), "bold")

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Write a line where none was written for a while."""
        self.tracker.add(command, reports)
        if self.tracker.clock() - self._last_line_s >= PROGRESS_EVERY_S:
            self._print(f"{self._epoch()}  {self.tracker.phase}  {self._pace()}")

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Write the epoch's line."""
        self.tracker.finish(record)
        self._print(
            f"epoch {record.epoch}/{self.tracker.epochs}  loss {record.train_loss:.4f}  "
            f"valid {record.valid_accuracy:.2f}%  test {record.test_accuracy:.2f}%  "
            f"{_window(record)}{record.images_per_s:,.0f} images/s  "
            f"{duration(record.elapsed_s)}  left {duration(self.tracker.left_s)}"
        )

    def on_checkpoint(self, path: Path) -> None:
        """Name the checkpoint."""
        self._print(f"checkpoint {path.name}")

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Say where the run goes on."""
        self.tracker.restart(stage_names, progress)
        self._print(f"going on from {self._epoch()} ({' | '.join(stage_names)})")

    def on_warning(self, message: str) -> None:
        """Write the warning."""
        self._print(f"warning: {message}", "yellow")

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(printable(text), style), soft_wrap=not self.console.is_terminal)
        self._last_line_s = self.tracker.clock()

    def _epoch(self) -> str:
        tracker = self.tracker
        return (
            f"epoch {tracker.epoch + 1}/{tracker.epochs}  "
            f"{tracker.images:,}/{tracker.num_train_images:,} images"
        )

    def _pace(self) -> str:
        tracker = self.tracker
        return f"{tracker.images_per_s:,.0f} images/s  left {duration(tracker.left_s)}"

    def _summary(self) -> str:
        tracker = self.tracker
        done, elapsed = tracker.epochs_done, duration(tracker.elapsed_s)
        if done == tracker.epochs:
            where = f"{'all ' if done > 1 else ''}{plural(done, 'epoch')} done"
        elif done > tracker.epoch:
            where = f"ended after epoch {done}/{tracker.epochs}"
        else:
            where = f"ended in {self._epoch()}"
        reached = f": {tracker.records[-1].reached}" if tracker.records else ""
        return f"{where}, after {elapsed}{reached}"


class LiveView(PlainView):
    """A display at the bottom of the terminal, drawn anew twice a second by its own thread."""

    def __init__(self, console: Console, tracker: Tracker, header: str) -> None:
        super().__init__(console, tracker, header)
        self._checkpoint = ""
        self._live = Live(
            get_renderable=self.frame, console=console, refresh_per_second=REFRESH_PER_S
        )

    def __enter__(self) -> LiveView:
        super().__enter__()
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        super().__exit__(kind, error, trace)

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add a result; the next frame shows it."""
        self.tracker.add(command, reports)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Add an epoch; the next frame shows it."""
        self.tracker.finish(record)

    def on_checkpoint(self, path: Path) -> None:
        """Note the checkpoint; the next frame names it."""
        self._checkpoint = f"  {path.name}"

    def frame(self) -> RenderableType:
        """Return the display as it is now, no higher than the terminal."""
        width, height = self.console.size
        head: list[RenderableType] = [
            self._bar(),
            Text(f"{self.tracker.phase:<10}  {self._pace()}{self._checkpoint}", "dim"),
        ]
        records = self.tracker.records[-MAX_HISTORY:]
        by_layer = bool(records) and records[-1].has_window
        sections = [self._layers(records[-1], width)] if by_layer else []
        sections.append(self._stages(width))
        room = height - 1 - len(head) - (3 if records else 0)
        for section in sections:
            if len(section) < room:
                head += ["", *section]
                room -= 1 + len(section)
        if records:
            head += ["", history_table(records[-(1 + max(0, room)) :], width)]
        for line in head:
            if isinstance(line, Text):
                line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*head)

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

    def _stages(self, width: int) -> list[RenderableType]:
        title = Text("busy by stage" + (", * busiest" if self.tracker.stage_names[1:] else ""))
        lines = stage_lines(self.tracker.stage_names, self.tracker.stage_busy, width)
        return [title, *lines]

    def _layers(self, record: EpochRecord, width: int) -> list[RenderableType]:
        window = record.sip_first, record.sip_last
        title = Text(f"valid % by layer, epoch {record.epoch}, SIP window {window[0]}-{window[1]}")
        return [title, *layer_lines(record.layer_valid_accuracy, window, width)]


def _window(record: EpochRecord) -> str:
    """Return the layers that classify, and nothing where there is no choice."""
    return f"window {record.sip_first}-{record.sip_last}  " if record.has_window else ""


def console_view(
    console: Console,
    *,
    header: str,
    epochs: int,
    num_train_images: int,
    stage_names: Sequence[str],
    start: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PlainView:
    """Return the view that suits the console: live on a terminal, else plain.

    Args:
        console: where to write.
        header: what is trained, on one line or a few; shown once.
        epochs: of the whole run.
        num_train_images: of an epoch.
        stage_names: such as "layers 0-4", one a stage.
        start: where a resumed run begins.
        clock: seconds from any point in time.
    """
    tracker = Tracker(
        epochs=epochs,
        num_train_images=num_train_images,
        stage_names=stage_names,
        start=start or Progress(),
        clock=clock,
    )
    return (LiveView if can_be_live(console) else PlainView)(console, tracker, header)


def run_view(run: Run, plan: Plan, console: Console) -> PlainView:
    """Return the console view of a run."""
    config, network = run.config, run.architecture
    num_train_images = len(run.splits["train"])
    header = [
        f"{config.arch} on {run.data.name}: {len(network)} layers, {network.num_weights:,} "
        f"weights, {num_train_images:,} images an epoch, seed {config.seed}",
        f"{plan}; {compute(run, plan)}",
        f"run directory {run.directory.path}",
    ]
    if run.checkpoint is not None:
        header.append(f"resumed from the checkpoint of step {run.checkpoint.step}")
    return console_view(
        console,
        header="\n".join(header),
        epochs=run.recipe.epochs,
        num_train_images=num_train_images,
        stage_names=plan.stage_names,
        start=run.progress,
    )


def compute(run: Run, plan: Plan) -> str:
    """Return what decides the bits besides the data: threads, precision, rule and kernels."""
    resolved = run.resolved
    parts = [plural(plan.resources.threads, "thread"), resolved.precision]
    if resolved.method == "ff" and resolved.rule == "fast":
        parts.append(f"kernels {short_kernels(resolved.kernels)}")
    elif resolved.method == "ff":
        parts.append("plain rule")
    return ", ".join(parts)


def short_kernels(kernels: Sequence[Kernels]) -> str:
    """Return the kernels of all layers, repetitions counted: conv x4, winograd x2."""
    groups = [(str(each), len(list(same))) for each, same in itertools.groupby(kernels)]
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in groups)


class ConsoleCallback(Callback):
    """Shows a run on the console: a live display on a terminal, else plain lines.

    Args:
        console: where to write; standard output if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.view: PlainView | None = None

    def on_start(self, run: Run, plan: Plan) -> None:
        """Show the header."""
        self.view = run_view(run, plan, self.console)
        self.view.__enter__()

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Show the progress."""
        if self.view is not None:
            self.view.on_chunk_end(command, reports)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Show the epoch."""
        if self.view is not None:
            self.view.on_epoch_end(record)

    def on_checkpoint(self, path: Path) -> None:
        """Name the checkpoint."""
        if self.view is not None:
            self.view.on_checkpoint(path)

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Show where the run goes on."""
        if self.view is not None:
            self.view.on_restart(stage_names, progress)

    def on_warning(self, message: str) -> None:
        """Show the warning; before the run has begun, as a line of its own."""
        if self.view is not None:
            self.view.on_warning(message)
        else:
            self.console.print(printable(message), soft_wrap=True, highlight=False, markup=False)

    def on_end(self, error: BaseException | None) -> None:
        """Show the summary."""
        if self.view is not None:
            self.view.__exit__(None, error, None)
