"""The view of a search under way: a table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayff.config.text import plural, printable
from rayff.console.frame import can_be_live, duration, live_display, percent, setting


@dataclass
class TrialState:
    """The progress of a trial."""

    settings: str = ""
    status: str = "running"
    epoch: int = 0
    valid_accuracy: float | None = None
    test_accuracy: float | None = None
    started_s: float = field(default_factory=time.monotonic)


class SearchView:
    """Context manager that shows a search: a table in a terminal, elsewhere a line per event.

    Args:
        console: where to print.
        header: a few lines that describe the search.
        varied: the options that differ between trials.
        num_trials: of the whole search; None if unknown.
    """

    def __init__(
        self, console: Console, header: str, varied: Sequence[str], num_trials: int | None
    ) -> None:
        self.console = console
        self.header = header
        self.varied = varied
        self.num_trials = num_trials
        self.trials: dict[str, TrialState] = {}
        self.live = live_display(console, self.frame) if can_be_live(console) else None

    def __enter__(self) -> SearchView:
        self.console.print(Text(self.header, "bold"), soft_wrap=True)
        if self.live is not None:
            self.live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.stop()

    def on_start(self, trial: str, config: Mapping[str, Any]) -> None:
        """Add a trial that starts or continues."""
        event = "goes on" if trial in self.trials else "starts"
        state = self.trials[trial] = TrialState(self._settings(config))
        self._print(f"{trial}  {event}  {state.settings}".rstrip())

    def on_result(self, trial: str, values: Mapping[str, Any]) -> None:
        """Add an epoch of a trial, which may have started before the search was resumed."""
        state = self.trials.setdefault(trial, TrialState(self._settings(values.get("config", {}))))
        state.epoch = values["epoch"]
        state.valid_accuracy, state.test_accuracy = (
            values["valid_accuracy"],
            values["test_accuracy"],
        )
        self._print(
            f"{trial}  epoch {state.epoch}  valid {percent(state.valid_accuracy)}  "
            f"test {percent(state.test_accuracy)}  {values['images_per_s']:,.0f} images/s"
        )

    def on_end(self, trial: str, status: str) -> None:
        """Mark a trial as ended."""
        self.trials.setdefault(trial, TrialState()).status = status
        done = sum(state.status != "running" for state in self.trials.values())
        self._print(f"{trial}  {status}  ({self._done(done)})")

    def on_message(self, text: str) -> None:
        """Print a message."""
        self.console.print(Text(printable(text), "yellow"), soft_wrap=True)

    def _settings(self, config: Mapping[str, Any]) -> str:
        known = [name for name in self.varied if name in config]
        return printable("  ".join(f"{name} {setting(config[name])}" for name in known))

    def _done(self, number: int) -> str:
        if self.num_trials is None:
            return f"{plural(number, 'trial')} done"
        return f"{number} of {plural(self.num_trials, 'trial')} done"

    def _print(self, text: str) -> None:
        """Print what the table shows, where there is none."""
        if self.live is None:
            self.console.print(Text(text), soft_wrap=True)

    def frame(self) -> Table:
        """Return the table, cut to the height of the terminal: running trials, then the best."""
        running = {trial: s for trial, s in self.trials.items() if s.status == "running"}
        ended = {trial: s for trial, s in self.trials.items() if trial not in running}
        best = sorted(ended.items(), key=lambda item: -(item[1].valid_accuracy or 0.0))
        table = Table(
            title=f"{self._done(len(ended))}, {len(running)} running",
            title_justify="left",
            box=None,
            padding=(0, 1),
            pad_edge=False,
        )
        for name in ("trial", "settings", "epoch", "valid", "test", ""):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for trial, state in [*running.items(), *best][: max(1, self.console.height - 4)]:
            running_s = time.monotonic() - state.started_s
            table.add_row(
                trial,
                state.settings,
                str(state.epoch),
                percent(state.valid_accuracy),
                percent(state.test_accuracy),
                duration(running_s) if trial in running else state.status,
            )
        return table
