"""The image files that names on a command line stand for: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from rayff.data.images import SUFFIXES


def image_files(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the image files that the names stand for, in their order, each once.

    A folder stands for all image files in it and in its subfolders, by name and without hidden
    ones, a pattern such as `scans/*.jpg` for what it matches, should the shell have left it.

    Returns:
        the files, and a sentence about each name that stands for none.
    """
    found: dict[str, str] = {}
    problems = []
    for name in names:
        files = list(_files(name))
        for file in files:
            found.setdefault(os.path.abspath(file), file)
        if not files and os.path.isdir(name):
            problems.append(f"{name} holds no image files: their names end in {_endings()}")
        elif not files:
            problems.append(f"no file matches {name}")
    return [*found.values()], problems


def _files(name: str) -> Iterator[str]:
    is_pattern = glob.has_magic(name) and not os.path.lexists(name)
    for match in sorted(glob.glob(name, recursive=True)) if is_pattern else [name]:
        if os.path.isdir(match):
            yield from _inside(match)
        else:
            yield match


def _inside(folder: str) -> Iterator[str]:
    seen: set[str] = set()  # links may lead in a circle
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(root, name)
            is_pipe = os.path.exists(path) and not os.path.isfile(path)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not is_pipe:
                yield path


def _endings() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
