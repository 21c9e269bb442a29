"""What the tests read from README.md and docs/: commands, Python examples, links and headings."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^(?: {4}.*\n)+", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(
    r"(?:^|\s)(?:rayff (?P<name>[a-z]+|--\S+)|python -m rayff\.(?P<module>[a-z]+)"
    r"|(?P<script>jobs/(?:submit|slurm)\.sh))(?P<rest>(?: .*)?)$"
)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)|src=\"(?P<source>[^\"]+)\"")
_PLACEHOLDERS = {"M": "1", "N": "2", "P": "0.5", "S": "0"}
"""Numbers in place of letters; words such as DIR, RUN and IMAGE... stand for paths as they are."""


@dataclass(frozen=True)
class CommandLine:
    """One command of a page."""

    page: str
    text: str
    command: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One Python block of a page, with the file name in its title, if it has one."""

    page: str
    title: str | None
    code: str


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def command_lines() -> list[CommandLine]:
    """Return every command of rayff: in blocks, one a line, and in spans of code with options."""
    found = []
    for page in PAGES:
        text = text_of(page)
        for line in _block_lines(text):
            found += _command(page, line)
        for span in _SPAN.findall(_without_blocks(text)):
            found += [c for c in _command(page, " ".join(span.split())) if c.args]
    return list(dict.fromkeys(found))


def examples() -> list[Example]:
    found = []
    for page in PAGES:
        for match in _FENCE.finditer(text_of(page)):
            if match["info"].startswith("python"):
                title = re.search(r'title="([^"]+)"', match["info"])
                found.append(Example(page.name, title and title[1], match["body"]))
    return found


def write_modules(folder: Path) -> None:
    """Write the Python blocks that have a title as files."""
    for example in examples():
        if example.title is not None:
            (folder / example.title).write_text(example.code, encoding="utf-8")


def relative_links(page: Path) -> list[str]:
    targets = [m["target"] or m["source"] for m in _LINK.finditer(_without_blocks(text_of(page)))]
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.+)$", _without_blocks(text_of(page)), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


def tables(page: Path) -> list[list[str]]:
    """Return the tables of a page, each with its lines."""
    lines = _FENCE.sub("", text_of(page)).splitlines()
    groups = itertools.groupby(lines, key=lambda line: line.startswith("|"))
    return [list(rows) for is_table, rows in groups if is_table]


def columns(row: str) -> int:
    """Return the number of a table row's cells."""
    return _SPAN.sub("", row).count("|") - 1


def _without_blocks(text: str) -> str:
    return _INDENTED.sub("", _FENCE.sub("", text))


def _block_lines(text: str) -> list[str]:
    fenced = [m["body"] for m in _FENCE.finditer(text) if not m["info"].startswith("python")]
    indented = _INDENTED.findall(_FENCE.sub("", text))
    lines = re.sub(r"\\\n\s*", "", "\n".join([*fenced, *indented])).splitlines()
    return [line.strip().removeprefix("$ ") for line in lines]


def _command(page: Path, line: str) -> list[CommandLine]:
    match = _COMMAND.search(line.split(" #")[0].rstrip(" &"))
    if match is None:
        return []
    command = match["name"] or match["module"] or "train"
    args = shlex.split(match["rest"])
    if command.startswith("--"):  # an option of the program itself
        command, args = "", [command, *args]
    return [
        CommandLine(page.name, line, command, tuple(_PLACEHOLDERS.get(arg, arg) for arg in args))
    ]
