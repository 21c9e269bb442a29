"""Report pages in a real browser, at the widths of a phone and of a desktop window."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayff.report.__main__ import main
from tests.report.runs import write_run, write_search

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason=f"no browser is installed: looked for {', '.join(BROWSERS)}"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of a run, of two runs and of a search."""
    folder = tmp_path_factory.mktemp("browser")
    run = write_run(folder / "run")
    config = {"kernels": "winograd," * 17, "task": "a_long_name" * 9}
    trials = [
        {"config": {name: f"{n}{value}" for name, value in config.items()}} for n in range(12)
    ]
    search = write_search(folder / "search", trials)
    shutil.copytree(run, search / "trials" / "trial-0")
    main([str(run)])
    main([str(run), str(search / "trials" / "trial-0"), "--out", str(folder / "several")])
    main([str(search)])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("report", ["run", "several", "search"])
def test_all_pictures_fit_and_nothing_else_is_loaded(
    folder: Path, browser: Any, report: str, width: int
) -> None:
    url = (folder / report / "report.html").as_uri()
    page = browser.new_page(viewport={"width": width, "height": 800})
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url))
    page.goto(url)
    assert [event for event in events if not event.startswith("data:")] == [url]
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(sizes) == len(list((folder / report / "report").glob("*.png")))
    assert all(natural > 0 and shown > 300 for natural, shown in sizes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
