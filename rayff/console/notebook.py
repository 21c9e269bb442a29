"""A live display in a notebook, by what each of them has: an output that is updated."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.jupyter import JupyterMixin

REFRESH_S = 0.5


class NotebookDisplay:
    """Shows a frame below a cell and redraws it by a thread, as rich.live.Live does in a terminal.

    Live itself needs ipywidgets in a notebook.

    Args:
        console: decides the width.
        frame: called for what to show.
        transient: whether it vanishes at the end.
    """

    def __init__(
        self, console: Console, frame: Callable[[], RenderableType], *, transient: bool
    ) -> None:
        self.console = console
        self.frame = frame
        self.transient = transient
        self._handle: Any = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="notebook", daemon=True)

    def start(self, refresh: bool = False) -> None:
        """Show the frame."""
        from IPython.display import display

        self._handle = display(_Shown(self.frame()), display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Show the frame for the last time, or nothing; a second call does nothing."""
        if self._ended.is_set() or self._handle is None:
            return
        self._ended.set()
        self._thread.join()
        self._handle.update(_Shown("" if self.transient else self.frame()))

    def _redraw(self) -> None:
        while not self._ended.wait(REFRESH_S):
            self._handle.update(_Shown(self.frame()))


class _Shown(JupyterMixin):
    """What rich renders to HTML, or to text where a notebook has none."""

    def __init__(self, content: RenderableType) -> None:
        self.content = content

    def __rich__(self) -> RenderableType:
        return self.content
