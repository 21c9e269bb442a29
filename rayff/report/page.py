"""One HTML page without external files: sections of pictures, tables and notes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.report.style import render
from rayff.runs.files import write_atomically

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with its title and caption."""

    name: str
    """File name without .png."""
    title: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, kw_only=True)
class Note:
    """Says in the place of a picture why it is missing."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: Sequence[int] = ()
    """Indices of right-aligned columns."""
    wide: bool = True
    """Whether it takes the full width of the page."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Shell commands to copy."""

    title: str
    text: str
    caption: str = ""


Block = Picture | Note | Table | Code


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    facts: Mapping[str, str]
    """Key figures at the top, by name."""
    sections: Mapping[str, Sequence[Block]]
    """By heading."""

    @property
    def rows(self) -> Mapping[str, Sequence[tuple[Block, bool]]]:
        """The blocks by heading, each with whether it takes the full width."""
        return {title: arrange(blocks) for title, blocks in self.sections.items()}

    def html(self) -> str:
        """Return the page; pictures are embedded."""
        environment = Environment(
            loader=PackageLoader("rayff.report"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html.jinja").render(page=self)

    def write(self, folder: Path) -> Path:
        """Write report/*.png, then report.html; return the path of the page.

        Raises:
            UserError: the folder cannot be written.
        """
        html = self.html().encode()
        blocks = [block for section in self.sections.values() for block in section]
        try:
            (folder / "report").mkdir(parents=True, exist_ok=True)
            for block in blocks:
                if isinstance(block, Picture):
                    write_atomically(folder / "report" / f"{block.name}.png", block.png)
            write_atomically(folder / "report.html", html)
        except OSError as error:
            raise UserError(
                f"the report cannot be written to {folder}: {error.strerror}; name another "
                "folder with --out"
            ) from error
        return folder / "report.html"


def arrange(blocks: Sequence[Block]) -> list[tuple[Block, bool]]:
    """Return the blocks with whether each takes the full width: two of the others fill a row.

    One that would be alone in its row takes the full width as well.
    """
    rows: list[tuple[Block, bool]] = []
    alone = False
    for block in blocks:
        if is_wide(block):
            if alone:
                rows[-1] = rows[-1][0], True
            rows.append((block, True))
            alone = False
        else:
            rows.append((block, False))
            alone = not alone
    if alone:
        rows[-1] = rows[-1][0], True
    return rows


def is_wide(block: Block) -> bool:
    """Return whether a block takes the full width of the page."""
    return isinstance(block, Code) or (isinstance(block, Table) and block.wide)


def picture(
    name: str,
    title: str,
    caption: str,
    height: float,
    draw: Callable[Concatenate[Figure, P], None],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Picture:
    """Return what `draw(figure, *args, **kwargs)` draws, `height` inches high."""
    with activity(f"drawing {title.lower()}"):
        png = render(lambda figure: draw(figure, *args, **kwargs), height)
    return Picture(name=name, title=title, caption=caption, png=png)
