"""The view of what a command waits for: a line with the elapsed time."""

from __future__ import annotations

import threading
from types import TracebackType

from rich.console import Console
from rich.text import Text

from rayff.config.activity import Activity, current_activity
from rayff.config.text import printable
from rayff.console.frame import can_be_live, live_display, whole_seconds
from rayff.console.outlet import run_console

POLL_S = 0.1
AT_ONCE_S = 0.4
"""Before the first plain line of a command whose output begins much later."""
LATE_S = 15.0
"""The same where only an unusual wait is worth a line among the errors."""
LINE_S = 4.0
"""Age at which a later activity becomes a plain line."""
AGAIN_S = 20.0
"""Seconds after which another line says how far it is."""


class ActivityView:
    """Context manager that shows the current activity: in a terminal or notebook by a line that
    is redrawn and vanishes, elsewhere by plain lines for what takes longer than a moment.

    Args:
        console: where to print; standard output if None.
        first_line_s: seconds before the first plain line.
    """

    def __init__(self, console: Console | None = None, *, first_line_s: float = LATE_S) -> None:
        self.console = console or run_console()
        self.first_line_s = first_line_s
        self._otherwise = Activity("starting")
        self._ended = threading.Event()
        self._live = (
            live_display(self.console, self.frame, transient=True)
            if can_be_live(self.console)
            else None
        )
        self._thread = threading.Thread(target=self._print_lines, name="activity", daemon=True)

    def __enter__(self) -> ActivityView:
        if self._live is None:
            self._thread.start()
        else:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the display, which may have ended before."""
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        elif self._thread.is_alive():
            self._thread.join()

    def frame(self) -> Text:
        """Return the line that the terminal shows now."""
        text = describe(current_activity() or self._otherwise)
        return Text(text, "dim", no_wrap=True, overflow="ellipsis")

    def _print_lines(self) -> None:
        shown: Activity | None = None
        again_s = 0.0
        while not self._ended.wait(POLL_S):
            found = current_activity() or self._otherwise
            if found is self._otherwise and shown is not None:
                continue
            if found is shown:
                due_s = again_s
            else:
                due_s = self.first_line_s if shown is None else LINE_S
            if found.elapsed_s >= due_s:
                text = describe(found) if found is shown else printable(found.text)
                self.console.print(Text(text), soft_wrap=True)
                shown, again_s = found, found.elapsed_s + AGAIN_S


def describe(found: Activity) -> str:
    """Return the text of an activity, the number of items done and the elapsed time."""
    count = "" if found.total is None else f" {found.done:,}/{found.total:,}"
    return f"{printable(found.text)}{count} ({whole_seconds(found.elapsed_s)})"
