"""What a command shows while it waits: in a terminal, and in a pipe."""

import io
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rayff.config.activity import activity, current_activity
from rayff.console import activity_view
from rayff.console.activity_view import ActivityView


def until(file: io.StringIO, pattern: str) -> None:
    """Wait until the pattern was written."""
    deadline = time.monotonic() + 10.0
    while not re.search(pattern, file.getvalue()):
        assert time.monotonic() < deadline, file.getvalue()
        time.sleep(0.01)


def test_the_innermost_activity_is_the_current_one() -> None:
    def fail() -> None:
        with activity("decoding") as inner:
            assert current_activity() is inner
            raise ZeroDivisionError

    assert current_activity() is None
    with activity("reading") as outer:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert current_activity() is outer
    assert current_activity() is None


def test_a_terminal_has_a_line_that_vanishes() -> None:
    file, stdout = io.StringIO(), sys.stdout
    console = Console(file=file, force_terminal=True, width=60, _environ={"TERM": "xterm"})
    with activity("reading \x1b[2J cifar10", total=2000) as reading, ActivityView(console):
        reading.advance(1000)
        until(file, r"reading \\x1b\[2J cifar10 1,000/2,000 \(\d s\)")
        print("a line of a library")
    assert sys.stdout is stdout
    assert "a line of a library" in file.getvalue()
    assert file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "cursor back, line cleared"


def test_a_pipe_has_a_plain_line_for_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity_view, "AGAIN_S", 0.3)
    monkeypatch.setattr(activity_view, "LINE_S", 0.2)
    monkeypatch.setattr(activity_view, "POLL_S", 0.01)
    file = io.StringIO()
    with ActivityView(Console(file=file), first_line_s=0.05) as view:
        with activity("loading torch"):
            until(file, "torch\n")
        with activity("something quick"):
            pass
        with activity("classifying images", total=10) as classifying:
            until(file, "classifying images\n")
            classifying.advance(5)
            until(file, r"5/10")
        view.stop()
        with activity("something behind the end"):
            time.sleep(0.3)
    *lines, last = file.getvalue().splitlines()
    assert lines == ["loading torch", "classifying images"]
    assert re.fullmatch(r"classifying images 5/10 \(\d s\)", last)


def test_a_notebook_has_an_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def text(content: Any) -> str:
        bundle: dict[str, str] = content._repr_mimebundle_([], [])
        assert "<pre" in bundle["text/html"]
        return bundle["text/plain"].strip()

    def display(content: Any, *, display_id: bool) -> Any:
        assert display_id
        shown.append(text(content))
        return SimpleNamespace(update=lambda content: shown.append(text(content)))

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("rayff.console.notebook.REFRESH_S", 0.01)
    with activity("reading cifar10") as reading:
        with ActivityView(Console(force_jupyter=True)) as view:
            reading.text = "reading digits"
            deadline = time.monotonic() + 10.0
            while "digits" not in shown[-1]:
                assert time.monotonic() < deadline, shown
        view.stop()
    assert shown[0] == "reading cifar10 (0 s)"
    assert shown[-1] == "", "the line vanishes"
