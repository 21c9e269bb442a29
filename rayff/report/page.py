"""The page: sections of pictures, tables and words as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from rayff.config.errors import UserError
from rayff.report.style import render
from rayff.runs.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with its title and what there is to be seen."""

    name: str
    """Of its file, without .png."""
    title: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, kw_only=True)
class Note:
    """Words in the place of a picture that cannot be made."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of words under a line of titles."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    numbers: frozenset[int] = frozenset()
    """Columns that are flush right."""
    wide: bool = True
    """It takes the whole width of the page."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to be copied into a terminal."""

    title: str
    text: str
    caption: str = ""


Block = Picture | Note | Table | Code


@dataclass(frozen=True, kw_only=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Page:
    """All of a report."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    """Large numbers at the top: (name, value)."""
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [b for section in self.sections for b in section.blocks if isinstance(b, Picture)]

    def html(self) -> str:
        """Return the page, with everything that it shows inside."""
        environment = Environment(
            loader=PackageLoader("rayff.report"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.tests["of_kind"] = lambda block, kind: type(block).__name__ == kind
        return environment.get_template("report.html.jinja").render(page=self)

    def write(self, folder: Path) -> Path:
        """Write report/*.png and then report.html into the folder; return the page's path.

        Raises:
            UserError: the folder cannot be written.
        """
        html = self.html().encode()
        try:
            pictures = folder / "report"
            pictures.mkdir(parents=True, exist_ok=True)
            for picture in self.pictures:
                write_atomically(pictures / f"{picture.name}.png", picture.png)
            write_atomically(folder / "report.html", html)
        except OSError as error:
            raise UserError(
                f"the report cannot be written to {folder}: {error.strerror}; name another "
                "folder with --out"
            ) from error
        return folder / "report.html"


def picture(
    name: str, title: str, caption: str, draw: Callable[[Figure], None], *, height: float = 3.0
) -> Picture:
    """Draw a picture, `height` inches high."""
    return Picture(name=name, title=title, caption=caption, png=render(draw, height))


def shown(value: object) -> str:
    """Return a setting as a table shows it."""
    if value is None:
        return "default"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return str(value)
