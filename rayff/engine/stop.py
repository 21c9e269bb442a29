"""Stop requests: Ctrl-C, SIGTERM and a closed terminal set a flag that the schedule reads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """While entered, the first of SIGNALS only sets `signum`; a second one interrupts.

    Ray must not be shut down inside a signal handler, so the handler sets a flag and the run
    leaves from its loop, with a checkpoint. A thread announces it: the handler
    may have interrupted the main thread in the middle of writing. Outside the main thread
    nothing is handled: there Python delivers no signals. Under `nohup` SIGHUP stays ignored.

    Args:
        on_request: called with the name of the first signal.
    """

    def __init__(self, on_request: Callable[[str], None] = lambda name: None) -> None:
        self.signum: int | None = None
        self._on_request = on_request
        self._announcer: threading.Thread | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether the run is to end at the next chunk."""
        return self.signum is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._announcer is not None:
            self._announcer.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        name = signal.Signals(signum).name
        self._announcer = threading.Thread(target=self._on_request, args=(name,))
        self._announcer.start()
