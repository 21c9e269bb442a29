"""README.md and docs/: their size, their links and what their examples import."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.docs.pages import (
    PAGES,
    REPOSITORY,
    Example,
    anchors,
    columns,
    examples,
    relative_links,
    tables,
    text_of,
)

README = REPOSITORY / "README.md"


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    for link in relative_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target) or target.name == "api.md", link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_have_as_many_cells_as_their_heads(page: Path) -> None:
    for head, *rows in tables(page):
        for row in rows:
            assert columns(row) == columns(head), f"{page.name}: {row}"


def test_examples_that_commands_name_are_on_a_page() -> None:
    """Such as `--loss my_losses:MeanAndSpread`."""
    code = {example.title: example.code for example in examples() if example.title}
    named = {name for page in PAGES for name in re.findall(r"\bmy_\w+:\w+", text_of(page))}
    assert named
    for module, _, name in (each.partition(":") for each in named):
        assert re.search(rf"^(class|def) {name}\b", code[f"{module}.py"], re.MULTILINE), name


def test_readme_names_every_page() -> None:
    linked = {(REPOSITORY / link.partition("#")[0]) for link in relative_links(README)}
    assert {page for page in PAGES if page.name not in ("README.md", "index.md")} <= linked


@pytest.mark.parametrize("example", examples(), ids=lambda e: f"{e.page}: {e.title or ''}")
def test_what_an_example_imports_from_rayff_exists(example: Example) -> None:
    for node in ast.walk(ast.parse(example.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rayff":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
