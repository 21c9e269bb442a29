"""What a search shows while it runs."""

import io

from rich.console import Console

from rayff.console.search_view import LiveSearchView, SearchView, search_view

VALUES = {"epoch": 2, "valid_accuracy": 91.5, "test_accuracy": 90.0, "images_per_s": 1234.0}


def happenings(view: SearchView) -> None:
    with view:
        view.on_start("trial-0", {"lr": 0.01, "epochs": 3})
        view.on_start("trial-1", {"lr": 0.1, "epochs": 3})
        view.on_result("trial-0", VALUES)
        view.on_end("trial-0", "done")
        view.on_start("trial-1", {"lr": 0.1})
        view.on_message("SIGINT: stopping")


def test_plain_lines_where_the_output_is_no_terminal() -> None:
    out = io.StringIO()
    happenings(search_view(Console(file=out), "two trials", ["lr"], 2))
    assert out.getvalue().splitlines() == [
        "two trials",
        "trial-0  starts  lr 0.01",
        "trial-1  starts  lr 0.1",
        "trial-0  epoch 2  valid 91.50%  test 90.00%  1,234 images/s",
        "trial-0  done  (1 of 2 trials done)",
        "trial-1  goes on  lr 0.1",
        "SIGINT: stopping",
    ]


def test_a_table_of_the_trials_on_a_terminal() -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=80, height=10, _environ={"TERM": "xterm"}
    )
    view = LiveSearchView(console, "two trials", ["lr"], None)
    happenings(view)
    with console.capture() as capture:
        console.print(view.frame())
    text = capture.get()
    assert "1 trials done, 1 running" in text
    assert text.index("trial-1") < text.index("trial-0"), "those under way come first"
    assert "91.50" in text


def test_the_table_is_no_higher_than_the_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=10)
    view = LiveSearchView(console, "", [], 100)
    for number in range(100):
        view.on_start(f"trial-{number}", {})
    with console.capture() as capture:
        console.print(view.frame())
    assert len(capture.get().splitlines()) <= 10
