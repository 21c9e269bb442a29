"""The view of a search, driven by events made by hand."""

import io
import re
import time

from rich.console import Console

from rayff.console.search_view import SearchView
from tests.helpers.snapshots import check_snapshot

VALUES = {"epoch": 2, "valid_accuracy": 91.5, "test_accuracy": 90.0, "images_per_s": 1234.0}


def send_events(view: SearchView) -> None:
    with view:
        view.on_start("trial-0", {"lr": 0.01, "epochs": 3})
        view.on_start("trial-1", {"lr": 0.1, "epochs": 3})
        view.on_result("trial-0", VALUES)
        view.on_end("trial-0", "done")
        view.on_start("trial-1", {"lr": 0.1})
        view.on_message("SIGINT: stopping \x1b[2J")


def terminal() -> Console:
    environment = {"TERM": "xterm"}
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, height=10, _environ=environment
    )


def frame(view: SearchView) -> str:
    with view.console.capture() as capture:
        view.console.print(view.frame())
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())


def test_prints_lines_where_the_output_is_no_terminal() -> None:
    out = io.StringIO()
    send_events(SearchView(Console(file=out), "two trials", ["lr"], 2))
    check_snapshot(__file__, "search.txt", out.getvalue())


def test_shows_a_table_in_a_terminal() -> None:
    view = SearchView(terminal(), "two trials", ["lr"], None)
    send_events(view)
    view.trials["trial-1"].started_s = time.monotonic() - 65.0
    check_snapshot(__file__, "search-live.txt", frame(view))


def test_the_table_fits_the_terminal() -> None:
    view = SearchView(terminal(), "", [], 100)
    for number in range(100):
        view.on_start(f"trial-{number}", {})
    assert len(frame(view).splitlines()) <= 10
