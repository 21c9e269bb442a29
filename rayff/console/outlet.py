"""Standard output that is closed, full or has few characters: a training outlives it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console

_CLOSED = (
    "note: standard output takes no more ({reason}): the run goes on without it, and writes its "
    "lines to log.txt in the run directory"
)


def run_console(**options: Any) -> Console:
    """Return a console on standard output for a run, which goes on when nobody reads it."""
    return Console(file=Outlet(sys.stdout), emoji=False, **options)  # type: ignore[arg-type]


class ResultConsole(Console):
    """A console for the results of a command, which ends when nobody reads them."""

    def on_broken_pipe(self) -> None:
        """Let the error out, as print does; rich would exit with code 1."""
        raise


class Output(io.TextIOWrapper):
    """Standard output of a command, which remembers why it took no more."""

    refusal: OSError | None = None

    def write(self, text: str) -> int:
        """Write as any text stream."""
        with self._remembered():
            return super().write(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._remembered():
            super().flush()

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.refusal = error
            raise


@contextlib.contextmanager
def checked_output() -> Iterator[Output]:
    """Make sys.stdout one that has every character, and refuses all where it is closed."""
    before = cast(io.TextIOWrapper | None, sys.stdout)
    if before is None:
        target: Any = open(os.open(os.devnull, os.O_RDONLY), "wb")  # noqa: SIM115
        sys.stdout = output = Output(target, errors="backslashreplace")
    else:
        sys.stdout = output = Output(
            before.buffer,
            before.encoding,
            errors="backslashreplace",
            line_buffering=before.line_buffering,
        )
    try:
        yield output
    finally:
        sys.stdout = before
        with contextlib.suppress(OSError):
            output.detach()


class Outlet:
    """A text stream that drops what its target does not take, after a note on standard error.

    Args:
        target: a stream, or None where the process began without standard output.
    """

    def __init__(self, target: IO[str] | None) -> None:
        self.target = target

    @property
    def encoding(self) -> str:
        """The character set of the target."""
        return getattr(self.target, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the target is a terminal."""
        return self.target is not None and self.target.isatty()

    def fileno(self) -> int:
        """Return the target's file descriptor; OSError where it has none."""
        if self.target is None:
            raise OSError("no standard output")
        return self.target.fileno()

    def write(self, text: str) -> int:
        """Write, with escapes for characters that the target does not have."""
        if self.target is not None:
            known = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            try:
                self.target.write(known)
            except (OSError, ValueError) as error:
                self._close(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if self.target is not None:
            try:
                self.target.flush()
            except (OSError, ValueError) as error:
                self._close(error)

    def _close(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        target, self.target = self.target, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(_CLOSED.format(reason=reason), file=sys.stderr, flush=True)
        discard(target)


def discard(stream: IO[str] | None) -> None:
    """Send what a stream still holds, and whatever follows, to nowhere.

    Otherwise Python would complain when it flushes the stream at the end of the process.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
    if isinstance(stream, Output):
        stream.refusal = None
