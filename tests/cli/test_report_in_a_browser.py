"""The report's page in a real browser, as wide as a telephone and as a desktop's window."""

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

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser is installed: looked for {', '.join(BROWSERS)}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, two side by side, and a search, each with its report."""
    folder = tmp_path_factory.mktemp("browser")
    first, second = write_run(folder / "first"), write_run(folder / "second", lr=0.01, epochs=1)
    search = write_search(
        folder / "search",
        [{"config": {"lr": 0.1 / 2**n, "kernels": "winograd," * 17}} for n in range(12)],
    )
    shutil.copytree(first, search / "trial-0")
    main([str(first)])
    main([str(first), str(second), "--out", str(folder / "several")])
    main([str(search)])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("report", ["first", "several", "search"])
def test_shows_all_pictures_within_the_window_and_asks_for_nothing(
    folder: Path, browser: Any, report: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url[:80]))
    page.goto((folder / report / "report.html").as_uri())
    try:
        asked = [url for url in complaints if not url.startswith("data:")]
        assert asked == [(folder / report / "report.html").as_uri()[:80]]
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) == len(list((folder / report / "report").glob("*.png")))
        assert min(widths) > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.evaluate("[...document.images].map(image => image.clientWidth)")
        assert min(shown) > 300
    finally:
        page.close()
