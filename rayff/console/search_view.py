"""The console view of a search: a table on a terminal, plain lines for everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayff.console.frame import can_be_live, duration
from rayff.tune.results import setting

REFRESH_PER_S = 2.0


@dataclass
class Shown:
    """What is known of a trial under way."""

    settings: str
    status: str = "running"
    epoch: int = 0
    valid_accuracy: float | None = None
    test_accuracy: float | None = None
    began_s: float = field(default_factory=time.monotonic)


class SearchView:
    """One line where something happens; a context manager.

    Args:
        console: where to write.
        header: one line or a few that say what is searched.
        varied: the options that differ from trial to trial.
        num_trials: of the whole search; None where it is not known.
    """

    def __init__(
        self, console: Console, header: str, varied: Sequence[str], num_trials: int | None
    ) -> None:
        self.console = console
        self.header = header
        self.varied = varied
        self.num_trials = num_trials
        self.trials: dict[str, Shown] = {}

    def __enter__(self) -> SearchView:
        self._print(self.header, "bold")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def on_start(self, trial: str, config: Mapping[str, Any]) -> None:
        """Show that a trial has begun, or goes on."""
        before = self.trials.get(trial)
        text = "  ".join(f"{name} {setting(config[name])}" for name in self.varied)
        self.trials[trial] = Shown(settings=text)
        self._print(f"{trial}  {'starts' if before is None else 'goes on'}  {text}".rstrip())

    def on_result(self, trial: str, values: Mapping[str, Any]) -> None:
        """Show an epoch of a trial."""
        shown = self.trials.setdefault(trial, Shown(settings=""))
        shown.epoch = values["epoch"]
        shown.valid_accuracy = values["valid_accuracy"]
        shown.test_accuracy = values["test_accuracy"]
        self._print(f"{trial}  {_reached(shown)}  {values['images_per_s']:,.0f} images/s")

    def on_end(self, trial: str, status: str, detail: str = "") -> None:
        """Show that a trial has ended, and how."""
        shown = self.trials.setdefault(trial, Shown(settings=""))
        shown.status = status
        done = sum(each.status != "running" for each in self.trials.values())
        of = "" if self.num_trials is None else f" of {self.num_trials}"
        self._print(f"{trial}  {status}{detail}  ({done}{of} trials done)")

    def on_message(self, text: str) -> None:
        """Show a sentence."""
        self.console.print(Text(text, "yellow"), soft_wrap=True)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)


class LiveSearchView(SearchView):
    """A table at the bottom of the terminal."""

    def __init__(
        self, console: Console, header: str, varied: Sequence[str], num_trials: int | None
    ) -> None:
        super().__init__(console, header, varied, num_trials)
        self._live = Live(
            get_renderable=self.frame, console=console, refresh_per_second=REFRESH_PER_S
        )

    def __enter__(self) -> LiveSearchView:
        self.console.print(Text(self.header, "bold"), soft_wrap=True)
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _print(self, text: str, style: str = "") -> None:
        pass

    def frame(self) -> RenderableType:
        """Return the display as it is now, no higher than the terminal: the trials under way,
        then the best of those that ended."""
        running = [t for t, shown in self.trials.items() if shown.status == "running"]
        ended = sorted(
            self.trials.keys() - set(running),
            key=lambda trial: -(self.trials[trial].valid_accuracy or 0.0),
        )
        of = "" if self.num_trials is None else f" of {self.num_trials}"
        table = Table(
            title=f"{len(ended)}{of} trials done, {len(running)} running",
            title_justify="left",
            box=None,
            padding=(0, 1),
            pad_edge=False,
        )
        for name in ("trial", "settings", "epoch", "valid %", "test %", ""):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for trial in [*running, *ended][: max(1, self.console.size.height - 4)]:
            shown = self.trials[trial]
            status = shown.status
            if status == "running":
                status = duration(time.monotonic() - shown.began_s)
            cells = [str(shown.epoch), _percent(shown.valid_accuracy)]
            cells += [_percent(shown.test_accuracy), status]
            table.add_row(trial, shown.settings, *cells)
        return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _reached(shown: Shown) -> str:
    return (
        f"epoch {shown.epoch}  valid {_percent(shown.valid_accuracy)}%  "
        f"test {_percent(shown.test_accuracy)}%"
    )


def search_view(
    console: Console, header: str, varied: Sequence[str], num_trials: int | None
) -> SearchView:
    """Return the view that suits the console: live on a terminal, else plain."""
    return (LiveSearchView if can_be_live(console) else SearchView)(
        console, header, varied, num_trials
    )


Watch = Callable[[str, Sequence[str], "int | None"], SearchView]
"""Makes who watches a search, of a header, the varied options and the number of trials."""
